"""What info_nce's views are packed into, and the sweep over their scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast import _native
from prorec_fast.ops.distinct import Distinct
from prorec_fast.triton_kernels import tuning
from prorec_fast.triton_kernels.primitives import (
    CHUNK,
    block_depth,
    chip,
    dot,
    dot_precision,
    inverse_norm,
    live_rows,
    load_rows,
    on_device,
    processors,
    rounded,
    weighted_rows,
)
from prorec_fast.triton_kernels.variants import BANDS, FLOATS, Variant, pointers, precision, shipped_tiles


@triton.jit
def _pack_tile(
    x_ptr, stride_x_row, rows_ptr, unit_ptr, inv_norm_ptr, tile, num_rows, count, depth,
    WIDTH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < count
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    rows = offs_b.to(tl.int64)
    source = rows if rows_ptr is None else tl.load(rows_ptr + offs_b, mask=mask_b, other=0)
    mask = mask_b[:, None] & (offs_d < depth)
    x = tl.load(x_ptr + source[:, None] * stride_x_row + offs_d, mask=mask, other=0.0).to(tl.float32)
    inv_norm = tl.full([BLOCK_B], 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(x * x, 1))
        inv_norm = inverse_norm(norm)
    unit = rounded(x * inv_norm[:, None], unit_ptr.dtype.element_ty)
    tl.store(unit_ptr + rows[:, None] * WIDTH + offs_d, unit, mask=mask_b[:, None] & (offs_d < WIDTH))
    tl.store(inv_norm_ptr + offs_b, inv_norm, mask=mask_b)


@triton.jit(do_not_specialize=["num_rows"])
def _info_nce_pack_kernel(
    a_ptr, b_ptr, stride_a_row, stride_b_row, rows_ptr, count_ptr, multiplicity_ptr, unit_ptr, inv_norm_ptr,
    log_multiplicity_ptr, num_rows, depth,
    WIDTH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    table = tl.program_id(1)
    count = live_rows(count_ptr, num_rows, count_ptr is not None)
    if tile * BLOCK_B >= count:
        return
    unit_ptr += table.to(tl.int64) * num_rows * WIDTH
    inv_norm_ptr += table * num_rows
    if table == 0:
        if multiplicity_ptr is not None:
            offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
            mask_b = offs_b < count
            multiplicity = tl.load(multiplicity_ptr + offs_b, mask=mask_b, other=1.0)
            tl.store(log_multiplicity_ptr + offs_b, tl.log2(multiplicity), mask=mask_b)
        _pack_tile(a_ptr, stride_a_row, rows_ptr, unit_ptr, inv_norm_ptr, tile, num_rows, count, depth, WIDTH, BLOCK_B,
                   BLOCK_D, NORMALIZE)  # fmt: skip
    else:
        _pack_tile(b_ptr, stride_b_row, rows_ptr, unit_ptr, inv_norm_ptr, tile, num_rows, count, depth, WIDTH, BLOCK_B,
                   BLOCK_D, NORMALIZE)  # fmt: skip


@triton.jit(do_not_specialize=["num_own", "num_swept", "num_splits"])
def _info_nce_sweep_kernel(
    own_ptr, swept_ptr, own_count_ptr, swept_count_ptr, log_multiplicity_ptr, top_ptr, log_sum_ptr, weight_ptr,
    sum_ptr, max_ptr, part_ptr, num_own, num_swept, num_splits, scale,
    VIEWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ONLINE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of owned vectors against a span of the swept ones. Owning rows: sum_j m_j e_rj and, with part_ptr,
    sum_j m_j e_rj y_j, where e_rj = 2^(scale (<x_r, y_j> - top)). top is 1 or (ONLINE) the maximum so far, taken away
    before large scores are scaled and rounded. Owning COLUMNS: sum_r weight_r e_rj / 2^log_sum_r x_r."""
    tile = tl.program_id(0)
    view = tl.program_id(1) // num_splits
    split = tl.program_id(1) % num_splits
    chunk = tl.program_id(2) * BLOCK_D
    own_count = live_rows(own_count_ptr, num_own, own_count_ptr is not None)
    swept_count = live_rows(swept_count_ptr, num_swept, swept_count_ptr is not None)
    if tile * BLOCK_B >= own_count:
        return
    row_view = view.to(tl.int64)
    own_ptr += (VIEWS - 1 - row_view if COLUMNS else row_view) * num_own * WIDTH
    swept_ptr += (row_view if COLUMNS else VIEWS - 1 - row_view) * num_swept * WIDTH
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < own_count
    span = tl.cdiv(tl.cdiv(swept_count, BLOCK_N), num_splits) * BLOCK_N
    begin = split * span
    end = tl.minimum(begin + span, swept_count)

    whole = load_rows(own_ptr, offs_b, mask_b, WIDTH, 0, BLOCK_K)
    top = tl.full([BLOCK_B], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_B], tl.float32)
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        scores = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        if WIDTH == BLOCK_K:
            swept = load_rows(swept_ptr, offs_n, mask_n, WIDTH, 0, BLOCK_D)
            scores = dot(whole, tl.trans(swept), scores, PRECISION)
        else:
            for at in range(0, WIDTH, BLOCK_K):
                own = load_rows(own_ptr, offs_b, mask_b, WIDTH, at, BLOCK_K)
                other = load_rows(swept_ptr, offs_n, mask_n, WIDTH, at, BLOCK_K)
                scores = dot(own, tl.trans(other), scores, PRECISION)
            swept = load_rows(swept_ptr, offs_n, mask_n, WIDTH, chunk, BLOCK_D)
        if COLUMNS:
            at_n = view * num_swept + offs_n
            bias = -tl.load(log_sum_ptr + at_n, mask=mask_n, other=0.0)
            weight = tl.load(weight_ptr + at_n, mask=mask_n, other=0.0)
            if ONLINE:
                scores -= tl.load(top_ptr + at_n, mask=mask_n, other=0.0)[None, :]
            else:
                bias -= scale
            terms = tl.exp2(scores * scale + bias[None, :]) * weight[None, :]
            acc = weighted_rows(terms, swept, acc, PRECISION)
        else:
            # A column's multiplicity and the mask of the last tile cost nothing as an addend of the exponent.
            if log_multiplicity_ptr is not None:
                bias = tl.load(log_multiplicity_ptr + offs_n, mask=mask_n, other=float("-inf"))
            else:
                bias = tl.where(mask_n, 0.0, float("-inf"))
            if ONLINE:
                scores = tl.where(mask_n[None, :], scores, float("-inf"))
                new_top = tl.maximum(top, tl.max(scores, 1))
                correction = tl.exp2((top - new_top) * scale)
                total *= correction
                acc *= correction[:, None]
                top = new_top
                scores -= top[:, None]
            else:
                bias -= scale
            terms = tl.exp2(scores * scale + bias[None, :])
            total += tl.sum(terms, 1)
            if part_ptr is not None:
                acc = weighted_rows(terms, swept, acc, PRECISION)

    at_b = (row_view * num_splits + split) * num_own + offs_b
    if not COLUMNS:
        mask = offs_b < tl.where(chunk == 0, own_count, 0)  # every chunk has the same sums
        tl.store(sum_ptr + at_b, total, mask=mask)
        if ONLINE:
            tl.store(max_ptr + at_b, top, mask=mask)
    if part_ptr is not None:
        offs_d = chunk + tl.arange(0, BLOCK_D)
        tl.store(part_ptr + at_b[:, None] * WIDTH + offs_d[None, :], acc, mask=mask_b[:, None])


