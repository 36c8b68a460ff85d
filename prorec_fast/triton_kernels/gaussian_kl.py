"""gaussian_kl on CUDA devices: a tile of the inputs is read once, and its losses and all gradients leave in the same
pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast import _native
from prorec_fast.triton_kernels.primitives import LOG2E, on_device
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers

_ELEMENTS = 512  # of each input that a program of four warps holds in registers
_MAX_COLS = 256


@triton.jit
def _exp(x):
    """e^x whatever the size of x: the device's takes 2^(x log2 e), whose rounding grows with x."""
    bounded = tl.where(x > 100.0, 100.0, tl.where(x < -100.0, -100.0, x))
    n = tl.floor(bounded * LOG2E + 0.5)
    rest = (bounded - n * 0.693359375) + n * 2.12194440e-4  # less n ln 2, the high part of which is exact
    return tl.exp2(rest * LOG2E) * tl.exp2(n)


@triton.jit
def _excess(t):
    """e^t - 1 and e^t - 1 - t, both relative to themselves: where they cancel, as series."""
    p = tl.full(t.shape, 1.0, tl.float32)
    for n in tl.static_range(11, 2, -1):
        p = 1.0 + p * t * (1.0 / n)
    series = 0.5 * t * t * p
    e = _exp(t) - 1.0
    small = tl.abs(t) < 1.0
    return tl.where(small, t + series, e), tl.where(small, series, e - t)


@triton.jit
def _load(x_ptr, rows, stride_row, cols, mask):
    return tl.load(x_ptr + rows * stride_row + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _gaussian_kl_kernel(
    mean_ptr, logvar_ptr, prior_mean_ptr, prior_logvar_ptr, coefficient_ptr, loss_ptr, grad_ptr, num_rows, depth,
    stride_mean_row, stride_logvar_row, stride_prior_mean_row, stride_prior_logvar_row, beta,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < num_rows
    rows = offs_b[:, None]
    rest = 1.0 - beta
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    factor = tl.zeros([BLOCK_B, 1], tl.float32)
    if coefficient_ptr is not None:
        factor = tl.load(coefficient_ptr + offs_b, mask=mask_b, other=0.0)[:, None]
    table = tl.cast(num_rows, tl.int64) * depth
    for start in range(0, depth, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)[None, :]
        mask = mask_b[:, None] & (cols < depth)
        mean = _load(mean_ptr, rows, stride_mean_row, cols, mask)
        logvar = _load(logvar_ptr, rows, stride_logvar_row, cols, mask)
        less_one, divergence = _excess(logvar)
        acc += beta * (divergence + mean * mean)
        grad_mean = beta * mean
        grad_logvar = beta * less_one
        at = grad_ptr + rows * depth + cols
        if PRIOR:
            prior_logvar = _load(prior_logvar_ptr, rows, stride_prior_logvar_row, cols, mask)
            apart = mean - _load(prior_mean_ptr, rows, stride_prior_mean_row, cols, mask)
            less_one, divergence = _excess(logvar - prior_logvar)
            pull = apart * _exp(-prior_logvar)
            square = apart * pull
            acc += rest * (divergence + square)
            grad_mean += rest * pull
            grad_logvar += rest * less_one
            if coefficient_ptr is not None:
                tl.store(at + 2 * table, -factor * rest * pull, mask=mask)
                tl.store(at + 3 * table, -0.5 * factor * rest * (less_one + square), mask=mask)
        if coefficient_ptr is not None:
            tl.store(at, factor * grad_mean, mask=mask)
            tl.store(at + table, 0.5 * factor * grad_logvar, mask=mask)
    tl.store(loss_ptr + offs_b, 0.5 * tl.sum(acc, 1), mask=mask_b)


def _tile(depth: int) -> dict[str, int]:
    block_d = min(triton.next_power_of_2(depth), _MAX_COLS)
    return dict(BLOCK_B=_ELEMENTS // block_d, BLOCK_D=block_d)


def gaussian_kl_cuda(*arguments, coefficient: Tensor | None = None):
    """Losses [B] and, with a coefficient [B], the gradients of coefficient . losses: all float32."""
    *inputs, beta = arguments
    stored = [_native.storable(t) for t in inputs]
    prior = len(stored) > 2
    num_rows, depth = stored[0].shape
    loss = stored[0].new_empty(num_rows, dtype=torch.float32)
    grads = stored[0].new_empty((len(stored), num_rows, depth), dtype=torch.float32) if coefficient is not None else []
    sizes = _tile(depth)
    if num_rows:
        every = stored if prior else stored * 2  # a pointer must be of something
        with on_device(loss):
            _gaussian_kl_kernel[(triton.cdiv(num_rows, sizes["BLOCK_B"]),)](
                *every, coefficient, loss, loss if coefficient is None else grads, num_rows, depth,
                *(t.stride(0) for t in every), beta, **sizes, PRIOR=prior, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return loss, list(grads)


def variants(chip: int) -> Iterator[Variant]:
    for name in FLOATS:
        for depth in (32, _MAX_COLS):
            types = pointers(name, "mean_ptr", "logvar_ptr", "prior_mean_ptr", "prior_logvar_ptr") | {"beta": "fp32"}
            yield Variant(_gaussian_kl_kernel, types, _tile(depth) | dict(PRIOR=True))
