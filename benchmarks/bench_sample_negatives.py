from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled

from prorec_fast import BipartiteGraph, sample_negatives
from prorec_fast.reference.sample_negatives import sample_negatives as reference

POPULAR = "ours, popularity 0.75"
NUMPY = "NumPy, rejection"


def rejection(graph: BipartiteGraph) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a vectorised NumPy sampler does: draw, look up in the sorted edges, draw again where it hit."""
    rows, items = (t.cpu().numpy() for t in graph.edges())
    keys, generator = rows * graph.num_items + items, np.random.default_rng()

    def sample(users: torch.Tensor) -> torch.Tensor:
        user = users.cpu().numpy()
        negatives, todo = np.empty_like(user), np.arange(user.size)
        while todo.size:
            drawn = generator.integers(graph.num_items, size=todo.size)
            key = user[todo] * graph.num_items + drawn
            taken = keys[np.searchsorted(keys, key).clip(max=keys.size - 1)] == key
            negatives[todo[~taken]] = drawn[~taken]
            todo = todo[taken]
        return torch.from_numpy(negatives)[:, None].to(users.device)

    return sample


def epoch(at: Setting) -> torch.Tensor:
    """The user of every training edge, shuffled."""
    users = at.graph().edges()[0]
    return users[torch.randperm(users.numel(), generator=torch.Generator().manual_seed(0)).to(at.device)]


def providers(at: Setting = AMAZON_BOOK):
    """An epoch's negatives, one for each edge, of one seed."""
    graph, users = at.graph(), epoch(at)

    def eager():
        return [reference(graph, users, seed=0)]

    return {
        EAGER: eager,
        OURS: lambda: [sample_negatives(graph, users, seed=0)],
        COMPILED: compiled(eager),
    }


def other_providers(at: Setting = AMAZON_BOOK):
    """Samplers that each draw negatives of their own."""
    graph, users = at.graph(), epoch(at)
    drawn_again = rejection(graph)
    return {
        NUMPY: lambda: [drawn_again(users)],
        OURS: lambda: [sample_negatives(graph, users)],
        POPULAR: lambda: [sample_negatives(graph, users, popularity=0.75)],
    }


def check(at: Setting, results: list[torch.Tensor]) -> None:
    """One for each edge, and no edge."""
    (negatives,), (rows, items), users = results, at.graph().edges(), epoch(at)
    assert negatives.shape == (users.numel(), 1)
    assert ((negatives >= 0) & (negatives < at.num_items)).all()
    edges, drawn = rows * at.num_items + items, users[:, None] * at.num_items + negatives
    assert not torch.isin(drawn, edges).any()
