"""torch.library registrations, all in one place: what torch.compile traces in place of the eager autograd functions.

Each differentiable operator returns its result and the gradients that the same pass computes; its backward only scales
them. The eager path never comes here: dispatching through torch.library costs a hundred microseconds a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast.ops.bpr import bpr_cpu


def _reduced(rows: int, reduction: str, like: Tensor) -> Tensor:
    return like.new_empty((rows,) if reduction == "none" else ())


def _broadcast_rows(grad: Tensor, grad_out: Tensor) -> Tensor:
    """Scales gradient rows by grad_out: 0-d, or one a row."""
    return grad * (grad_out if grad_out.dim() == 0 else grad_out[:, None])


@torch.library.custom_op("prorec_fast::bpr", mutates_args=())
def bpr(user: Tensor, positive: Tensor, negative: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return bpr_cpu(user, positive, negative, reduction, (True, True, True))


@bpr.register_fake
def _(user: Tensor, positive: Tensor, negative: Tensor, reduction: str):
    grads = (user.new_empty(user.shape) for _ in range(3))
    return _reduced(user.size(0), reduction, user), *grads


def _bpr_setup(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _bpr_backward(ctx, grad_out, *_):
    if grad_out is None:
        return None, None, None, None
    return *(_broadcast_rows(grad, grad_out) for grad in ctx.saved_tensors), None


bpr.register_autograd(_bpr_backward, setup_context=_bpr_setup)