_PACKED_ELEMENTS = 2048  # that a program of four warps packs
_PROGRAMS = 4  # of a sweep that a multiprocessor holds at a time


class Side(NamedTuple):
    """The rows, or the columns, of one or two views."""

    unit: Tensor  # [tables, size, WIDTH], zero beyond the depth; unit rows where normalised
    inv_norm: Tensor  # [tables, size] float32, 1 where not normalised
    depth: int
    groups: Distinct | None  # whose values these are; None: one for each entry of the batch
    count: Tensor | None  # 0-d int64: how many of `size` there are
    log_multiplicity: Tensor | None  # [size] float32, log2 of the groups' multiplicity

    def table(self, which: int) -> Side:
        return self._replace(unit=self.unit[which : which + 1], inv_norm=self.inv_norm[which : which + 1])

    @property
    def size(self) -> int:
        return self.unit.size(1)


class Sums(NamedTuple):
    """A sweep's parts, to be added up over the splits."""

    total: Tensor | None  # [views, splits, size]
    top: Tensor | None  # [views, splits, size]
    rows: Tensor | None  # [views, splits, size, WIDTH]


def _width(depth: int) -> int:
    """Columns of a packed table: a power of two that tensor cores take, or whole chunks."""
    return block_depth(depth) if depth <= CHUNK else triton.cdiv(depth, CHUNK) * CHUNK


