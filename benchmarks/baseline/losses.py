"""Habits: every softmax over items or over a batch is a dense matrix of logits, cosines are those of normalized copies,
and the teacher's distribution is worked out again in every step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus


def bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return softplus((user * negative).sum(1) - (user * positive).sum(1)).mean()


def squares(parameters: Iterable[Tensor]) -> Tensor:
    return sum(parameter.norm(2).square() for parameter in parameters)


def info_nce(anchor: Tensor, positive: Tensor, temperature: float, eps: float = 0.0) -> Tensor:
    anchor, positive = normalize(anchor), normalize(positive)
    own = torch.exp((anchor * positive).sum(1) / temperature)
    every = torch.exp(anchor @ positive.T / temperature).sum(1)
    return -torch.log(own / every + eps).mean()


def distribution(user: Tensor, item: Tensor, temperature: float) -> Tensor:
    """[B, num_items]: softmax of cosines."""
    return torch.softmax(normalize(user) @ normalize(item).T / temperature, dim=1)


def reshaping(student: Tensor, teacher: Tensor, weight_range: tuple[float, float], eps: float) -> Tensor:
    """Cross entropy of two distributions [B, num_items], weighted by the teacher's certainty (ProMax Eq. 12-13)."""
    entropy = -(teacher * torch.log(teacher)).sum(1)
    weight = (1 - entropy / math.log(teacher.shape[1])).clamp(*weight_range)
    return (weight * -(teacher * torch.log(student + eps)).sum(1)).mean()
