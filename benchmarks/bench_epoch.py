"""An epoch's shuffled (user, positive, negative) batches at Amazon-Book's size, without the training itself."""

from __future__ import annotations

import numpy as np
import torch
from bench_sample_negatives import rejection
from sizes import AMAZON_BOOK, OURS, Setting

from prorec_fast import BipartiteGraph, sample_negatives

FIELD = "Python loop + DataLoader"
NUMPY = "NumPy + slices"


class Triplets(torch.utils.data.Dataset):
    """As the field writes it: negatives drawn edge by edge against a set, triplets served one by one."""

    def __init__(self, graph: BipartiteGraph) -> None:
        self.users, self.items = (index.cpu().numpy() for index in graph.edges())
        self.num_items = graph.num_items
        self.seen = set(zip(self.users.tolist(), self.items.tolist(), strict=True))
        self.negatives = np.zeros_like(self.users)

    def sample(self) -> None:
        for edge, user in enumerate(self.users):
            while True:
                item = np.random.randint(self.num_items)
                if (user, item) not in self.seen:
                    break
            self.negatives[edge] = item

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, edge: int):
        return self.users[edge], self.items[edge], self.negatives[edge]


def providers(at: Setting = AMAZON_BOOK):
    """{name: all batches of an epoch, on the device}."""
    graph = at.graph()
    triplets = Triplets(graph)
    loader = torch.utils.data.DataLoader(triplets, batch_size=at.batch, shuffle=True)
    users, items = graph.edges()

    def field():
        triplets.sample()
        return [[column.to(at.device) for column in batch] for batch in loader]

    def shuffled(negatives):
        def run():
            order = torch.randperm(users.numel(), device=users.device)
            epoch = users[order], items[order]
            return list(zip(*(t.split(at.batch) for t in (*epoch, negatives(epoch[0]).reshape(-1))), strict=True))

        return run

    return {
        FIELD: field,
        NUMPY: shuffled(lambda shuffled_users: rejection(graph, shuffled_users)),
        OURS: shuffled(lambda shuffled_users: sample_negatives(graph, shuffled_users)),
    }


def check(at: Setting, batches) -> None:
    """Every edge once, and no edge among the negatives."""
    graph = at.graph()
    users, items = graph.edges()
    edges = users * graph.num_items + items
    user, positive, negative = (torch.cat(column) for column in zip(*batches, strict=True))
    assert torch.equal((user * graph.num_items + positive).sort().values, edges.sort().values)
    assert not torch.isin(user * graph.num_items + negative, edges).any()
