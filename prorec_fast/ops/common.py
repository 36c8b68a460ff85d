"""What the operations share: reductions over rows of losses."""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def row_weight(reduction: str, rows: int) -> float:
    """The weight of one row's loss in the reduced loss."""
    return 1.0 / max(rows, 1) if reduction == "mean" else 1.0


def reduce_rows(rows: Tensor, reduction: str, dtype) -> Tensor:
    """float32 rows of losses, reduced in float64 and returned in `dtype`; the mean of no rows is 0."""
    if reduction == "none":
        return rows.to(dtype)
    return (rows.double().sum() * row_weight(reduction, rows.numel())).to(dtype)


def scaled(grad: Tensor | None, grad_out: Tensor) -> Tensor | None:
    """A gradient that the forward pass computed for grad_out = 1, times the real grad_out (0-d)."""
    return None if grad is None else grad * grad_out
