"""The sweep that softmaxes over all columns share: for a tile of rows x and every column y, e = 2^(scale <x, y> - top),
its sum and, with values v, sum e v. A sweep is cut in parts of the columns, each with its own top; parts are added in
their order. Scores are in base 2: `scale` is times log2 e.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast.triton_kernels.primitives import (
    LN2,
    LOG2E,
    Rows,
    chip,
    dot_precision,
    live_rows,
    load_rows,
    on_device,
    split,
    tile_scores,
    unit_rows,
    weighted_rows,
)
from prorec_fast.triton_kernels.tuning import BANDS, Tile, tile
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers, precision, shipped_tiles

ABSENT = tl.constexpr(-1e38)  # the score of a column that does not exist
_SUMS = 3  # top, sum e, sum e (s - top): of every row, in every part
_ROWS = 128


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_steps"])
def _softmax_sweep_kernel(
    x_ptr, y_ptr, values_ptr, count_ptr, sums_ptr, parts_ptr, num_rows, num_cols, num_steps, scale,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, BLOCK_V: tl.constexpr,
    VALUE_COLS: tl.constexpr, BOUNDED: tl.constexpr, ENTROPY: tl.constexpr, VALUES: tl.constexpr,
    VALUES_ARE_Y: tl.constexpr, HAS_COUNT: tl.constexpr, PRECISION: tl.constexpr, VALUES_PRECISION: tl.constexpr,
):  # fmt: skip
    live = live_rows(count_ptr, num_rows, HAS_COUNT)
    if tl.program_id(0) * BLOCK_B >= live:
        return
    part = tl.program_id(1)
    chunk = tl.program_id(2)
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < live
    x = load_rows(x_ptr, offs_b, mask_b, BLOCK_D, 0, COLS)
    acc_top = tl.full([BLOCK_B], ABSENT, tl.float32)
    acc_sum = tl.zeros([BLOCK_B], tl.float32)
    acc_cross = tl.zeros([BLOCK_B], tl.float32)
    acc_values = tl.zeros([BLOCK_B, VALUE_COLS], tl.float32)
    for step in range(part * num_steps, tl.minimum((part + 1) * num_steps, tl.cdiv(num_cols, BLOCK_N))):
        offs_n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_cols
        s, values = tile_scores(x, x_ptr, offs_b, mask_b, y_ptr, offs_n, mask_n, BLOCK_D, COLS, PRECISION)
        if BOUNDED:
            # Unit rows: no score is above `scale`.
            e = tl.exp2(tl.where(mask_n[None, :], s * scale - scale, ABSENT))
        else:
            s = tl.where(mask_n[None, :], s * scale, ABSENT)
            top = tl.maximum(acc_top, tl.max(s, 1))
            lower = acc_top - top
            s -= top[:, None]
            e = tl.exp2(s)
            rescale = tl.exp2(lower)
            if ENTROPY:
                acc_cross = (acc_cross + acc_sum * lower) * rescale + tl.sum(e * s, 1)
            acc_sum *= rescale
            acc_top = top
            if VALUES:
                acc_values *= rescale[:, None]
        acc_sum += tl.sum(e, 1)
        if VALUES:
            if not (VALUES_ARE_Y and BLOCK_D == VALUE_COLS):
                values = load_rows(values_ptr, offs_n, mask_n, BLOCK_V, chunk * VALUE_COLS, VALUE_COLS)
            acc_values = weighted_rows(e, values, acc_values, VALUES_PRECISION)
    if chunk == 0:
        at = sums_ptr + part * 3 * num_rows + offs_b
        if BOUNDED:
            acc_top = tl.zeros([BLOCK_B], tl.float32) + scale
        tl.store(at, acc_top, mask=mask_b)
        tl.store(at + num_rows, acc_sum, mask=mask_b)
        if ENTROPY:
            tl.store(at + 2 * num_rows, acc_cross, mask=mask_b)
    if VALUES:
        cols = chunk * VALUE_COLS + tl.arange(0, VALUE_COLS)[None, :]
        at = parts_ptr + (offs_b.to(tl.int64)[:, None] + part * num_rows) * BLOCK_V + cols
        tl.store(at, acc_values, mask=mask_b[:, None])


@triton.jit
def merged_softmax(sums_ptr, offs_b, mask_b, num_rows, num_parts, BLOCK_B: tl.constexpr, ENTROPY: tl.constexpr):
    """A row's top, sum e and, with ENTROPY, sum e (s - top) over all parts; 0, 1 and 0 where not `mask_b`."""
    top = tl.full([BLOCK_B], ABSENT, tl.float32)
    for part in range(num_parts):
        top = tl.maximum(top, tl.load(sums_ptr + part * 3 * num_rows + offs_b, mask=mask_b, other=0.0))
    total = tl.zeros([BLOCK_B], tl.float32)
    cross = tl.zeros([BLOCK_B], tl.float32)
    for part in range(num_parts):
        at = sums_ptr + part * 3 * num_rows + offs_b
        lower = tl.load(at, mask=mask_b, other=0.0) - top
        of_part = tl.load(at + num_rows, mask=mask_b, other=1.0)
        total += of_part * tl.exp2(lower)
        if ENTROPY:
            cross += (tl.load(at + 2 * num_rows, mask=mask_b, other=0.0) + of_part * lower) * tl.exp2(lower)
    return top, total, cross


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def _row_stats_kernel(
    sums_ptr, count_ptr, first_ptr, second_ptr, num_rows, num_parts,
    BLOCK_B: tl.constexpr, ENTROPY: tl.constexpr, HAS_COUNT: tl.constexpr,
):  # fmt: skip
    """With ENTROPY a row's lse and entropy in nats, else top and log2 of the sum."""
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < live_rows(count_ptr, num_rows, HAS_COUNT)
    top, total, cross = merged_softmax(sums_ptr, offs_b, mask_b, num_rows, num_parts, BLOCK_B, ENTROPY)
    log_sum = tl.log2(total)
    if ENTROPY:
        tl.store(first_ptr + offs_b, (top + log_sum) * LN2, mask=mask_b)
        tl.store(second_ptr + offs_b, (log_sum - cross / total) * LN2, mask=mask_b)
    else:
        tl.store(first_ptr + offs_b, top, mask=mask_b)
        tl.store(second_ptr + offs_b, log_sum, mask=mask_b)


