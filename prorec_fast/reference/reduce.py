from __future__ import annotations

import torch
from torch import Tensor


def reduce(rows: Tensor, reduction: str, count: Tensor | None = None) -> Tensor:
    """Rows of losses by "mean" (of `count` rows where given; of no rows it is 0), "sum" or "none"."""
    if reduction == "none":
        return rows
    total = rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))  # float16 ends at 65504
    if reduction == "mean":
        total = total / (max(rows.numel(), 1) if count is None else count.clamp_min(1))
    return total.to(rows.dtype)


def leading(count: Tensor | None, size: int) -> Tensor | None:
    """bool [size]: which rows are the first `count`; None for all."""
    return None if count is None else torch.arange(size, device=count.device) < count


def keep(kept: Tensor | None, rows: Tensor) -> Tensor:
    """`rows` ([B] or [B, d]) with 0 in those that are not `kept`, whatever stood there."""
    if kept is None:
        return rows
    return rows.where(kept if rows.dim() == 1 else kept[:, None], 0)
