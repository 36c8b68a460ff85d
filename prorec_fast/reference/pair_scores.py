from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 18  # gathered numbers held at a time: small enough to stay in cache


def pair_scores(user: Tensor, item: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """<user_r, item_j> for the entries (r, j) of CSR rows."""
    rows = torch.arange(user.size(0), device=user.device).repeat_interleave(indptr.diff())
    step = max(1, CHUNK // user.size(1))
    parts = [(user[r] * item[j]).sum(1) for r, j in zip(rows.split(step), indices.long().split(step), strict=True)]
    return torch.cat(parts)
