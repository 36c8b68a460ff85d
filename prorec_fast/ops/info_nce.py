from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prorec_fast import _checks, _native
from prorec_fast._checks import float_matrix, index_vector, one_of, row_count, same_device_and_dtype
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.distinct import Distinct, distinct
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference import info_nce as reference


@operation("info_nce", float32)
def info_nce(
    anchor: Tensor,
    positive: Tensor,
    *,
    rows: Tensor | None,
    count: Tensor | None,
    temperature: float,
    normalize: bool,
    symmetric: bool,
    eps: float,
    reduction: str,
) -> Tensor:
    float_matrix("anchor", anchor)
    float_matrix("positive", positive, rows=anchor.size(0), cols=anchor.size(1))
    same_device_and_dtype(("anchor", "positive"), (anchor, positive))
    _checks.temperature("temperature", temperature)
    _checks.smoothing("eps", eps)
    one_of("reduction", reduction, REDUCTIONS)
    if rows is not None:
        index_vector("rows", rows, size=anchor.size(0), device=anchor.device)
    if count is not None:
        batch = anchor.size(0) if rows is None else rows.size(0)
        row_count("count", count, rows=batch, device=anchor.device)
    if not _native.runs_on_kernel("triton", anchor, positive):
        return reference.info_nce(
            anchor, positive, rows=rows, count=count, temperature=temperature, normalize=normalize,
            symmetric=symmetric, eps=eps, reduction=reduction,
        )  # fmt: skip
    return INFO_NCE(
        anchor, positive, rows, count, float(temperature), bool(normalize), bool(symmetric), float(eps),
        reduction=reduction, count=count,
    )  # fmt: skip


@operation("cross_view_info_nce", float32)
def cross_view_info_nce(
    user_a: Tensor,
    item_a: Tensor,
    user_b: Tensor,
    item_b: Tensor,
    *,
    users: Tensor | Distinct | None,
    items: Tensor | Distinct | None,
    temperature: float,
    reduction: str,
) -> Tensor:
    float_matrix("user_a", user_a)
    float_matrix("item_a", item_a, rows=user_a.size(0) if users is None else None, cols=user_a.size(1))
    float_matrix("user_b", user_b, rows=user_a.size(0), cols=user_a.size(1))
    float_matrix("item_b", item_b, rows=item_a.size(0), cols=user_a.size(1))
    tables = (user_a, item_a, user_b, item_b)
    same_device_and_dtype(("user_a", "item_a", "user_b", "item_b"), tables)
    _checks.temperature("temperature", temperature)
    one_of("reduction", reduction, REDUCTIONS)
    if (users is None) != (items is None):
        raise ValueError("users, items: want both or neither")
    if users is not None:
        batch = []
        for name, index, table in (("users", users, user_a), ("items", items, item_a)):
            values = index.values if isinstance(index, Distinct) else index
            index_vector(name, values, size=table.size(0), device=table.device)
            batch.append(values.size(0))
        if batch[0] != batch[1]:
            raise ValueError(f"items: want one for each of users [{batch[0]}], got [{batch[1]}]")
    kernel = _native.runs_on_kernel("triton", *tables)
    if torch.compiler.is_compiling() or not kernel:  # what is registered, and the reference, take no Distinct
        users, items = (index.entries() if isinstance(index, Distinct) else index for index in (users, items))
    if not kernel:
        return reference.cross_view_info_nce(
            *tables, users=users, items=items, temperature=temperature, reduction=reduction
        )
    return CROSS_VIEW_INFO_NCE(*tables, users, items, float(temperature), reduction=reduction)


class _Pairs(NamedTuple):
    """A batch's (anchor, positive) pairs over its distinct rows and columns, sorted by row."""

    rows: Tensor  # [R] int64, rows of the anchors' table
    cols: Tensor  # [C] int64, rows of the positives' table
    col_count: Tensor  # [C] float32, how often the batch has each column
    indptr: Tensor  # [R + 1] int64
    pair_cols: Tensor  # [B] int64, in [0, C)
    order: Tensor  # [B] int64, which of the batch's rows each pair is


