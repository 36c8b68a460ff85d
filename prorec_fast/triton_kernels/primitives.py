"""What the Triton kernels share: packed rows, dot products, and a row gradient's way out through its normalisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers

# Triton's interpreter multiplies the bits of bfloat16 operands and not their values, and rounds 1.999 to 1.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MAX_INV_NORM = tl.constexpr(1e12)  # of a row no longer than 1e-12, which F.normalize divides by 1e-12

CHUNK = 128  # columns of a packed table that a program holds at a time
_MAX_BOUNDED_SCALE = 40.0  # up to which e^((cos - 1) / temperature) is a normal number for every cosine
_PACK_ROWS = 16
_FINISH_ROWS = 16
_PROGRAMS_A_PROCESSOR = 2
_MAX_SPLITS = 64
_SIMULATED_PROCESSORS = 8
_SIMULATED_CHIP = 90


class Rows(NamedTuple):
    """A packed table: what tiles of dot products are read from."""

    unit: Tensor  # [rows, BLOCK_D] contiguous, zero beyond the depth; unit rows where normalised
    inv_norm: Tensor  # [rows] float32, 1 where not normalised
    depth: int


def block_depth(depth: int) -> int:
    """Columns of a packed table of `depth`: the next power of two, at least what a tensor core's step takes."""
    return max(16, triton.next_power_of_2(depth))


def bounded(temperature: float, normalize: bool) -> bool:
    """Whether scores have a bound that can stand in for their maximum."""
    return normalize and 1 / temperature <= _MAX_BOUNDED_SCALE


def on_device(t: Tensor):
    """A context in which kernels are launched on t's device."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def processors(t: Tensor) -> int:
    """Streaming multiprocessors of t's device."""
    return _properties(t.device)[0] if t.is_cuda else _SIMULATED_PROCESSORS


def chip(t: Tensor) -> int:
    """Compute capability of t's device, 90 for 9.0."""
    return _properties(t.device)[1] if t.is_cuda else _SIMULATED_CHIP


def split(t: Tensor, tiles: int, steps: int) -> tuple[int, int]:
    """Into how many parts to cut a sweep of `steps` that each of `tiles` programs makes, and the steps of a part: the
    fewest that keep t's device busy to nine tenths or, where none do, the best."""
    slots = _PROGRAMS_A_PROCESSOR * processors(t)
    best, best_busy = steps, 0.0
    for parts in range(1, min(steps, _MAX_SPLITS) + 1):
        length = triton.cdiv(steps, parts)
        programs = tiles * triton.cdiv(steps, length)
        # The last wave may be short of programs, and the last part of a sweep short of steps.
        busy = tiles * steps / (triton.cdiv(programs, slots) * slots * length)
        if busy > best_busy + 1e-3:
            best, best_busy = length, busy
        if busy >= 0.9:
            break
    return triton.cdiv(steps, best), best


