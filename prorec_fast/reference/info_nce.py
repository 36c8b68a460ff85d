from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast.reference.distribution_kl import scores
from prorec_fast.reference.reduce import keep, leading, reduce


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    *,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    temperature: float = 0.2,
    normalize: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """-log softmax of each row's positive among the batch's, with the [B, B] matrix written out."""
    if rows is not None:
        anchor, positive = anchor[rows], positive[rows]
    kept = leading(count, anchor.size(0))
    s = scores(keep(kept, anchor), keep(kept, positive), temperature, normalize)
    losses = diagonal_nll(s, eps, kept)
    if symmetric:
        losses = (losses + diagonal_nll(s.T, eps, kept)) / 2
    return reduce(keep(kept, losses), reduction, count)


def diagonal_nll(s: Tensor, eps: float, kept: Tensor | None = None) -> Tensor:
    """-log softmax(s)_bb, or -log(softmax(s)_bb + eps), over the columns that are `kept`: [B]."""
    if kept is not None:
        s = s.masked_fill(~kept, -torch.inf)
    log_share = s.log_softmax(dim=1).diagonal()
    return -(log_share.exp() + eps).log() if eps else -log_share


def cross_view_info_nce(
    user_a: Tensor,
    item_a: Tensor,
    user_b: Tensor,
    item_b: Tensor,
    *,
    users: Tensor | None = None,
    items: Tensor | None = None,
    temperature: float = 0.2,
    reduction: str = "mean",
) -> Tensor:
    """(info_nce(user_a, item_b) + info_nce(user_b, item_a)) / 2 over the batch's rows (ProMax Eq. 14)."""
    if users is not None:
        user_a, user_b, item_a, item_b = user_a[users], user_b[users], item_a[items], item_b[items]
    losses = torch.stack(
        [
            info_nce(user_a, item_b, temperature=temperature, reduction="none"),
            info_nce(user_b, item_a, temperature=temperature, reduction="none"),
        ]
    )
    return reduce(losses.mean(0), reduction)