class SweepPlan(NamedTuple):
    """How a sweep over columns is launched."""

    size: Tile
    tiles: int
    chunks: int
    num_parts: int
    num_steps: int

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.tiles, self.num_parts, self.chunks


def plan_sweep(
    op: str, own: Rows, swept: Rows, *others: Rows, chunks_of: Rows | None, by_item: bool = False
) -> SweepPlan:
    """A sweep of `op` over `swept` for each tile of `own`, which reads `others` too and accumulates rows of
    `chunks_of`."""
    tables = [rows.unit for rows in (own, swept, *others)]
    depth, itemsize = max(t.size(1) for t in tables), max(t.element_size() for t in tables)
    size = tile(op, chip(own.unit), depth, itemsize)
    of_own, of_swept = (size.block_n, size.block_b) if by_item else (size.block_b, size.block_n)
    tiles, steps = triton.cdiv(own.unit.size(0), of_own), triton.cdiv(swept.unit.size(0), of_swept)
    chunks = 1 if chunks_of is None else triton.cdiv(chunks_of.unit.size(1), size.cols)
    return SweepPlan(size, tiles, chunks, *split(own.unit, tiles * chunks, steps))


def pointer(t: Tensor | None, otherwise: Tensor) -> Tensor:
    """A kernel's pointer must be of something, used or not."""
    return otherwise if t is None else t


def plan_softmax(x: Rows, y: Rows, values: Rows | None) -> SweepPlan:
    return plan_sweep("softmax_sweep", x, y, *(() if values is None else (values,)), chunks_of=values)


def _widths(size: Tile, depth: int, value_depth: int, itemsize: int, *, values_are_y: bool) -> dict[str, int]:
    cols = min(depth, size.cols)
    if depth > cols and itemsize == 4 and not values_are_y:
        cols //= 2  # wider steps through deep float32 rows beside other values spill registers
    return dict(BLOCK_D=depth, COLS=cols, BLOCK_V=value_depth, VALUE_COLS=min(value_depth, size.cols))


