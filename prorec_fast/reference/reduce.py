from __future__ import annotations

from torch import Tensor


def reduce(rows: Tensor, reduction: str) -> Tensor:
    """Rows of losses by "mean", "sum" or "none"; the mean of no rows is 0."""
    if reduction == "none":
        return rows
    total = rows.sum()
    return total / max(rows.numel(), 1) if reduction == "mean" else total
