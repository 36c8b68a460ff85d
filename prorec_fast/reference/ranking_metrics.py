from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "precision", "mrr", "hit_rate", "map", "coverage")


def ranking_metrics(
    items: Tensor, truth: tuple[Tensor, Tensor], num_items: int, ks: Sequence[int] = (10, 20)
) -> Tensor:
    """[len(ks), len(METRICS)] in float64: means over the rows that have truth; coverage over all items."""
    indptr, indices = truth
    relevant = indptr.diff()  # [M]
    counted = relevant > 0
    items, relevant = items[counted], relevant[counted].double()
    rows = torch.arange(counted.numel(), device=items.device)
    truth_keys = rows.repeat_interleave(indptr.diff()) * num_items + indices
    keys = rows[counted, None] * num_items + items
    hits = (torch.isin(keys, truth_keys) & (items >= 0)).double()  # [counted, k]
    ranks = torch.arange(1, items.size(1) + 1, device=items.device, dtype=torch.float64)
    gains = 1 / (ranks + 1).log2()
    mean = hits.new_ones(()) / max(items.size(0), 1)
    out = []
    for k in ks:
        found, possible = hits[:, :k], relevant.clamp(max=k)
        total = found.sum(1)
        shown = items[:, :k].flatten()
        per_user = (
            total / relevant,
            (found * gains[:k]).sum(1) / gains.cumsum(0)[possible.long() - 1],
            total / k,
            (found / ranks[:k]).amax(1),
            (total > 0).double(),
            (found * found.cumsum(1) / ranks[:k]).sum(1) / possible,
        )
        coverage = hits.new_tensor(shown[shown >= 0].unique().numel() / max(num_items, 1))
        out.append(torch.stack([*(x.sum() * mean for x in per_user), coverage]))
    return torch.stack(out)
