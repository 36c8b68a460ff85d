"""Losses as pure functions of tensors: differentiable, on any device, ready to drop into existing PyTorch code.

On the CPU, float32, bfloat16 and float16 run compiled kernels that accumulate in float32; float64 and other devices run
the plain PyTorch definition in `prorec_fast.reference`.
"""

from __future__ import annotations

from torch import Tensor

from prorec_fast import library  # noqa: F401  (registers the operators that torch.compile traces)
from prorec_fast.ops import bpr as _bpr

__all__ = ["bpr"]


def bpr(user: Tensor, positive: Tensor, negative: Tensor, *, reduction: str = "mean") -> Tensor:
    """Bayesian personalised ranking: softplus(<user, negative> - <user, positive>) per row (Rendle et al., 2009).

    Args:
        user, positive, negative: [B, d], one floating dtype and device.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or device; the message names it.
    """
    return _bpr.bpr(user, positive, negative, reduction=reduction)
