"""profile_contrast on CUDA devices: a program holds the K x K scores of some rows; its losses and the gradients of all
their profiles leave in the same pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast import _native
from prorec_fast.triton_kernels.primitives import CHUNK, MAX_INV_NORM, inverse_norm, live_rows, on_device, softplus
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers

_ELEMENTS = 1024  # of the profiles that a program of four warps holds in registers
_MAX_ELEMENTS = 4096  # where one row's chunk has more than _ELEMENTS


@triton.jit
def _load(profiles_ptr, rows, profiles, stride_profile, start, depth, mask, COLS: tl.constexpr):
    """Columns [start, start + COLS) as float32, of the shape that rows, profiles and columns broadcast to."""
    cols = (start + tl.arange(0, COLS))[None, None, :]
    at = profiles_ptr + rows + profiles * stride_profile + cols
    return tl.load(at, mask=mask & (cols < depth), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _profile_contrast_kernel(
    profiles_ptr, count_ptr, coefficient_ptr, loss_ptr, grad_ptr, num_rows, num_profiles, depth, stride_profile,
    stride_row, scale, shift,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, NORMALIZE: tl.constexpr,
    HAS_COUNT: tl.constexpr,
):  # fmt: skip
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < live_rows(count_ptr, num_rows, HAS_COUNT)
    rows = (offs_b * stride_row)[:, None, None]
    offs_k = tl.arange(0, BLOCK_K)
    mask_k = offs_k < num_profiles
    profiles = offs_k.to(tl.int64)[None, :, None]
    mask_row = mask_b[:, None, None]
    mask = mask_row & mask_k[None, :, None]
    x = tl.zeros([BLOCK_B, BLOCK_K, COLS], tl.float32)
    if BLOCK_D == COLS:
        x = _load(profiles_ptr, rows, profiles, stride_profile, 0, depth, mask, COLS)

    first = offs_k[None, :, None]
    second = offs_k[None, None, :]
    scores = tl.zeros([BLOCK_B, BLOCK_K, BLOCK_K], tl.float32)
    for j in range(num_profiles):
        products = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
        for start in range(0, BLOCK_D, COLS):
            if BLOCK_D > COLS:
                x = _load(profiles_ptr, rows, profiles, stride_profile, start, depth, mask, COLS)
            y = _load(profiles_ptr, rows, tl.cast(j, tl.int64), stride_profile, start, depth, mask_row, COLS)
            products += tl.sum(x * y, 2)
        scores = tl.where(second == j, products[:, :, None], scores)
    inv_norm = tl.full([BLOCK_B, BLOCK_K], 1.0, tl.float32)
    pair_norm = tl.full([BLOCK_B, BLOCK_K, BLOCK_K], 1.0, tl.float32)
    if NORMALIZE:
        squares = tl.where(first == second, scores, 0.0)
        inv_norm = inverse_norm(tl.sqrt_rn(tl.sum(squares, 2)))
        pair_norm = inv_norm[:, :, None] * inverse_norm(tl.sqrt_rn(tl.sum(squares, 1)))[:, None, :]
    scores *= pair_norm * scale

    others = (first != second) & mask_k[None, None, :]
    scores = tl.where(others, scores, float("-inf"))
    top = tl.max(scores, 2)
    shares = tl.exp(scores - top[:, :, None])
    total = tl.sum(shares, 2)
    y = top + tl.log(total) + shift
    e = tl.exp(-tl.abs(y))
    loss = tl.sum(tl.where(mask_k[None, :], softplus(y, e), 0.0), 1)
    tl.store(loss_ptr + offs_b, tl.where(mask_b, loss, 0.0), mask=offs_b < num_rows)
    if coefficient_ptr is not None:
        coefficient = tl.load(coefficient_ptr + offs_b, mask=mask_b, other=0.0)
        slope = coefficient[:, None] * tl.where(y > 0.0, 1.0, e) / ((1.0 + e) * total)
        grads = tl.where(others & mask_k[None, :, None], slope[:, :, None] * shares, 0.0)
        grads += tl.permute(grads, (0, 2, 1))
        weights = grads * pair_norm * scale
        if NORMALIZE:
            along = tl.sum(grads * tl.where(others, scores, 0.0), 2)
            bend = tl.where(inv_norm < MAX_INV_NORM, along * inv_norm * inv_norm, 0.0)
            weights -= tl.where(first == second, bend[:, :, None], 0.0)
        mask_grad = (offs_b < num_rows)[:, None, None] & mask_k[None, :, None]
        for start in range(0, BLOCK_D, COLS):
            acc = tl.zeros([BLOCK_B, BLOCK_K, COLS], tl.float32)
            for j in range(num_profiles):
                weight = tl.sum(tl.where(second == j, weights, 0.0), 2)
                y_rows = _load(profiles_ptr, rows, tl.cast(j, tl.int64), stride_profile, start, depth, mask_row, COLS)
                acc += weight[:, :, None] * y_rows
            cols = (start + tl.arange(0, COLS))[None, None, :]
            at = (profiles * num_rows + offs_b[:, None, None]) * depth + cols
            tl.store(grad_ptr + at, acc, mask=mask_grad & (cols < depth))


def _tile(num_profiles: int, depth: int) -> tuple[dict[str, int], int]:
    """Sizes and the number of warps: a row's scores are held whole, its profiles a chunk at a time."""
    block_k = max(2, triton.next_power_of_2(num_profiles))
    block_d = triton.next_power_of_2(depth)
    cols = min(block_d, CHUNK, max(16, _MAX_ELEMENTS // block_k))
    block_b = max(1, _ELEMENTS // (block_k * max(cols, block_k)))
    return dict(BLOCK_B=block_b, BLOCK_K=block_k, BLOCK_D=block_d, COLS=cols), max(4, block_k * block_k // 512)


def profile_contrast_cuda(
    profiles: Tensor,
    temperature: float,
    shift: float,
    normalize: bool,
    count: Tensor | None,
    *,
    coefficient: Tensor | None = None,
):
    """Losses [B] and, with a coefficient [B], the gradient [K, B, d] of coefficient . losses: all float32."""
    stored = _native.storable(profiles)
    num_profiles, num_rows, depth = profiles.shape
    if num_profiles == 1:  # a sum over nothing
        loss = profiles.new_zeros(num_rows, dtype=torch.float32)
        return loss, [] if coefficient is None else [profiles.new_zeros(profiles.shape, dtype=torch.float32)]
    loss = profiles.new_empty(num_rows, dtype=torch.float32)
    grads = [] if coefficient is None else [profiles.new_empty(profiles.shape, dtype=torch.float32)]
    sizes, num_warps = _tile(num_profiles, depth)
    if num_rows:
        with on_device(profiles):
            _profile_contrast_kernel[(triton.cdiv(num_rows, sizes["BLOCK_B"]),)](
                stored, loss if count is None else count, coefficient, loss, grads[0] if grads else loss, num_rows,
                num_profiles, depth, stored.stride(0), stored.stride(1), 1 / temperature, shift, **sizes,
                NORMALIZE=normalize, HAS_COUNT=count is not None, num_warps=num_warps, enable_fp_fusion=True,
            )  # fmt: skip
    return loss, grads


def variants(chip: int) -> Iterator[Variant]:
    for name in FLOATS:
        for num_profiles, depth in ((4, 32), (16, 512), (64, 32)):
            sizes, num_warps = _tile(num_profiles, depth)
            types = pointers(name, "profiles_ptr") | {"count_ptr": "*i64", "scale": "fp32", "shift": "fp32"}
            yield Variant(_profile_contrast_kernel, types, sizes | dict(NORMALIZE=True, HAS_COUNT=True), num_warps)
