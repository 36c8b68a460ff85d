"""bpr on CUDA devices: a tile of rows is read once, and its losses and all three gradients leave in the same pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast import _native
from prorec_fast.triton_kernels.primitives import on_device, softplus
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers

_ELEMENTS = 2048  # of each input that a program of four warps holds in registers: two or four 16-byte loads a thread


@triton.jit(do_not_specialize=["num_rows"])
def _bpr_kernel(
    user_ptr, positive_ptr, negative_ptr, coefficient_ptr, loss_ptr, grad_user_ptr, grad_positive_ptr,
    grad_negative_ptr, num_rows, depth, stride_user_row, stride_positive_row, stride_negative_row,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    rows = offs_b[:, None]
    mask_b = offs_b < num_rows
    mask = mask_b[:, None] & (offs_d < depth)
    user = tl.load(user_ptr + rows * stride_user_row + offs_d, mask=mask, other=0.0).to(tl.float32)
    positive = tl.load(positive_ptr + rows * stride_positive_row + offs_d, mask=mask, other=0.0).to(tl.float32)
    negative = tl.load(negative_ptr + rows * stride_negative_row + offs_d, mask=mask, other=0.0).to(tl.float32)
    apart = negative - positive
    x = tl.sum(user * apart, 1)
    e = tl.exp(-tl.abs(x))
    tl.store(loss_ptr + offs_b, softplus(x, e), mask=mask_b)
    if coefficient_ptr is not None:
        sigmoid = tl.where(x > 0.0, 1.0, e) / (1.0 + e)
        g = (tl.load(coefficient_ptr + offs_b, mask=mask_b, other=0.0) * sigmoid)[:, None]
        at = rows * depth + offs_d
        tl.store(grad_user_ptr + at, g * apart, mask=mask)
        tl.store(grad_positive_ptr + at, -g * user, mask=mask)
        tl.store(grad_negative_ptr + at, g * user, mask=mask)


def _tile(depth: int) -> tuple[int, int, int]:
    """BLOCK_B, BLOCK_D and the number of warps: a row is held whole, so that nothing is read twice."""
    block_d = triton.next_power_of_2(depth)
    return max(1, _ELEMENTS // block_d), block_d, min(max(4, 4 * block_d // _ELEMENTS), 32)


def bpr_cuda(user: Tensor, positive: Tensor, negative: Tensor, *, coefficient: Tensor | None = None):
    """Losses [B] and, with a coefficient [B], the gradients of coefficient . losses: all float32."""
    inputs = [_native.storable(t) for t in (user, positive, negative)]
    num_rows, depth = user.shape
    loss = user.new_empty(num_rows, dtype=torch.float32)
    grads = [] if coefficient is None else list(user.new_empty((3, num_rows, depth), dtype=torch.float32))
    block_b, block_d, num_warps = _tile(depth)
    if num_rows:
        with on_device(user):
            _bpr_kernel[(triton.cdiv(num_rows, block_b),)](
                *inputs, coefficient, loss, *(grads or (None,) * 3), num_rows, depth, *(t.stride(0) for t in inputs),
                BLOCK_B=block_b, BLOCK_D=block_d, num_warps=num_warps, enable_fp_fusion=True,
            )  # fmt: skip
    return loss, grads


def variants(chip: int) -> Iterator[Variant]:
    for name in FLOATS:
        for depth in (32, 1536):
            block_b, block_d, num_warps = _tile(depth)
            types = pointers(name, "user_ptr", "positive_ptr", "negative_ptr")
            yield Variant(_bpr_kernel, types, dict(BLOCK_B=block_b, BLOCK_D=block_d), num_warps)
