from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class EnvironmentLoss(NamedTuple):
    """What `environment_bpr` returns.

    total: 0-d, the losses' sum plus their weighted variance.
    per_environment: [E], each environment's loss.
    variance: 0-d, of `per_environment`.
    """

    total: Tensor
    per_environment: Tensor
    variance: Tensor


def environment_bpr(
    user: Tensor,
    item: Tensor,
    user_profiles: Tensor,
    item_profiles: Tensor,
    triplets: Tensor | tuple[Tensor, Tensor, Tensor],
    weights: Tensor,
    *,
    variance_weight: float = 1.0,
    unbiased: bool = True,
    alignment: Tensor | None = None,
) -> EnvironmentLoss:
    """Every environment's mixed rows written out: [E, B, d]."""
    users, positives, negatives = triplets.unbind(1) if isinstance(triplets, Tensor) else triplets
    theta = weights.detach().to(user.dtype)

    def rows(table: Tensor, profiles: Tensor, index: Tensor) -> Tensor:
        return table[index] + torch.einsum("ek,kbd->ebd", theta, profiles[:, index])

    user_rows = rows(user, user_profiles, users)
    difference = rows(item, item_profiles, positives) - rows(item, item_profiles, negatives)
    losses = F.softplus(-(user_rows * difference).sum(2))  # [E, B]
    losses = losses.mean(1) if losses.size(1) else losses.sum(1)
    if alignment is not None:
        losses = losses + alignment.to(losses.dtype)
    squares = (losses - losses.mean()).square().sum()
    variance = squares / max(losses.numel() - 1 if unbiased else losses.numel(), 1)
    return EnvironmentLoss(losses.sum() + variance_weight * variance, losses, variance)
