from __future__ import annotations

import pytest
import torch
from bench_topk import STOCK, TEST_EDGES, TEST_USERS, interactions, rankers
from sizes import EAGER, NUM_ITEMS, NUM_USERS, OURS, assert_agree, distinct

import prorec_fast
from prorec_fast.reference.ranking_metrics import ranking_metrics as reference
from prorec_fast.reference.topk import row_entries

KS = (10, 20)


def truth() -> tuple[torch.Tensor, torch.Tensor]:
    """CSR rows of the test users' held-out items."""
    row, item = row_entries(*interactions(TEST_EDGES, 4).csr(), distinct(NUM_USERS, TEST_USERS))
    return prorec_fast.BipartiteGraph.from_edges(row, item, TEST_USERS, NUM_ITEMS).csr()


def measures(rows: tuple[torch.Tensor, torch.Tensor]):
    def ours(items: torch.Tensor) -> torch.Tensor:
        metrics = prorec_fast.ranking_metrics(items, rows, KS, num_items=NUM_ITEMS)
        return torch.stack(list(metrics.values())).view(len(KS), -1)

    return {EAGER: lambda items: reference(items, rows, NUM_ITEMS, KS).float(), OURS: ours}


def providers(compiled: bool = False):
    """The metrics of given lists. The reference selects rows by content, so torch.compile has nothing to fuse."""
    items = rankers(32, max(KS), compiled=False)[OURS]()[1]
    return {name: lambda measure=measure: [measure(items)] for name, measure in measures(truth()).items()}


def evaluation_providers(compiled: bool = True):
    """A whole evaluation: ranking and metrics."""
    rank, measure = rankers(32, max(KS), compiled), measures(truth())
    pairs = {name: (rank[name], measure[OURS if name == OURS else EAGER]) for name in rank}
    return {name: lambda pair=pair: [pair[1](pair[0]()[1])] for name, pair in pairs.items()}


@pytest.mark.parametrize("provider", [EAGER, OURS])
def test_ranking_metrics(benchmark, provider):
    found = providers()
    assert_agree(found)
    benchmark(found[provider])


@pytest.mark.parametrize("provider", [STOCK, OURS])
def test_evaluation(benchmark, provider):
    found = evaluation_providers(compiled=False)
    assert_agree(found, tolerance=1e-3)  # where two scores differ by a rounding, either may come first
    benchmark(found[provider])
