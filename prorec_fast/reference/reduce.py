from __future__ import annotations

import torch
from torch import Tensor


def reduce(rows: Tensor, reduction: str) -> Tensor:
    """Rows of losses by "mean", "sum" or "none"; the mean of no rows is 0."""
    if reduction == "none":
        return rows
    total = rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))  # float16 ends at 65504
    return (total / max(rows.numel(), 1) if reduction == "mean" else total).to(rows.dtype)
