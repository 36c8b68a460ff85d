from __future__ import annotations

import pytest
import torch.nn.functional as F
from bench_topk import STOCK
from sizes import AMAZON_BOOK, EAGER, OURS, Setting, assert_agree

from prorec_fast import retrieval
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.candidate_items import candidate_items as candidate_items_reference
from prorec_fast.reference.pair_scores import pair_scores as pair_scores_reference

SIMILAR = 10


def similar_users_providers(at: Setting = AMAZON_BOOK, dim: int = 384):
    """By the cosines of the lists: where two cosines differ by a rounding, either may come first."""
    profiles = at.table(at.num_users, 1, dim).detach()
    unit = F.normalize(profiles)

    def stock():
        unit = F.normalize(profiles)
        return (unit @ unit.T).fill_diagonal_(float("-inf")).topk(SIMILAR).indices

    found = {STOCK: stock, OURS: lambda: retrieval.similar_users(profiles, SIMILAR)}
    return {name: lambda run=run: [(unit[run()] @ unit[:, :, None])[:, :, 0]] for name, run in found.items()}


def candidate_items_providers(at: Setting = AMAZON_BOOK):
    """Exact. The sizes depend on the contents, so torch.compile has nothing to fuse."""
    graph = at.graph()
    similar = retrieval.similar_users(at.table(at.num_users, 1).detach(), SIMILAR)
    return {
        EAGER: lambda: list(candidate_items_reference(*graph.csr(), at.num_items, similar)),
        OURS: lambda: list(retrieval.candidate_items(graph, similar)),
    }


def pair_scores_providers(at: Setting = AMAZON_BOOK, dim: int = 384):
    """The cosines of every user's candidates."""
    user, item = at.table(at.num_users, 1, dim).detach(), at.table(at.num_items, 2, dim).detach()
    rows = candidate_items_providers(at)[OURS]()[:2]
    return {
        EAGER: lambda: [pair_scores_reference(user, item, *rows)],
        OURS: lambda: [pair_scores(user, item, *rows)],
    }


@pytest.mark.parametrize("provider", [STOCK, OURS])
def test_similar_users(benchmark, provider):
    found = similar_users_providers()
    assert_agree(found)
    benchmark(found[provider])


@pytest.mark.parametrize("op", [candidate_items_providers, pair_scores_providers])
@pytest.mark.parametrize("provider", [EAGER, OURS])
def test_candidates(benchmark, provider, op):
    found = op()
    assert_agree(found)
    benchmark(found[provider])
