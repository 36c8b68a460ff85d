"""An epoch's negatives on Amazon-Book's interactions (or a synthetic graph of its size): one for each edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_propagate import graph

from prorec_fast import sample_negatives
from prorec_fast.reference.sample_negatives import sample_negatives as reference


def numpy_rejection(users: torch.Tensor) -> torch.Tensor:
    """What a vectorised NumPy sampler does: draw, look up in the sorted edge keys, draw again where it hit."""
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


PROVIDERS = {
    "prorec_fast": lambda users: sample_negatives(graph(), users),
    "prorec_fast, popularity 0.75": lambda users: sample_negatives(graph(), users, popularity=0.75),
    "NumPy rejection": numpy_rejection,
    "reference": lambda users: reference(graph(), users),
    "reference, compiled": torch.compile(lambda users: reference(graph(), users), dynamic=False),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_sample_negatives(benchmark, name):
    benchmark.group = "an epoch's negatives"
    users = graph().edges()[0]
    users = users[torch.randperm(users.numel(), generator=torch.Generator().manual_seed(0))]
    negatives = PROVIDERS[name](users)
    rows, items = graph().edges()
    edges = rows * graph().num_items + items
    assert negatives.shape == (users.numel(), 1)
    assert not torch.isin(users[:, None] * graph().num_items + negatives, edges).any()
    benchmark.pedantic(PROVIDERS[name], (users,), rounds=20, warmup_rounds=2)