def pack(
    a: Tensor, b: Tensor, groups: Distinct | None, index: Tensor | None, count: Tensor | None, normalize: bool
) -> Side:
    """Two tables of one shape, of which the same rows take part: the values of `groups`, those in `index`, or all."""
    if groups is not None:
        index, count = groups.values, groups.count
    size, depth = a.size(0) if index is None else index.size(0), a.size(1)
    width = _width(depth)
    unit = a.new_empty(2, size, width)
    inv_norm = a.new_empty((2, size), dtype=torch.float32)
    multiplicity = None if groups is None else groups.multiplicity
    log_multiplicity = None if groups is None else torch.empty_like(multiplicity)
    block_d = triton.next_power_of_2(width)
    block_b = max(1, _PACKED_ELEMENTS // block_d)
    if size:
        a, b = _native.storable(a), _native.storable(b)
        if index is not None:
            # The kernels trust the index, and later write by it. On a device no host looks at it; this asserts there.
            a.select(1, 0).gather(0, index)
        with on_device(a):
            _info_nce_pack_kernel[(triton.cdiv(size, block_b), 2)](
                a, b, a.stride(0), b.stride(0), index, count, multiplicity, unit, inv_norm, log_multiplicity, size,
                depth, WIDTH=width, BLOCK_B=block_b, BLOCK_D=block_d, NORMALIZE=normalize, num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip
    return Side(unit, inv_norm, depth, groups, count, log_multiplicity)


def _blocks(width: int, tile: tuning.Tile) -> dict[str, int]:
    """Rows of up to `cols` are held whole. Of deeper ones scores are summed in steps, which take fewer registers."""
    whole = width <= tile.cols
    return dict(
        BLOCK_B=tile.block_b, BLOCK_N=tile.block_n, BLOCK_K=width if whole else tile.cols // 2,
        BLOCK_D=width if whole else tile.cols,
    )  # fmt: skip


def sweep(
    own: Side, swept: Side, *, views: int, scale: float, online: bool, gradients: bool,
    statistics: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Sums:  # fmt: skip
    """Rows own their sums over the columns or, with `statistics` of the rows (top, log_sum, weight), columns theirs."""
    like, columns = own.unit, statistics is not None
    width = like.size(2)
    tile = tuning.tile("info_nce_columns" if columns else "info_nce_rows", chip(like), width, like.itemsize)
    blocks = _blocks(width, tile)
    tiles = triton.cdiv(own.size, tile.block_b)
    chunks = width // blocks["BLOCK_D"] if gradients else 1
    splits = processors(like) * _PROGRAMS // (tiles * views * chunks)
    splits = min(max(splits, 1), triton.cdiv(swept.size, tile.block_n))
    size = (views, splits, own.size)
    sums = Sums(
        None if columns else like.new_empty(size, dtype=torch.float32),
        like.new_empty(size, dtype=torch.float32) if online and not columns else None,
        like.new_empty((*size, width), dtype=torch.float32) if gradients else None,
    )
    log_multiplicity = None if columns else swept.log_multiplicity
    with on_device(like):
        _info_nce_sweep_kernel[(tiles, views * splits, chunks)](
            own.unit, swept.unit, own.count, swept.count, log_multiplicity, *(statistics or (None,) * 3), *sums,
            own.size, swept.size, splits, scale, VIEWS=views, WIDTH=width, COLUMNS=columns, ONLINE=online,
            PRECISION=dot_precision(like), **blocks, num_warps=tile.num_warps, num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )  # fmt: skip
    return sums


def variants(chip: int) -> Iterator[Variant]:
    counts = dict.fromkeys(("own_count_ptr", "swept_count_ptr"), "*i64") | {"scale": "fp32"}
    of_columns = dict.fromkeys(("log_multiplicity_ptr", "sum_ptr", "max_ptr"))
    of_rows = dict.fromkeys(("top_ptr", "log_sum_ptr", "weight_ptr"))
    for op, absent in (("info_nce_rows", of_rows), ("info_nce_columns", of_columns)):
        for name, depth, tile in shipped_tiles(op, chip):
            constants = absent | dict(VIEWS=2, WIDTH=depth, COLUMNS=absent is of_columns, PRECISION=precision(name))
            types = counts | pointers(name, "own_ptr", "swept_ptr")
            forms = [dict(ONLINE=True)]
            if depth == BANDS[0]:
                forms.append(dict(ONLINE=False) | ({"max_ptr": None} if absent is of_rows else {}))
                if absent is of_rows:
                    forms.append(dict(ONLINE=False, max_ptr=None, part_ptr=None))
            for form in forms:
                constants = constants | _blocks(depth, tile) | form
                yield Variant(_info_nce_sweep_kernel, types, constants, tile.num_warps, tile.num_stages)
    for name in FLOATS:
        types = pointers(name, "a_ptr", "b_ptr", "unit_ptr") | {"rows_ptr": "*i64", "count_ptr": "*i64"}
        for width in (BANDS[0], 12 * CHUNK):
            block_d = triton.next_power_of_2(width)
            constants = dict(WIDTH=width, BLOCK_B=max(1, _PACKED_ELEMENTS // block_d), BLOCK_D=block_d, NORMALIZE=True)
            yield Variant(_info_nce_pack_kernel, types, constants)
