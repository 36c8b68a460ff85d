from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, index_vector, positive_int, same_device_and_dtype
from prorec_fast.ops.csr import csr_rows
from prorec_fast.reference.topk import topk as topk_reference


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
        rows = csr_rows("exclude", exclude, device=user.device, rows=user.size(0), cols=item.size(0))[:2]
    if not _native.runs_on_kernel("cuda", user, item) or item.size(0) >= 2**31:
        return topk_reference(user, item, k, exclude=rows, users=users)
    indptr, indices = rows or (None, None)
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.topk(user, item, k, indptr, indices, users)
    return topk_cpu(user, item, k, indptr, indices, users)


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
