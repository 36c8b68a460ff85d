from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast.reference.reduce import keep, leading, reduce


def distribution_kl(
    user: Tensor,
    item: Tensor,
    teacher_user: Tensor | None = None,
    teacher_item: Tensor | None = None,
    *,
    users: Tensor | None = None,
    count: Tensor | None = None,
    temperature: float = 0.2,
    teacher_temperature: float = 0.2,
    divergence: str = "cross_entropy",
    weighting: str | Tensor = "entropy",
    weight_range: tuple[float, float] = (0.1, 1.0),
    eps: float = 0.0,
    normalize: bool = True,
    teacher=None,
    reduction: str = "mean",
) -> Tensor:
    """w_u D(p_u, q_u) with every [B, N] matrix written out."""
    if teacher is not None:
        teacher_user, teacher_item, teacher_temperature = teacher.user, teacher.item, teacher.temperature
    if users is not None:
        user, teacher_user = user[users], teacher_user[users]
    kept = leading(count, user.size(0))
    user, teacher_user = keep(kept, user), keep(kept, teacher_user)
    log_q = scores(user, item, temperature, normalize).log_softmax(dim=1)
    log_p = scores(teacher_user.to(user.dtype), teacher_item.to(user.dtype), teacher_temperature, normalize)
    log_p = log_p.log_softmax(dim=1).detach()
    rows = divergence_rows(log_q, log_p, divergence, eps)
    if isinstance(weighting, Tensor):
        rows = keep(kept, weighting) * rows
    elif weighting == "entropy":
        rows = entropy_weight(entropy(log_p), log_p.size(1), weight_range) * rows
    return reduce(keep(kept, rows), reduction, count)


def scores(x: Tensor, y: Tensor, temperature: float, normalize: bool) -> Tensor:
    """cos(x_b, y_j) / temperature, or <x_b, y_j> / temperature: [B, N]."""
    if normalize:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    return x @ y.T / temperature


def divergence_rows(log_q: Tensor, log_p: Tensor, divergence: str, eps: float) -> Tensor:
    """D(p_u, q_u): [B]. eps is added to every probability of which a logarithm is taken, the teacher's entropy
    in "kl" excepted."""
    p, q = log_p.exp(), log_q.exp()

    def log(x: Tensor, log_x: Tensor) -> Tensor:
        return (x + eps).log() if eps else log_x

    log_q_eps, log_p_eps = log(q, log_q), log(p, log_p)
    if divergence == "cross_entropy":
        return -(p * log_q_eps).sum(1)
    if divergence == "kl":
        return -(p * log_q_eps).sum(1) - entropy(log_p)
    if divergence == "reverse_kl":
        return (q * (log_q_eps - log_p_eps)).sum(1)
    log_m = log((p + q) / 2, torch.logaddexp(log_p, log_q) - math.log(2))
    return (p * (log_p_eps - log_m) + q * (log_q_eps - log_m)).sum(1) / 2


def entropy(log_p: Tensor) -> Tensor:
    """H(p_u) in nats: [B]."""
    return -(log_p.exp() * log_p).sum(1)


def entropy_weight(entropy: Tensor, num_items: int, weight_range: tuple[float, float]) -> Tensor:
    """w_u = clamp(1 - H(p_u) / log N, lo, hi) (ProMax Eq. 13); 1 - H / log N is 1 for a single item."""
    return (1 - entropy / max(math.log(num_items), 1e-12)).clamp(*weight_range)
