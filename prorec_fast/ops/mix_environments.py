from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import describe, float_matrix, float_tensor
from prorec_fast.ops.operation import operation
from prorec_fast.reference.mix_environments import mix_environments as reference


@operation("mix_environments")
def mix_environments(profiles: Tensor, weights: Tensor) -> Tensor:
    float_tensor("profiles", profiles, shape="[K, ..., d]", dims=range(2, 65))
    float_matrix("weights", weights, cols=profiles.size(0))
    if weights.device != profiles.device:
        raise ValueError(f"weights: want a tensor on {profiles.device}, got {describe(weights)}")
    if torch.float64 in (profiles.dtype, weights.dtype) or not _native.runs_on_kernel("triton", profiles, weights):
        return reference(profiles, weights)
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.mix_environments(profiles, weights)
    return _MixEnvironmentsFunction.apply(profiles, weights)


def mix_environments_kernel(profiles: Tensor, weights: Tensor) -> Tensor:
    """[E, ..., d], contiguous, in the dtype of `profiles`."""
    out = profiles.new_empty(weights.size(0), *profiles.shape[1:])
    if not out.numel():
        return out
    stored = _native.storable(profiles.reshape(profiles.size(0), -1, profiles.size(-1)))  # [K, R, d]
    if stored[0].is_contiguous():
        stored = stored.flatten(1)[:, None]  # [K, 1, R d]
    weights = weights.detach().float().contiguous()
    if _native.on_cuda(profiles):
        from prorec_fast.triton_kernels.mix_environments import mix_environments_cuda

        mix_environments_cuda(stored, weights, out)
        return out
    filled = out if out.dtype == stored.dtype else out.to(stored.dtype)
    _native.extension().mix_environments(
        _native.tables(stored), _native.address(weights), weights.size(0), filled.data_ptr(), _native.threads()
    )
    return filled.to(out.dtype)


def mix_environments_backward(
    mix: Callable[[Tensor, Tensor], Tensor], profiles: Tensor | None, weights: Tensor, grad_out: Tensor, needs
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that are needed, the profiles' by `mix`; that of the weights alone looks at `profiles`."""
    grad_profiles = grad_weights = None
    if needs[0] and not len(weights):  # of no mixtures there is none
        grad_profiles = grad_out.new_zeros(weights.size(1), *grad_out.shape[1:])
    elif needs[0]:
        grad_profiles = mix(grad_out, weights.T)
    if needs[1]:
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_weights = (grad_out.flatten(1).float() @ profiles.flatten(1).float().T).to(weights.dtype)
    return grad_profiles, grad_weights


class _MixEnvironmentsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, profiles: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(profiles if ctx.needs_input_grad[1] else None, weights)
        return mix_environments_kernel(profiles, weights)

    @staticmethod
    def backward(ctx, grad_out):
        return mix_environments_backward(mix_environments, *ctx.saved_tensors, grad_out, ctx.needs_input_grad)
