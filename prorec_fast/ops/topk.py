from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, index_vector, positive_int, same_device_and_dtype
from prorec_fast.ops.csr import csr_rows
from prorec_fast.ops.operation import operation, widest
from prorec_fast.reference.topk import topk as topk_reference

MAX_SELECTED = 2048  # candidates of a row that fit into a block's shared memory
_SCORES = 1 << 24  # float32 scores held at a time on a device
_ITEMS = 1 << 16  # the items a product covers where all of them would leave it fewer than _USERS rows
_USERS = 256
_BLOCKS = 512  # blocks of selection that keep a device busy; where rows are fewer, several blocks share one
_PART = 8192  # scores that are worth a block of their own


@operation("topk", widest)
def topk(
    user: Tensor, item: Tensor, k: int, *, exclude: Any = None, users: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    float_matrix("user", user)
    float_matrix("item", item, cols=user.size(1))
    same_device_and_dtype(("user", "item"), (user, item))
    positive_int("k", k)
    if users is not None:
        index_vector("users", users, size=user.size(0), device=user.device)
    rows = None
    if exclude is not None:
        found = csr_rows("exclude", exclude, device=user.device, rows=user.size(0), cols=item.size(0))
        rows = (found.indptr, found.indices)
    beyond = item.size(0) >= 2**31 or (_native.on_cuda(user) and min(k, item.size(0)) > MAX_SELECTED)
    if not _native.runs_on_kernel("cuda", user, item) or beyond:
        return topk_reference(user, item, k, exclude=rows, users=users)
    indptr, indices = rows or (None, None)
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.topk(user.detach(), item.detach(), k, indptr, indices, users)
    return topk_kernel(user, item, k, indptr, indices, users)


def topk_kernel(
    user: Tensor, item: Tensor, k: int, indptr: Tensor | None, indices: Tensor | None, users: Tensor | None
) -> tuple[Tensor, Tensor]:
    launch = topk_cuda if _native.on_cuda(user) else topk_cpu
    return launch(user, item, k, indptr, indices, users)


def topk_cpu(
    user: Tensor, item: Tensor, k: int, indptr: Tensor | None, indices: Tensor | None, users: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch = user.size(0) if users is None else users.numel()
    scores = _native.empty(batch, k)
    items = _native.empty(batch, k, dtype=torch.int64)
    users = _native.index("users", users, user.size(0))
    user_rows, item_rows = _native.storable(user), _native.storable(item)
    _native.extension().topk(
        _native.matrix(user_rows),
        _native.matrix(item_rows),
        _native.address(users),
        batch,
        k,
        _native.address(indptr),
        _native.address(indices),
        scores.data_ptr(),
        items.data_ptr(),
        _native.threads(),
    )
    return scores.to(user.dtype), items


def topk_cuda(
    user: Tensor, item: Tensor, k: int, indptr: Tensor | None, indices: Tensor | None, users: Tensor | None
) -> tuple[Tensor, Tensor]:
    """cuBLAS's product for some users and items at a time, and a selection that reads each score once."""
    users = _native.index("users", users, user.size(0))
    dtype, user, item = user.dtype, user.detach(), item.detach().float()
    batch, num_items = user.size(0) if users is None else users.numel(), item.size(0)
    scores = user.new_empty((batch, k), dtype=torch.float32)
    items = user.new_empty((batch, k), dtype=torch.int64)
    if batch == 0 or num_items == 0:
        return scores.fill_(-torch.inf).to(dtype), items.fill_(-1)

    item_step = num_items if num_items * min(batch, _USERS) <= _SCORES else min(num_items, _ITEMS)
    stride = -(-item_step // 4) * 4  # rows are read in groups of four scores
    user_step = -(-batch // -(-batch // max(1, _SCORES // stride)))  # as large as fits, and all alike
    splits = max(1, min(_BLOCKS // user_step, item_step // _PART))
    kept = min(k, num_items)
    workspace = user.new_empty((user_step, stride), dtype=torch.float32)
    carried = None
    if splits > 1 or item_step < num_items:
        carried = user.new_empty((user_step, splits, kept), dtype=torch.int64)
    exclude = _native.address(indptr), _native.address(indices), 0, user.size(0), num_items
    for first_user in range(0, batch, user_step):
        chosen = None if users is None else users[first_user : first_user + user_step]
        rows = user[first_user : first_user + user_step] if chosen is None else user.index_select(0, chosen)
        rows = rows.float()
        for first_item in range(0, num_items, item_step):
            columns = item[first_item : first_item + item_step]
            product = workspace[: rows.size(0), : columns.size(0)]
            torch.mm(rows, columns.T, out=product)
            _native.cuda_call(
                user,
                "topk",
                _native.matrix(product),
                first_item,
                exclude,
                0 if indices is None else indices.numel(),
                _native.address(chosen),
                first_user,
                splits,
                kept,
                k,
                _native.address(carried),
                scores[first_user:].data_ptr(),
                items[first_user:].data_ptr(),
            )
    return scores.to(dtype), items
