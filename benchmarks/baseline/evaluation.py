"""Habits: all scores of a batch of users are dense, so is the mask that takes their training items out, and recall and
NDCG are summed user by user in Python.

One habit is left out, in the baseline's favour: the representations are made once for an evaluation, though released
code often makes them again for every batch of users.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import DataLoader

from prorec_fast.data import Dataset

from .batches import Rows, users_with_edges

CUTOFFS = (10, 20)
BATCH_OF_USERS = 1024
OUT_OF_THE_RANKING = 1e8


class Evaluation:
    """Mean recall and NDCG over the users with items in a split."""

    def __init__(self, data: Dataset, split: str, device: torch.device) -> None:
        truth = getattr(data, f"{split}_graph")
        users = users_with_edges(truth)
        self.loader = DataLoader(Rows(data.train_graph, users), batch_size=BATCH_OF_USERS)
        indptr, items = truth.user_indptr.tolist(), truth.user_indices.tolist()
        self.truth = {user: items[indptr[user] : indptr[user + 1]] for user in users.tolist()}
        self.device = device

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        scores_of = model.ranking()
        totals = {f"{name}@{k}": 0.0 for k in CUTOFFS for name in ("recall", "ndcg")}
        for batch in self.loader:
            users, seen = (column.to(self.device) for column in batch)
            scores = scores_of(users, seen) * (1 - seen) - OUT_OF_THE_RANKING * seen
            ranked = scores.topk(max(CUTOFFS)).indices.cpu().tolist()
            for user, items in zip(users.tolist(), ranked, strict=True):
                for name, value in user_metrics(items, self.truth[user]).items():
                    totals[name] += value
        return {name: total / len(self.truth) for name, total in totals.items()}


def user_metrics(ranked: list[int], truth: list[int]) -> dict[str, float]:
    hits = [item in truth for item in ranked]
    found = {}
    for k in CUTOFFS:
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits[:k]) if hit)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(truth))))
        found[f"recall@{k}"] = sum(hits[:k]) / len(truth)
        found[f"ndcg@{k}"] = gain / best
    return found
