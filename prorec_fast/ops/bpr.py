from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prorec_fast import _native
from prorec_fast._checks import float_matrix, one_of, same_device_and_dtype
from prorec_fast.ops.common import REDUCTIONS, reduce_rows, row_weight, scaled
from prorec_fast.reference.bpr import bpr as bpr_reference


def bpr(user: Tensor, positive: Tensor, negative: Tensor, *, reduction: str = "mean") -> Tensor:
    float_matrix("user", user)
    float_matrix("positive", positive, rows=user.size(0), cols=user.size(1))
    float_matrix("negative", negative, rows=user.size(0), cols=user.size(1))
    same_device_and_dtype(("user", "positive", "negative"), (user, positive, negative))
    one_of("reduction", reduction, REDUCTIONS)
    if not _native.runs_on_cpu_kernel(user, positive, negative):
        return bpr_reference(user, positive, negative, reduction=reduction)
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.bpr(user, positive, negative, reduction)[0]
    return _BprFunction.apply(user, positive, negative, reduction)


class _BprFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, user: Tensor, positive: Tensor, negative: Tensor, reduction: str) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        ctx.reduction = reduction
        if reduction == "none":
            ctx.save_for_backward(user, positive, negative)
            return bpr_cpu(user, positive, negative, reduction, (False,) * 3)[0]
        loss, *grads = bpr_cpu(user, positive, negative, reduction, needs)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.reduction == "none":
            grads = bpr_cpu(*ctx.saved_tensors, "none", ctx.needs_input_grad[:3], grad_out)[1:]
            return *grads, None
        return *(scaled(grad, grad_out) for grad in ctx.saved_tensors), None


def bpr_cpu(
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    reduction: str,
    needs: tuple[bool, bool, bool],
    grad_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss and, for each input that `needs` it, the gradient of the reduced loss (of grad_rows . loss)."""
    rows = user.size(0)
    loss = torch.empty(rows, dtype=torch.float32)
    grads = [torch.empty(rows, user.size(1)) if need else None for need in needs]
    inputs = [_native.storable(t) for t in (user, positive, negative)]
    if grad_rows is not None:
        grad_rows = grad_rows.float().contiguous()
    _native.extension().bpr(
        *map(_native.matrix, inputs),
        row_weight(reduction, rows),
        _native.address(grad_rows),
        loss.data_ptr(),
        *map(_native.address, grads),
        _native.threads(),
    )
    return reduce_rows(loss, reduction, user.dtype), *(None if g is None else g.to(user.dtype) for g in grads)
