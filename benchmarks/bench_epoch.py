"""An epoch's shuffled (user, positive, negative) batches at Amazon-Book's size, without the training itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_propagate import graph
from bench_sample_negatives import rejection
from sizes import BATCH, OURS

from prorec_fast import sample_negatives

FIELD = "Python loop + DataLoader"
NUMPY = "NumPy + slices"


class Triplets(torch.utils.data.Dataset):
    """As the field writes it: negatives drawn edge by edge against a set, triplets served one by one."""

    def __init__(self) -> None:
        self.users, self.items = (index.numpy() for index in graph().edges())
        self.seen = set(zip(self.users.tolist(), self.items.tolist(), strict=True))
        self.negatives = np.zeros_like(self.users)

    def sample(self) -> None:
        for edge, user in enumerate(self.users):
            while True:
                item = np.random.randint(graph().num_items)
                if (user, item) not in self.seen:
                    break
            self.negatives[edge] = item

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, edge: int):
        return self.users[edge], self.items[edge], self.negatives[edge]


def providers():
    """{name: all batches of an epoch}."""
    triplets = Triplets()
    loader = torch.utils.data.DataLoader(triplets, batch_size=BATCH, shuffle=True)
    users, items = graph().edges()

    def field():
        triplets.sample()
        return list(loader)

    def shuffled(negatives):
        def run():
            order = torch.randperm(users.numel())
            epoch = users[order], items[order]
            return list(zip(*(t.split(BATCH) for t in (*epoch, negatives(epoch[0]).reshape(-1))), strict=True))

        return run

    return {
        FIELD: field,
        NUMPY: shuffled(rejection),
        OURS: shuffled(lambda shuffled_users: sample_negatives(graph(), shuffled_users)),
    }


@pytest.mark.parametrize("provider", [FIELD, NUMPY, OURS])
def test_epoch(benchmark, provider):
    run = providers()[provider]
    users, items = graph().edges()
    edges = users * graph().num_items + items
    user, positive, negative = (torch.cat(column) for column in zip(*run(), strict=True))
    assert torch.equal((user * graph().num_items + positive).sort().values, edges.sort().values)
    assert not torch.isin(user * graph().num_items + negative, edges).any()
    benchmark(run)
