from __future__ import annotations

from dataclasses import replace

import torch
from bench_topk import STOCK, rankers
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable

import prorec_fast
from prorec_fast.reference.ranking_metrics import ranking_metrics as reference
from prorec_fast.reference.topk import row_entries

KS = (10, 20)


def lists(at: Setting) -> torch.Tensor:
    """What is ranked first of random tables, the same whether `at` is exact."""
    return rankers(replace(at, exact=False), max(KS))[OURS]()[1]


def truth(at: Setting, ranked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CSR rows of the test users' held-out items, two of them out of `ranked` [test users, k]: lists without hits would
    agree whatever is computed of them."""
    users = at.distinct(at.num_users, at.test_users)
    row, item = row_entries(*at.interactions(at.test_edges, 4).csr(), users)
    every = torch.arange(len(users), device=row.device)
    hits = [ranked[every, (step * every + step) % ranked.size(1)] for step in (3, 7)]
    rows, items = torch.cat([row, every, every]), torch.cat([item, *hits])
    return prorec_fast.BipartiteGraph.from_edges(rows, items, at.test_users, at.num_items).csr()


def measures(at: Setting, rows: tuple[torch.Tensor, torch.Tensor]):

    def ours(items: torch.Tensor) -> torch.Tensor:
        metrics = prorec_fast.ranking_metrics(items, rows, KS, num_items=at.num_items)
        return torch.stack(list(metrics.values())).view(len(KS), -1)

    return {EAGER: lambda items: reference(items, rows, at.num_items, KS).float(), OURS: ours}


def providers(at: Setting = AMAZON_BOOK):
    """The metrics of given lists."""
    items = lists(at)
    found = {name: lambda run=run: [run(items)] for name, run in measures(at, truth(at, items)).items()}
    return {**found, COMPILED: Unavailable("the reference selects rows by content: nothing to fuse")}


def evaluation_providers(at: Setting = AMAZON_BOOK):
    """A whole evaluation: ranking and metrics."""
    rank, measure = rankers(at, max(KS)), measures(at, truth(at, lists(at)))
    pairs = {STOCK: (rank[STOCK], measure[EAGER]), OURS: (rank[OURS], measure[OURS])}
    return {name: lambda pair=pair: [pair[1](pair[0]()[1])] for name, pair in pairs.items()}


def seen(at: Setting, results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each metric by itself: beside one of 1, one of 0.002 could be anything."""
    return list(results[0].flatten().unbind())
