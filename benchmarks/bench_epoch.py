"""An epoch's shuffled (user, positive, negative) batches at Amazon-Book's size, without the training itself."""

from __future__ import annotations

import torch
from baseline.batches import Triplets
from bench_sample_negatives import rejection
from sizes import AMAZON_BOOK, OURS, Setting

from prorec_fast import sample_negatives

FIELD = "Python loop + DataLoader"
NUMPY = "NumPy + slices"


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
        NUMPY: shuffled(rejection(graph)),
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
