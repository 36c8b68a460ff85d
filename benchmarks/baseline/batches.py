"""Habits: an epoch's negatives are drawn edge by edge in Python against a set of the edges, and a DataLoader collates
triplets, or users with their dense rows, one by one."""

from __future__ import annotations

import numpy as np
import torch

from prorec_fast import BipartiteGraph


class Triplets(torch.utils.data.Dataset):
    """(user, positive, negative) of every edge; the negatives are those of the last `sample`."""

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


class Rows(torch.utils.data.Dataset):
    """(user, float32 [num_items]) of the given users: their rows of the graph's matrix, dense."""

    def __init__(self, graph: BipartiteGraph, users: np.ndarray) -> None:
        self.indptr, self.indices = graph.user_indptr.cpu().numpy(), graph.user_indices.cpu().numpy()
        self.num_items, self.users = graph.num_items, users

    def sample(self) -> None:
        """Nothing in them is drawn."""

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, place: int):
        user = self.users[place]
        row = np.zeros(self.num_items, dtype=np.float32)
        row[self.indices[self.indptr[user] : self.indptr[user + 1]]] = 1
        return user, row


def users_with_edges(graph: BipartiteGraph) -> np.ndarray:
    return graph.user_indptr.diff().nonzero().flatten().cpu().numpy()