@cache
def _properties(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major * 10 + properties.minor


def dot_precision(t: Tensor) -> str:
    """`input_precision` for products of t's rows: float32's own accuracy unless torch is allowed TF32. 16-bit operands
    ignore it."""
    if t.dtype != torch.float32:
        return "tf32"
    matmul = torch.backends.cuda.matmul
    # Reading the older switch raises once the newer one has been set.
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "tf32x3"


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 `x` in the dtype that a packed table is stored in."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def weighted_rows(weights, rows, acc, PRECISION: tl.constexpr):
    """acc + weights @ rows for float32 weights of any size: float16, whose range ends at 6e-8, takes TF32 instead."""
    if rows.dtype == tl.float16:
        return dot(weights, rows.to(tl.float32), acc, "tf32")
    else:
        return dot(rounded(weights, rows.dtype), rows, acc, PRECISION)


@triton.jit
def load_rows(base_ptr, offs, mask, stride, start, COLS: tl.constexpr):
    """Columns [start, start + COLS) of the rows `offs` of a packed table of row length `stride`; 0 where not `mask`."""
    cols = start + tl.arange(0, COLS)
    return tl.load(base_ptr + offs.to(tl.int64)[:, None] * stride + cols[None, :], mask=mask[:, None], other=0.0)


@triton.jit
def tile_scores(
    x, x_ptr, offs_x, mask_x, y_ptr, offs_y, mask_y,
    BLOCK_D: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of two packed tables' rows, and the rows of y. `x` are the rows of x where these fit COLS columns;
    deeper ones are read a chunk at a time, and what is returned for y is the last chunk."""
    acc = tl.zeros([offs_x.shape[0], offs_y.shape[0]], tl.float32)
    if BLOCK_D == COLS:
        y = load_rows(y_ptr, offs_y, mask_y, BLOCK_D, 0, COLS)
        acc = dot(x, tl.trans(y), acc, PRECISION)
    else:
        y = tl.zeros([offs_y.shape[0], COLS], y_ptr.dtype.element_ty)
        for start in range(0, BLOCK_D, COLS):
            x = load_rows(x_ptr, offs_x, mask_x, BLOCK_D, start, COLS)
            y = load_rows(y_ptr, offs_y, mask_y, BLOCK_D, start, COLS)
            acc = dot(x, tl.trans(y), acc, PRECISION)
    return acc, y


@triton.jit
def live_rows(count_ptr, num_rows, HAS_COUNT: tl.constexpr):
    """How many of a batch's rows are part of the loss: all, or the number at `count_ptr`."""
    live = tl.cast(num_rows, tl.int64)
    if HAS_COUNT:
        live = tl.maximum(tl.minimum(tl.load(count_ptr), live), 0)
    return live.to(tl.int32)


@triton.jit
def softplus(x, e):
    """ln(1 + e^x), where e = e^-|x|. Near 1 the device's logarithm is exact to 2^-22, but confident rows need so many
    digits of ln(1 + e) itself: 2 artanh(e / (2 + e)), eight terms of whose series reach float32's rounding."""
    z = e / (2.0 + e)
    square = z * z
    series = 1.0 / 15.0
    for k in tl.static_range(6, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def inverse_norm(norm):
    """What F.normalize multiplies a row of this norm by. Rounded to nearest, not approximate: a clamped row's has to
    equal MAX_INV_NORM, by which its gradient is told."""
    one = tl.full(norm.shape, 1.0, tl.float32)
    return tl.div_rn(one, tl.maximum(norm, 1e-12, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _pack_tile(
    x_ptr, stride_x_row, unit_ptr, inv_norm_ptr, tile, num_rows, depth,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < num_rows
    rows = offs_b.to(tl.int64)[:, None]
    inv_norm = tl.full([BLOCK_B], 1.0, tl.float32)
    if NORMALIZE:
        square = tl.zeros([BLOCK_B], tl.float32)
        for start in range(0, BLOCK_D, COLS):
            cols = start + tl.arange(0, COLS)[None, :]
            mask = mask_b[:, None] & (cols < depth)
            x = tl.load(x_ptr + rows * stride_x_row + cols, mask=mask, other=0.0).to(tl.float32)
            square += tl.sum(x * x, 1)
        inv_norm = inverse_norm(tl.sqrt_rn(square))
    for start in range(0, BLOCK_D, COLS):
        cols = start + tl.arange(0, COLS)[None, :]
        mask = mask_b[:, None] & (cols < depth)
        x = tl.load(x_ptr + rows * stride_x_row + cols, mask=mask, other=0.0).to(tl.float32)
        unit = rounded(x * inv_norm[:, None], unit_ptr.dtype.element_ty)
        tl.store(unit_ptr + rows * BLOCK_D + cols, unit, mask=mask_b[:, None])
    tl.store(inv_norm_ptr + offs_b, inv_norm, mask=mask_b)


# Sizes that change from batch to batch do not make another variant of a kernel; those that alignment follows from do.
@triton.jit(do_not_specialize=["num_x", "num_y"])
def _pack_rows_kernel(
    x_ptr, stride_x_row, x_unit_ptr, x_inv_norm_ptr, num_x,
    y_ptr, stride_y_row, y_unit_ptr, y_inv_norm_ptr, num_y, depth,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    x_tiles = tl.cdiv(num_x, BLOCK_B)
    if tile < x_tiles:
        _pack_tile(x_ptr, stride_x_row, x_unit_ptr, x_inv_norm_ptr, tile, num_x, depth, BLOCK_B, BLOCK_D, COLS,
                   NORMALIZE)  # fmt: skip
    else:
        _pack_tile(y_ptr, stride_y_row, y_unit_ptr, y_inv_norm_ptr, tile - x_tiles, num_y, depth, BLOCK_B, BLOCK_D,
                   COLS, NORMALIZE)  # fmt: skip


def unit_rows(x: Tensor, y: Tensor | None = None, *, normalize: bool) -> tuple[Rows, Rows | None]:
    """Packs one or two tables of equal depth and dtype (float32, bfloat16, float16) in one launch."""
    tables = [t if t.stride(1) == 1 else t.contiguous() for t in (x, y) if t is not None]
    depth = x.size(1)
    packed = [
        Rows(t.new_empty(t.size(0), block_depth(depth)), t.new_empty(t.size(0), dtype=torch.float32), depth)
        for t in tables
    ]
    tiles = sum(triton.cdiv(t.size(0), _PACK_ROWS) for t in tables)
    if tiles:
        arguments = [a for t, p in zip(tables, packed, strict=True) for a in (t, t.stride(0), *p[:2], t.size(0))]
        if y is None:
            arguments += [*arguments[:4], 0]
        with on_device(x):
            _pack_rows_kernel[(tiles,)](
                *arguments, depth, BLOCK_B=_PACK_ROWS, BLOCK_D=block_depth(depth),
                COLS=min(block_depth(depth), CHUNK), NORMALIZE=normalize, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return packed[0], packed[1] if y is not None else None


@triton.jit
def _finish_tile(
    parts_ptr, weights_ptr, num_parts, unit_ptr, inv_norm_ptr, grad_ptr, tile, num_rows, depth, scale,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, NORMALIZE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < num_rows
    rows = offs_b.to(tl.int64)[:, None]
    inv_norm = tl.load(inv_norm_ptr + offs_b, mask=mask_b, other=1.0)
    along = tl.zeros([BLOCK_B], tl.float32)
    # The first pass finds <grad, unit>, the second has all of it; a row that fits one chunk needs but one.
    PASSES: tl.constexpr = 2 if NORMALIZE and BLOCK_D > COLS else 1
    for step in tl.static_range(PASSES):
        for start in range(0, BLOCK_D, COLS):
            cols = start + tl.arange(0, COLS)[None, :]
            grad = tl.zeros([BLOCK_B, COLS], tl.float32)
            for part in range(num_parts):
                at = parts_ptr + (rows + part * num_rows) * BLOCK_D + cols
                value = tl.load(at, mask=mask_b[:, None], other=0.0)
                if WEIGHTED:
                    weight = tl.load(weights_ptr + part * num_rows + offs_b, mask=mask_b, other=0.0)[:, None]
                    value = tl.where(weight == 0.0, 0.0, value * weight)
                grad += value
            grad *= scale
            if NORMALIZE:
                unit = tl.load(unit_ptr + rows * BLOCK_D + cols, mask=mask_b[:, None], other=0.0).to(tl.float32)
                if step == 0:
                    along += tl.sum(grad * unit, 1)
                bend = tl.where(inv_norm < MAX_INV_NORM, along, 0.0)[:, None]
                grad = (grad - bend * unit) * inv_norm[:, None]
            if step == PASSES - 1:
                tl.store(grad_ptr + rows * depth + cols, grad, mask=mask_b[:, None] & (cols < depth))


@triton.jit(do_not_specialize=["num_x", "num_x_parts", "num_y", "num_y_parts"])
def _finish_rows_kernel(
    x_parts_ptr, x_weights_ptr, num_x_parts, x_unit_ptr, x_inv_norm_ptr, x_grad_ptr, num_x,
    y_parts_ptr, y_weights_ptr, num_y_parts, y_unit_ptr, y_inv_norm_ptr, y_grad_ptr, num_y, depth, scale,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, NORMALIZE: tl.constexpr,
    X_WEIGHTED: tl.constexpr, Y_WEIGHTED: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    x_tiles = tl.cdiv(num_x, BLOCK_B)
    if tile < x_tiles:
        _finish_tile(x_parts_ptr, x_weights_ptr, num_x_parts, x_unit_ptr, x_inv_norm_ptr, x_grad_ptr, tile, num_x,
                     depth, scale, BLOCK_B, BLOCK_D, COLS, NORMALIZE, X_WEIGHTED)  # fmt: skip
    else:
        _finish_tile(y_parts_ptr, y_weights_ptr, num_y_parts, y_unit_ptr, y_inv_norm_ptr, y_grad_ptr, tile - x_tiles,
                     num_y, depth, scale, BLOCK_B, BLOCK_D, COLS, NORMALIZE, Y_WEIGHTED)  # fmt: skip


class Parts(NamedTuple):
    """Partial gradients of a packed table's rows."""

    values: Tensor  # [parts, rows, BLOCK_D] float32
    weights: Tensor | None = None  # [parts, rows] float32 factors; where 0, the values may be anything


def finish_rows(
    x: Rows, x_parts: Parts, y: Rows | None = None, y_parts: Parts | None = None, *, normalize: bool, scale: float = 1.0
) -> list[Tensor]:
    """scale * the sum of each table's parts, in their order, through its rows' normalisation: [rows, depth] float32
    gradients, in one launch."""
    grads, arguments, tiles = [], [], 0
    for rows, parts in ((x, x_parts), (y, y_parts)):
        if rows is None:
            arguments += [*arguments[:6], 0]
            continue
        size = rows.unit.size(0)
        grads.append(rows.inv_norm.new_empty(size, rows.depth))
        # Without weights the values stand in: a pointer must be of something.
        weights = parts.values if parts.weights is None else parts.weights
        arguments += [parts.values, weights, parts.values.size(0), rows.unit, rows.inv_norm, grads[-1], size]
        tiles += triton.cdiv(size, _FINISH_ROWS)
    if tiles:
        with on_device(x.unit):
            _finish_rows_kernel[(tiles,)](
                *arguments, x.depth, float(scale), BLOCK_B=_FINISH_ROWS, BLOCK_D=block_depth(x.depth),
                COLS=min(block_depth(x.depth), CHUNK), NORMALIZE=normalize, X_WEIGHTED=x_parts.weights is not None,
                Y_WEIGHTED=y_parts is not None and y_parts.weights is not None, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return grads


def variants(chip: int) -> Iterator[Variant]:
    for name in FLOATS:
        for depth in (32, 2 * CHUNK):
            sizes = dict(BLOCK_D=depth, COLS=min(depth, CHUNK), NORMALIZE=True)
            types = pointers(name, "x_ptr", "y_ptr", "x_unit_ptr", "y_unit_ptr")
            yield Variant(_pack_rows_kernel, types, sizes | dict(BLOCK_B=_PACK_ROWS))
            finish = dict(BLOCK_B=_FINISH_ROWS, X_WEIGHTED=True, Y_WEIGHTED=False)
            types = pointers(name, "x_unit_ptr", "y_unit_ptr") | {"scale": "fp32"}
            yield Variant(_finish_rows_kernel, types, sizes | finish)
