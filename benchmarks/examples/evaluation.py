"""A full-ranking evaluation in existing code, before and after.

python benchmarks/examples/evaluation.py
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from side_by_side import Provider, Setting, compare, interactions
from torch import Tensor

from prorec_fast import BipartiteGraph, ranking_metrics, topk

KS = (10, 20)


class Before:
    """Recall and NDCG of every user's best items, those of training left out."""

    def __init__(self, train: sp.csr_matrix, test: sp.csr_matrix) -> None:
        # these lines:
        self.train = train
        self.truth = {u: set(row.indices.tolist()) for u, row in enumerate(test) if row.nnz}
        self.gains = 1 / np.log2(np.arange(2, max(KS) + 2))
        # up to here

    def __call__(self, user: Tensor, item: Tensor) -> dict[str, float]:
        # these lines:
        tested, sums = list(self.truth), dict.fromkeys([f"{name}@{k}" for name in ("recall", "ndcg") for k in KS], 0.0)
        for start in range(0, len(tested), 1024):
            users = tested[start : start + 1024]
            scores = user[users] @ item.T
            scores[torch.from_numpy(self.train[users].toarray()) > 0] = -torch.inf
            ranked = torch.topk(scores, max(KS)).indices.tolist()
            for u, items in zip(users, ranked, strict=True):
                truth = self.truth[u]
                hits = np.array([i in truth for i in items])
                for k in KS:
                    sums[f"recall@{k}"] += hits[:k].sum() / len(truth)
                    sums[f"ndcg@{k}"] += (hits * self.gains)[:k].sum() / self.gains[: min(k, len(truth))].sum()
        metrics = {name: total / len(tested) for name, total in sums.items()}
        # up to here
        return metrics


class After:
    """The same metrics, and precision, MRR, hit rate, MAP and coverage."""

    def __init__(self, train: sp.csr_matrix, test: sp.csr_matrix) -> None:
        # become:
        self.train, self.test = BipartiteGraph.from_scipy(train), BipartiteGraph.from_scipy(test)
        # up to here

    def __call__(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        # become:
        _, items = topk(user, item, max(KS), exclude=self.train)
        metrics = ranking_metrics(items, self.test, KS)
        # up to here
        return metrics


def build(at: Setting) -> tuple[Provider, Provider]:
    generator = torch.Generator().manual_seed(1)
    users = at.distinct(at.num_users, at.test_users)
    users = torch.cat([users, users[torch.randint(len(users), (at.test_edges - len(users),), generator=generator)]])
    items = torch.randint(at.num_items, (at.test_edges,), generator=generator)
    test = BipartiteGraph.from_edges(users, items, at.num_users, at.num_items)
    user, item = at.table(at.num_users, 1).detach(), at.table(at.num_items, 2).detach()
    user.index_add_(0, users, item[items])  # so that some of what is ranked first is right
    splits = interactions(at.graph()), interactions(test)

    def run(evaluation) -> Provider:
        def values() -> list[Tensor]:
            metrics = evaluation(user, item)
            return [torch.tensor([metrics[f"{name}@{k}"] for name in ("recall", "ndcg") for k in KS])]

        return values

    return run(Before(*splits)), run(After(*splits))


if __name__ == "__main__":
    # Where two scores differ by a rounding, either may come first.
    compare("A full-ranking evaluation", build, tolerance=1e-3)
