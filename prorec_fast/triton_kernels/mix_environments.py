"""mix_environments on CUDA devices: a tile of every profile is read once, and all environments' mixtures leave."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from prorec_fast.triton_kernels.primitives import on_device, rounded
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers

_MAX_ENVIRONMENTS = 32  # that a program holds at a time
_ELEMENTS = 2048  # of the output that a program of four warps holds in registers


@triton.jit
def _mix_environments_kernel(
    profiles_ptr, weights_ptr, out_ptr, num_profiles, num_environments, size, cols, stride_profile, stride_row,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_n = offs_n < size
    mask_e = offs_e < num_environments
    at = offs_n
    if not DENSE:
        row = offs_n // cols
        at = row * stride_row + (offs_n - row * cols)
    acc = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    # Unrolled, so that several profiles' loads are under way at once.
    for k in tl.range(0, num_profiles, loop_unroll_factor=4):
        weight = tl.load(weights_ptr + offs_e * num_profiles + k, mask=mask_e, other=0.0)
        profile = tl.load(profiles_ptr + tl.cast(k, tl.int64) * stride_profile + at, mask=mask_n, other=0.0)
        acc += weight[:, None] * profile.to(tl.float32)[None, :]
    out_at = offs_e.to(tl.int64)[:, None] * size + offs_n[None, :]
    tl.store(out_ptr + out_at, rounded(acc, out_ptr.dtype.element_ty), mask=mask_e[:, None] & mask_n[None, :])


def _tile(num_environments: int) -> tuple[int, int]:
    """BLOCK_E and BLOCK_N."""
    block_e = min(triton.next_power_of_2(num_environments), _MAX_ENVIRONMENTS)
    return block_e, min(_ELEMENTS // block_e, 1024)


def mix_environments_cuda(profiles: Tensor, weights: Tensor, out: Tensor) -> None:
    """Fills `out` ([E, R, C] contiguous, in any shape) from profiles [K, R, C] with rows of unit stride and float32
    weights [E, K], contiguous."""
    num_profiles, rows, cols = profiles.shape
    block_e, block_n = _tile(weights.size(0))
    with on_device(profiles):
        _mix_environments_kernel[(triton.cdiv(rows * cols, block_n), triton.cdiv(weights.size(0), block_e))](
            profiles, weights, out, num_profiles, weights.size(0), rows * cols, cols, profiles.stride(0),
            profiles.stride(1), BLOCK_E=block_e, BLOCK_N=block_n, DENSE=rows == 1, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def variants(chip: int) -> Iterator[Variant]:
    for name in FLOATS:
        for environments, dense in ((4, True), (_MAX_ENVIRONMENTS, False)):
            block_e, block_n = _tile(environments)
            types = pointers(name, "profiles_ptr", "out_ptr")
            yield Variant(_mix_environments_kernel, types, dict(BLOCK_E=block_e, BLOCK_N=block_n, DENSE=dense))
