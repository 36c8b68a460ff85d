from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_propagate import graph
from sizes import COMPILED, EAGER, OURS

from prorec_fast import sample_negatives
from prorec_fast.reference.sample_negatives import sample_negatives as reference

POPULAR = "ours, popularity 0.75"
NUMPY = "NumPy, rejection"


def rejection(users: torch.Tensor) -> torch.Tensor:
    """What a vectorised NumPy sampler does: draw, look up in the sorted edges, draw again where it hit."""
    rows, items = (t.numpy() for t in graph().edges())
    keys, users = rows * graph().num_items + items, users.numpy()
    generator = np.random.default_rng()
    negatives, todo = np.empty_like(users), np.arange(users.size)
    while todo.size:
        drawn = generator.integers(graph().num_items, size=todo.size)
        key = users[todo] * graph().num_items + drawn
        taken = keys[np.searchsorted(keys, key).clip(max=keys.size - 1)] == key
        negatives[todo[~taken]] = drawn[~taken]
        todo = todo[taken]
    return torch.from_numpy(negatives)[:, None]


def epoch() -> torch.Tensor:
    """The user of every training edge, shuffled."""
    users = graph().edges()[0]
    return users[torch.randperm(users.numel(), generator=torch.Generator().manual_seed(0))]


def providers(compiled: bool = True):
    """An epoch's negatives, one for each edge."""
    users = epoch()
    found = {
        EAGER: lambda: reference(graph(), users),
        OURS: lambda: sample_negatives(graph(), users),
        POPULAR: lambda: sample_negatives(graph(), users, popularity=0.75),
        NUMPY: lambda: rejection(users),
    }
    if compiled:
        found[COMPILED] = torch.compile(found[EAGER], dynamic=False)
    return found


@pytest.mark.parametrize("provider", [EAGER, COMPILED, NUMPY, OURS, POPULAR])
def test_sample_negatives(benchmark, provider):
    run = providers(compiled=provider == COMPILED)[provider]
    users, negatives = epoch(), run()
    rows, items = graph().edges()
    assert negatives.shape == (users.numel(), 1)
    edges, drawn = rows * graph().num_items + items, users[:, None] * graph().num_items + negatives
    assert not torch.isin(drawn, edges).any()
    benchmark(run)