def softmax_sweep(
    plan: SweepPlan,
    x: Rows,
    y: Rows,
    count: Tensor | None,
    scale: float,
    *,
    bounded: bool = False,
    entropy: bool = False,
    values: Rows | None = None,
    parts: Tensor | None = None,
) -> Tensor:
    """Sums [parts, 3, rows] of the first `count` rows; sum e v into `parts` [parts, rows, BLOCK_D of the values]."""
    (num_rows, depth), num_cols = x.unit.shape, y.unit.size(0)
    size, of = plan.size, y if values is None else values
    sums = x.inv_norm.new_empty(plan.num_parts, _SUMS, num_rows)
    widths = _widths(size, depth, of.unit.size(1), x.unit.itemsize, values_are_y=of is y)
    with on_device(sums):
        _softmax_sweep_kernel[plan.grid](
            x.unit, y.unit, of.unit, pointer(count, sums), sums, pointer(parts, sums), num_rows, num_cols,
            plan.num_steps, scale, BLOCK_B=size.block_b, BLOCK_N=size.block_n, **widths, BOUNDED=bounded,
            ENTROPY=entropy, VALUES=values is not None, VALUES_ARE_Y=of is y, HAS_COUNT=count is not None,
            PRECISION=dot_precision(x.unit), VALUES_PRECISION=dot_precision(of.unit),
            num_warps=size.num_warps, num_stages=size.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return sums


def row_stats(sums: Tensor, count: Tensor | None, first: Tensor, second: Tensor, *, entropy: bool = False) -> None:
    """Into `first` and `second` [rows]: every row's top and log2 of its sum, or its lse and entropy in nats."""
    num_parts, _, num_rows = sums.shape
    with on_device(sums):
        _row_stats_kernel[(triton.cdiv(num_rows, _ROWS),)](
            sums, pointer(count, sums), first, second, num_rows, num_parts, BLOCK_B=_ROWS, ENTROPY=entropy,
            HAS_COUNT=count is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def of_one_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.detach().to(dtype), y.detach().to(dtype)


def teacher_stats_cuda(user: Tensor, item: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """lse_j(t_uj) and H(p_u), each [M] float32."""
    x, y = unit_rows(*of_one_dtype(user, item), normalize=normalize)
    lse, entropy = x.inv_norm.new_empty(2, user.size(0))
    if user.size(0):
        sums = softmax_sweep(plan_softmax(x, y, None), x, y, None, LOG2E.value / temperature, entropy=True)
        row_stats(sums, None, lse, entropy, entropy=True)
    return lse, entropy


def _form(
    name: str, size: Tile, depth: int, value_depth: int, *, values_are_y: bool, bounded: bool, values: bool = True
) -> Variant:  # fmt: skip
    types = pointers(name, "x_ptr", "y_ptr", "values_ptr") | {"count_ptr": "*i64", "scale": "fp32"}
    constants = _widths(size, depth, value_depth, FLOATS[name], values_are_y=values_are_y) | dict(
        BLOCK_B=size.block_b, BLOCK_N=size.block_n, BOUNDED=bounded, ENTROPY=not values, VALUES=values,
        VALUES_ARE_Y=values_are_y, HAS_COUNT=True, PRECISION=precision(name), VALUES_PRECISION=precision(name),
    )  # fmt: skip
    return Variant(_softmax_sweep_kernel, types, constants, size.num_warps, size.num_stages)


def variants(chip: int) -> Iterator[Variant]:
    for name, depth, size in shipped_tiles("softmax_sweep", chip):
        yield _form(name, size, depth, depth, values_are_y=False, bounded=True)
        yield _form(name, size, depth, depth, values_are_y=True, bounded=False)
        if depth == BANDS[0]:
            yield _form(name, size, depth, depth, values_are_y=True, bounded=False, values=False)
    for name, itemsize in FLOATS.items():  # a deep teacher beside a student
        deep = 8 * BANDS[-1]
        size = tile("softmax_sweep", chip, deep, itemsize)
        yield _form(name, size, deep, BANDS[1], values_are_y=False, bounded=True)
    for entropy in (True, False):
        yield Variant(_row_stats_kernel, {"count_ptr": "*i64"}, dict(BLOCK_B=_ROWS, ENTROPY=entropy, HAS_COUNT=True))
