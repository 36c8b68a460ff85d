"""info_nce and cross_view_info_nce on CUDA devices.

Both are one or two "views" of the same thing: rows x against columns y, with pairs (r, c) and
    loss_pair = lse_j(s_rj) - s_rc,  s_rj = scale * <x_r, y_j>,  summed over j with column multiplicities m_j.
View v has the rows of table v of x and the columns of table VIEWS - 1 - v of y: so two views are both directions of a
symmetric loss (y is x) or both blocks of the cross-view loss (users of one view, items of the other). Scores are in
base 2 and live in registers. Five launches: packing; a sweep that owns rows and gives their sums of exponentials and of
weighted columns; one program a row for its losses and gradient; a sweep that owns columns; one program a column. Sweeps
are split over the swept side, and their parts are summed in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast import _native
from prorec_fast.ops.distinct import Distinct
from prorec_fast.ops.info_nce import as_distinct
from prorec_fast.triton_kernels.info_nce_sweep import Side, pack, sweep
from prorec_fast.triton_kernels.primitives import CHUNK, LN2, LOG2E, MAX_INV_NORM, bounded, live_rows, on_device
from prorec_fast.triton_kernels.variants import BANDS, FLOATS, Variant, pointers


@triton.jit
def _store_gradient(grad, unit, inv_norm, at, offs_d, depth, NORMALIZE: tl.constexpr, ADD: tl.constexpr):
    """Stores (ADD: adds) a row's gradient, taken from the unit row to the row as it was given."""
    mask = offs_d < depth
    if NORMALIZE:
        along = tl.where(inv_norm < MAX_INV_NORM, tl.sum(grad * unit, 0), 0.0)
        grad = (grad - along * unit) * inv_norm
    if ADD:
        grad += tl.load(at + offs_d, mask=mask, other=0.0)
    tl.store(at + offs_d, grad, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_pairs", "num_grad_rows", "num_splits"],
            do_not_specialize_on_alignment=["inv_norm_ptr"])  # fmt: skip
