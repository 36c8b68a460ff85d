from __future__ import annotations

import pytest
import torch
from sizes import COMPILED, NUM_ITEMS, NUM_USERS, OURS, assert_agree, distinct, table

import prorec_fast
from prorec_fast.reference.topk import row_entries

TEST_USERS, TRAIN_EDGES, TEST_EDGES = 9860, 120_464, 40_106
STOCK = "mm + mask + torch.topk"


def interactions(edges: int, seed: int) -> prorec_fast.BipartiteGraph:
    """Edges with the long tails of real ones: the square of a uniform number picks the node."""
    generator = torch.Generator().manual_seed(seed)
    users, items = (
        (torch.rand(edges, generator=generator).square() * rows).long() for rows in (NUM_USERS, NUM_ITEMS)
    )
    return prorec_fast.BipartiteGraph.from_edges(users, items, NUM_USERS, NUM_ITEMS)


def rankers(dim: int, k: int, compiled: bool):
    """{name: function that ranks all test users over all items without those of training}."""
    user, item = table(NUM_USERS, dim, 1).detach(), table(NUM_ITEMS, dim, 2).detach()
    users, train = distinct(NUM_USERS, TEST_USERS), interactions(TRAIN_EDGES, 3)
    masked = row_entries(*train.csr(), users)  # the stock form's index is made outside of its time

    def stock():
        scores = user[users] @ item.T
        scores[masked] = float("-inf")
        return scores.topk(k)

    found = {STOCK: stock, OURS: lambda: prorec_fast.topk(user, item, k, exclude=train, users=users)}
    if compiled:
        found[COMPILED] = torch.compile(stock)
    return found


def providers(dim: int = 32, k: int = 20, compiled: bool = True):
    """Scores only: where two scores differ by a rounding, either may come first."""
    return {name: lambda rank=rank: [rank()[0]] for name, rank in rankers(dim, k, compiled).items()}


@pytest.mark.parametrize("dim, k", [(32, 20), (32, 100), (64, 20), (384, 20)])
@pytest.mark.parametrize("provider", [STOCK, COMPILED, OURS])
def test_topk(benchmark, provider, dim, k):
    found = providers(dim, k, compiled=provider == COMPILED)
    assert_agree(found)
    benchmark(found[provider])
