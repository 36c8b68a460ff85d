from __future__ import annotations

from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, one_of, same_device_and_dtype, share
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference.gaussian_kl import gaussian_kl as reference


@operation("gaussian_kl", float32)
def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    *,
    beta: float,
    reduction: str,
) -> Tensor:
    float_matrix("mean", mean)
    if (prior_mean is None) != (prior_logvar is None):
        raise ValueError("prior_mean, prior_logvar: want both or neither")
    named = {"mean": mean, "logvar": logvar}
    if prior_mean is not None:
        named.update(prior_mean=prior_mean, prior_logvar=prior_logvar)
    for name, tensor in named.items():
        float_matrix(name, tensor, rows=mean.size(0), cols=mean.size(1))
    same_device_and_dtype(tuple(named), tuple(named.values()))
    share("beta", beta)
    one_of("reduction", reduction, REDUCTIONS)
    if not _native.runs_on_kernel("triton", *named.values()):
        return reference(*named.values(), beta=beta, reduction=reduction)
    op = GAUSSIAN_KL if prior_mean is None else PRIOR_GAUSSIAN_KL
    return op(*named.values(), float(beta), reduction=reduction)


def gaussian_kl_cpu(*arguments, coefficient: Tensor | None = None):
    """`arguments`: mean and logvar, or these and the prior's, [B, d] each; beta."""
    *inputs, beta = arguments
    stored = [_native.storable(t) for t in inputs]
    loss = _native.empty(inputs[0].size(0))
    grads = [] if coefficient is None else [_native.empty(*inputs[0].shape) for _ in inputs]
    _native.extension().gaussian_kl(
        [_native.matrix(t) for t in stored], beta, _native.address(coefficient), loss.data_ptr(),
        [_native.address(g) for g in grads], _native.threads(),
    )  # fmt: skip
    return loss, grads


_LAUNCH = by_device(gaussian_kl_cpu, "gaussian_kl")
GAUSSIAN_KL = RowLoss("gaussian_kl", _LAUNCH, 2, light=True)
PRIOR_GAUSSIAN_KL = RowLoss("prior_gaussian_kl", _LAUNCH, 4, light=True)
