from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast.reference.reduce import reduce


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    beta: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """beta KL(q || N(0, 1)) + (1 - beta) KL(q || prior) per row, with q = N(mean, e^logvar) (ProEx Eq. 11)."""
    rows = beta * _divergence(mean, logvar)
    if prior_mean is not None:
        rows = rows + (1 - beta) * _divergence(mean - prior_mean, logvar - prior_logvar, prior_logvar)
    return reduce(rows, reduction)


def _divergence(apart: Tensor, log_ratio: Tensor, prior_logvar: Tensor | None = None) -> Tensor:
    square = apart.square() if prior_logvar is None else apart.square() * (-prior_logvar).exp()
    return 0.5 * (square + (torch.expm1(log_ratio) - log_ratio)).sum(-1)
