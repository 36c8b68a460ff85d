"""Full ranking: every item a user has not trained on is a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.frameworks import Objective
    from prorec_fast.graph import BipartiteGraph
    from prorec_fast.models import Recommender

CUTOFFS = (10, 20)


class Evaluator:
    """Metrics of a model, or of what a framework made of one, on one split, whose graph is kept on its device.

    Only the training items are left out of the candidates: on the test split a user's validation items still compete,
    as in the code released with ProEx and ProMax, whose published numbers rest on that.
    """

    def __init__(self, data: Dataset, split: str, device: torch.device) -> None:
        if split not in ("valid", "test"):
            raise ValueError(f"split: want valid or test, got {split!r}")
        if getattr(data, split).num_edges == 0:
            raise ValueError(f"{data.name}: the {split} split is empty")
        self.truth: BipartiteGraph = getattr(data, f"{split}_graph").to(device)

    @torch.no_grad()
    def __call__(self, ranker: Recommender | Objective) -> dict[str, float]:
        from prorec_fast.ranking import ranking_metrics, topk

        training = ranker.training
        ranker.eval()
        user, item = ranker.representation()
        ranker.train(training)
        _, items = topk(user, item, max(CUTOFFS), exclude=ranker.train_graph)
        metrics = ranking_metrics(items, self.truth, ks=CUTOFFS)
        values = torch.stack([value.double() for value in metrics.values()]).tolist()
        return dict(zip(metrics, values, strict=True))


def evaluate(ranker: Recommender | Objective, data: Dataset, split: str = "test") -> dict[str, float]:
    """Ranking metrics on the "valid" or "test" split at 10 and 20, training items excluded.

    Args:
        ranker: a model, or what a framework made of one (`Run.objective`).

    Returns:
        {"recall@10": ..., "ndcg@20": ..., ...}, means over users with at least one item in the split.

    Raises:
        ValueError: another split, or an empty one.
    """
    return Evaluator(data, split, ranker.train_graph.device)(ranker)
