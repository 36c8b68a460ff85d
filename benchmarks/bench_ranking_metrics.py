from __future__ import annotations

import torch
from bench_topk import STOCK, rankers
from sizes import AMAZON_BOOK, EAGER, OURS, Setting

import prorec_fast
from prorec_fast.reference.ranking_metrics import ranking_metrics as reference
from prorec_fast.reference.topk import row_entries

KS = (10, 20)


def truth(at: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """CSR rows of the test users' held-out items."""
    users = at.distinct(at.num_users, at.test_users)
    row, item = row_entries(*at.interactions(at.test_edges, 4).csr(), users)
    return prorec_fast.BipartiteGraph.from_edges(row, item, at.test_users, at.num_items).csr()


def measures(at: Setting):
    rows = truth(at)

    def ours(items: torch.Tensor) -> torch.Tensor:
        metrics = prorec_fast.ranking_metrics(items, rows, KS, num_items=at.num_items)
        return torch.stack(list(metrics.values())).view(len(KS), -1)

    return {EAGER: lambda items: reference(items, rows, at.num_items, KS).float(), OURS: ours}


def providers(at: Setting = AMAZON_BOOK):
    """The metrics of given lists. The reference selects rows by content, so torch.compile has nothing to fuse."""
    items = rankers(at, max(KS))[OURS]()[1]
    return {name: lambda measure=measure: [measure(items)] for name, measure in measures(at).items()}


def evaluation_providers(at: Setting = AMAZON_BOOK):
    """A whole evaluation: ranking and metrics."""
    rank, measure = rankers(at, max(KS)), measures(at)
    pairs = {STOCK: (rank[STOCK], measure[EAGER]), OURS: (rank[OURS], measure[OURS])}
    return {name: lambda pair=pair: [pair[1](pair[0]()[1])] for name, pair in pairs.items()}