def _distinct_pairs(users: Distinct, items: Distinct) -> _Pairs:
    num_rows, num_cols = int(users.count), int(items.count)
    return _Pairs(
        users.values[:num_rows], items.values[:num_cols], items.multiplicity[:num_cols], users.starts[: num_rows + 1],
        items.inverse[users.order], users.order,
    )  # fmt: skip


def as_distinct(name: str, index: Tensor | Distinct, size: int) -> Distinct:
    return index if isinstance(index, Distinct) else distinct(_native.index(name, index, size))


def _launch(
    anchor: Tensor,
    positive: Tensor,
    *,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    pairs: _Pairs | None = None,
    temperature: float,
    normalize: bool = True,
    eps: float = 0.0,
    coefficient: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """One direction: losses [B] and the gradients (float32) of coefficient . losses by the two tables."""
    anchor, positive = _native.storable(anchor), _native.storable(positive)
    cols = rows = _native.index("rows", rows, anchor.size(0))
    if pairs is not None:
        rows, cols = pairs.rows, pairs.cols
        coefficient = None if coefficient is None else coefficient[pairs.order]
    num_rows, num_cols = (t.size(0) if i is None else i.size(0) for t, i in ((anchor, rows), (positive, cols)))
    batch = num_rows if pairs is None else pairs.order.size(0)
    loss = _native.empty(batch) if count is None else _native.zeros(batch)
    if count is not None:
        _checks.index_range("count", count, batch + 1)
        num_rows = num_cols = int(count)
    grads = [] if coefficient is None else [_native.zeros(*anchor.shape), _native.zeros(*positive.shape)]
    _native.extension().info_nce(
        _native.matrix(anchor), _native.matrix(positive), _native.address(rows), _native.address(cols), num_rows,
        num_cols, *(map(_native.address, (pairs.col_count, pairs.indptr, pairs.pair_cols)) if pairs else (0, 0, 0)),
        1 / temperature, normalize, eps, _native.address(coefficient), loss.data_ptr(),
        *(map(_native.address, grads) if grads else (0, 0)), _native.threads(),
    )  # fmt: skip
    if pairs is not None:
        loss = torch.empty_like(loss).scatter_(0, pairs.order, loss)
    return loss, grads


def info_nce_cpu(
    anchor: Tensor,
    positive: Tensor,
    rows: Tensor | None,
    count: Tensor | None,
    temperature: float,
    normalize: bool,
    symmetric: bool,
    eps: float,
    *,
    coefficient: Tensor | None = None,
):
    options = dict(
        rows=rows, count=count, temperature=temperature, normalize=normalize, eps=eps, coefficient=coefficient
    )
    if symmetric and coefficient is not None:
        options["coefficient"] = coefficient / 2
    loss, grads = _launch(anchor, positive, **options)
    if symmetric:
        back, back_grads = _launch(positive, anchor, **options)
        loss = (loss + back) / 2
        grads = [g + h for g, h in zip(grads, reversed(back_grads), strict=True)]
    return loss, grads


def cross_view_info_nce_cpu(
    user_a: Tensor,
    item_a: Tensor,
    user_b: Tensor,
    item_b: Tensor,
    users: Tensor | Distinct | None,
    items: Tensor | Distinct | None,
    temperature: float,
    *,
    coefficient: Tensor | None = None,
):
    pairs = None
    if users is not None:
        pairs = _distinct_pairs(
            as_distinct("users", users, user_a.size(0)), as_distinct("items", items, item_a.size(0))
        )
    coefficient = None if coefficient is None else coefficient / 2
    a, grads_ab = _launch(user_a, item_b, pairs=pairs, temperature=temperature, coefficient=coefficient)
    b, grads_ba = _launch(user_b, item_a, pairs=pairs, temperature=temperature, coefficient=coefficient)
    grads = [] if coefficient is None else [grads_ab[0], grads_ba[1], grads_ba[0], grads_ab[1]]
    return (a + b) / 2, grads


INFO_NCE = RowLoss("info_nce", by_device(info_nce_cpu, "info_nce"), 2)
CROSS_VIEW_INFO_NCE = RowLoss("cross_view_info_nce", by_device(cross_view_info_nce_cpu, "info_nce"), 4)