def _info_nce_row_kernel(
    x_ptr, y_ptr, inv_norm_ptr, count_ptr, rows_ptr, starts_ptr, order_ptr, col_of_ptr, sum_ptr, max_ptr, part_ptr,
    coefficient_ptr, loss_ptr, pair_grad_ptr, top_ptr, log_sum_ptr, weight_ptr, grad_ptr,
    num_rows, num_cols, num_pairs, num_grad_rows, num_splits, depth, scale, eps,
    VIEWS: tl.constexpr, WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, ONLINE: tl.constexpr, SMOOTHED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: its parts together, the losses of its pairs, and, with coefficient_ptr, their gradients by the row and
    what the sweep of the columns needs."""
    row = tl.program_id(0)
    view = tl.program_id(1)
    if row >= live_rows(count_ptr, num_rows, count_ptr is not None):
        return
    view_row = view.to(tl.int64) * num_rows + row
    first_part = view.to(tl.int64) * num_splits * num_rows + row
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < WIDTH
    scale2 = scale * LOG2E
    top = 1.0
    if ONLINE:
        top = float("-inf")
        for split in range(num_splits):
            top = tl.maximum(top, tl.load(max_ptr + first_part + split * num_rows))
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(num_splits):
        at = first_part + split * num_rows
        correction = tl.exp2((tl.load(max_ptr + at) - top) * scale2) if ONLINE else 1.0
        total += correction * tl.load(sum_ptr + at)
        if coefficient_ptr is not None:
            acc += correction * tl.load(part_ptr + at * WIDTH + offs_d, mask=mask_d, other=0.0)
    log_sum = tl.log2(total)

    x = tl.load(x_ptr + view_row * WIDTH + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    y_ptr += (VIEWS - 1 - view).to(tl.int64) * num_cols * WIDTH
    begin = row
    end = row + 1
    if order_ptr is not None:
        begin = tl.load(starts_ptr + row).to(tl.int32)
        end = tl.load(starts_ptr + row + 1).to(tl.int32)
    weight = 0.0
    pair_sum = tl.zeros([BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_P):
        pair = first + tl.arange(0, BLOCK_P)
        mask_p = pair < end
        col = pair
        if order_ptr is not None:
            pair = tl.load(order_ptr + pair, mask=mask_p, other=0).to(tl.int32)
            col = tl.load(col_of_ptr + pair, mask=mask_p, other=0).to(tl.int32)
        mask = mask_p[:, None] & mask_d[None, :]
        y = tl.load(y_ptr + col.to(tl.int64)[:, None] * WIDTH + offs_d[None, :], mask=mask, other=0.0).to(tl.float32)
        log2_share = (tl.sum(x[None, :] * y, 1) - top) * scale2 - log_sum
        # The sweep rounded this score otherwise, but no part exceeds its sum.
        log2_share = tl.minimum(log2_share, 0.0, propagate_nan=tl.PropagateNan.ALL)
        share = tl.exp2(log2_share)
        loss = -tl.log(share + eps) if SMOOTHED else -log2_share * LN2
        tl.store(loss_ptr + view * num_pairs + pair, loss, mask=mask_p)
        if coefficient_ptr is not None:
            grad = tl.load(coefficient_ptr + pair, mask=mask_p, other=0.0) / VIEWS
            if SMOOTHED:
                grad *= share / (share + eps)
            tl.store(pair_grad_ptr + view * num_pairs + pair, grad, mask=mask_p)
            grad = tl.where(mask_p, grad, 0.0)
            weight += tl.sum(grad, 0)
            pair_sum += tl.sum(grad[:, None] * y, 0)
    if coefficient_ptr is not None:
        tl.store(log_sum_ptr + view_row, log_sum)
        if ONLINE:
            tl.store(top_ptr + view_row, top)
        tl.store(weight_ptr + view_row, weight)
        grad = (acc * (weight / total) - pair_sum) * scale
        source = row if rows_ptr is None else tl.load(rows_ptr + row)
        at = grad_ptr + (view.to(tl.int64) * num_grad_rows + source) * depth
        _store_gradient(grad, x, tl.load(inv_norm_ptr + view_row), at, offs_d, depth, NORMALIZE, False)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_pairs", "num_grad_rows", "num_splits"],
            do_not_specialize_on_alignment=["inv_norm_ptr"])  # fmt: skip
def _info_nce_column_kernel(
    x_ptr, y_ptr, inv_norm_ptr, count_ptr, cols_ptr, starts_ptr, order_ptr, row_of_ptr, multiplicity_ptr, part_ptr,
    pair_grad_ptr, grad_ptr, num_rows, num_cols, num_pairs, num_grad_rows, num_splits, depth, scale,
    VIEWS: tl.constexpr, WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, ADD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One column's gradient: its parts together, less what its pairs draw."""
    col = tl.program_id(0)
    view = tl.program_id(1)
    if col >= live_rows(count_ptr, num_cols, count_ptr is not None):
        return
    table = (VIEWS - 1 - view).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < WIDTH
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(num_splits):
        at = (view.to(tl.int64) * num_splits + split) * num_cols + col
        acc += tl.load(part_ptr + at * WIDTH + offs_d, mask=mask_d, other=0.0)
    if multiplicity_ptr is not None:
        acc *= tl.load(multiplicity_ptr + col)

    x_ptr += view.to(tl.int64) * num_rows * WIDTH
    begin = col
    end = col + 1
    if order_ptr is not None:
        begin = tl.load(starts_ptr + col).to(tl.int32)
        end = tl.load(starts_ptr + col + 1).to(tl.int32)
    for first in range(begin, end, BLOCK_P):
        pair = first + tl.arange(0, BLOCK_P)
        mask_p = pair < end
        row = pair
        if order_ptr is not None:
            pair = tl.load(order_ptr + pair, mask=mask_p, other=0).to(tl.int32)
            row = tl.load(row_of_ptr + pair, mask=mask_p, other=0).to(tl.int32)
        mask = mask_p[:, None] & mask_d[None, :]
        x = tl.load(x_ptr + row.to(tl.int64)[:, None] * WIDTH + offs_d[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(pair_grad_ptr + view * num_pairs + pair, mask=mask_p, other=0.0)
        acc -= tl.sum(grad[:, None] * x, 0)
    unit = tl.load(y_ptr + (table * num_cols + col) * WIDTH + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    inv_norm = tl.load(inv_norm_ptr + table * num_cols + col)
    source = col if cols_ptr is None else tl.load(cols_ptr + col)
    at = grad_ptr + (table * num_grad_rows + source) * depth
    _store_gradient(acc * scale, unit, inv_norm, at, offs_d, depth, NORMALIZE, ADD)


_EVERY_ENTRY = Distinct(*[None] * len(Distinct._fields))


def _rows_whole(width: int, grouped: bool) -> dict[str, int | bool]:
    """Launch options of the kernels whose programs hold one whole row, and the rows of its pairs a few at a time."""
    block_d = triton.next_power_of_2(width)
    return dict(
        WIDTH=width, BLOCK_D=block_d, BLOCK_P=max(1, 512 // block_d) if grouped else 1,
        num_warps=min(max(block_d // 256, 1), 16), enable_fp_fusion=True,
    )  # fmt: skip


def _contrast(
    x: Side, y: Side, grad_x: Tensor | None, grad_y: Tensor | None, *, views: int, temperature: float,
    normalize: bool, eps: float, coefficient: Tensor | None,
) -> Tensor:  # fmt: skip
    """Losses [B], the mean of the views'; fills the tables' gradients [tables, size, depth] by coefficient . losses."""
    scale = 1 / temperature
    online = not bounded(temperature, normalize)
    x_groups, y_groups = x.groups or _EVERY_ENTRY, y.groups or _EVERY_ENTRY
    batch = x.size if x.groups is None else x.groups.inverse.size(0)
    like = x.inv_norm
    if batch == 0:
        return like.new_empty(0)
    # What lies behind the count is not computed: its loss is 0.
    loss = (like.new_empty if x.count is None or x.groups is not None else like.new_zeros)((views, batch))
    differentiate = coefficient is not None
    pair_grad, statistics = None, (None,) * 3
    if differentiate:
        pair_grad = torch.empty_like(loss)
        statistics = tuple(like.new_empty(views, x.size) for _ in range(3))
    sweeps = dict(views=views, scale=scale * LOG2E.value, online=online, gradients=differentiate)
    sums = sweep(x, y, **sweeps)
    options = _rows_whole(x.unit.size(2), x.groups is not None) | dict(VIEWS=views, NORMALIZE=normalize)
    with on_device(like):
        _info_nce_row_kernel[(x.size, views)](
            x.unit, y.unit, x.inv_norm, x.count, x_groups.values, x_groups.starts, x_groups.order, y_groups.inverse,
            *sums, coefficient, loss, pair_grad, *statistics, grad_x, x.size, y.size, batch,
            grad_x.size(1) if differentiate else 0, sums.total.size(1), x.depth, scale, eps, ONLINE=online,
            SMOOTHED=eps > 0, **options,
        )  # fmt: skip
        if differentiate:
            parts = sweep(y, x, **sweeps, statistics=statistics).rows
            _info_nce_column_kernel[(y.size, views)](
                x.unit, y.unit, y.inv_norm, y.count, y_groups.values, y_groups.starts, y_groups.order,
                x_groups.inverse, y_groups.multiplicity, parts, pair_grad, grad_y, x.size, y.size, batch,
                grad_y.size(1), parts.size(1), x.depth, scale, ADD=y is x, **options,
            )  # fmt: skip
    return loss.mean(0) if views == 2 else loss[0]


def info_nce_cuda(
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
) -> tuple[Tensor, list[Tensor]]:
    rows = _native.index("rows", rows, anchor.size(0))
    both = pack(anchor, positive, None, rows, count, normalize)
    grads = None
    if coefficient is not None:
        every_row = count is None
        grads = (anchor.new_empty if every_row else anchor.new_zeros)((2, both.size, both.depth), dtype=torch.float32)
    x, y, grad_x, grad_y = both, both, grads, grads
    if not symmetric:
        x, y = both.table(0), both.table(1)
        grad_x, grad_y = (None, None) if grads is None else (grads[:1], grads[1:])
    loss = _contrast(
        x, y, grad_x, grad_y, views=1 + symmetric, temperature=temperature, normalize=normalize, eps=eps,
        coefficient=coefficient,
    )  # fmt: skip
    if grads is not None and rows is not None:
        tables = grads.new_zeros(2, *anchor.shape)
        grads = tables.index_add_(1, rows, grads)  # equal entries of `rows` add up
    return loss, [] if grads is None else list(grads)


def cross_view_info_nce_cuda(
    user_a: Tensor,
    item_a: Tensor,
    user_b: Tensor,
    item_b: Tensor,
    users: Tensor | Distinct | None,
    items: Tensor | Distinct | None,
    temperature: float,
    *,
    coefficient: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    sides, grads = [], []
    for name, index, tables in (("users", users, (user_a, user_b)), ("items", items, (item_a, item_b))):
        groups = None if index is None else as_distinct(name, index, tables[0].size(0))
        sides.append(pack(*tables, groups, None, None, True))
        if coefficient is not None:
            grads.append(tables[0].new_zeros((2, *tables[0].shape), dtype=torch.float32))
    loss = _contrast(
        *sides, *(grads or (None, None)), views=2, temperature=temperature, normalize=True, eps=0.0,
        coefficient=coefficient,
    )  # fmt: skip
    return loss, [table for pair in zip(*grads, strict=True) for table in pair]


def variants(chip: int) -> Iterator[Variant]:
    whole = ("rows_ptr", "cols_ptr", "starts_ptr", "order_ptr", "col_of_ptr", "row_of_ptr", "count_ptr")
    for name in FLOATS:
        types = dict.fromkeys(whole, "*i64") | {"scale": "fp32", "eps": "fp32"} | pointers(name, "x_ptr", "y_ptr")
        for width in (BANDS[0], 12 * CHUNK):
            options = _rows_whole(width, grouped=True)
            num_warps = options.pop("num_warps")
            constants = {k: v for k, v in options.items() if k.isupper()} | dict(VIEWS=2, NORMALIZE=True)
            rows = constants | dict(ONLINE=True, SMOOTHED=True)
            yield Variant(_info_nce_row_kernel, types, rows, num_warps)
            yield Variant(_info_nce_column_kernel, types, constants | dict(ADD=True), num_warps)
