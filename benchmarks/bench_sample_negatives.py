from __future__ import annotations

import numpy as np
import pytest
import torch
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled

from prorec_fast import BipartiteGraph, sample_negatives
from prorec_fast.reference.sample_negatives import sample_negatives as reference

POPULAR = "ours, popularity 0.75"
NUMPY = "NumPy, rejection"


def rejection(graph: BipartiteGraph, users: torch.Tensor) -> torch.Tensor:
    """What a vectorised NumPy sampler does: draw, look up in the sorted edges, draw again where it hit."""
    rows, items = (t.cpu().numpy() for t in graph.edges())
    keys, user = rows * graph.num_items + items, users.cpu().numpy()
    generator = np.random.default_rng()
    negatives, todo = np.empty_like(user), np.arange(user.size)
    while todo.size:
        drawn = generator.integers(graph.num_items, size=todo.size)
        key = user[todo] * graph.num_items + drawn
        taken = keys[np.searchsorted(keys, key).clip(max=keys.size - 1)] == key
        negatives[todo[~taken]] = drawn[~taken]
        todo = todo[taken]
    return torch.from_numpy(negatives)[:, None].to(users.device)


def epoch(at: Setting) -> torch.Tensor:
    """The user of every training edge, shuffled."""
    users = at.graph().edges()[0]
    return users[torch.randperm(users.numel(), generator=torch.Generator().manual_seed(0)).to(at.device)]


def providers(at: Setting = AMAZON_BOOK):
    """An epoch's negatives, one for each edge, of one seed."""
    graph, users = at.graph(), epoch(at)
    return {
        EAGER: lambda: [reference(graph, users, seed=0)],
        OURS: lambda: [sample_negatives(graph, users, seed=0)],
    }


def other_providers(at: Setting = AMAZON_BOOK):
    """Other negatives, or the same compiled."""
    graph, users = at.graph(), epoch(at)
    return {
        COMPILED: compiled(providers(at)[EAGER]),
        POPULAR: lambda: [sample_negatives(graph, users, popularity=0.75)],
        NUMPY: lambda: [rejection(graph, users)],
    }


@pytest.mark.parametrize("provider", [EAGER, COMPILED, NUMPY, OURS, POPULAR])
def test_sample_negatives(benchmark, provider):
    run = {**providers(), **other_providers()}[provider]
    graph, users, (negatives,) = AMAZON_BOOK.graph(), epoch(AMAZON_BOOK), run()
    rows, items = graph.edges()
    assert negatives.shape == (users.numel(), 1)
    edges, drawn = rows * graph.num_items + items, users[:, None] * graph.num_items + negatives
    assert not torch.isin(drawn, edges).any()
    benchmark(run)
