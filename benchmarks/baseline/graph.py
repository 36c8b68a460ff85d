"""Habit: the users' and items' tables are one, multiplied in every layer by one sparse COO adjacency that is never
coalesced, and its layers are kept in a list to be summed."""

from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast import BipartiteGraph


def coo_adjacency(graph: BipartiteGraph, dtype: torch.dtype = torch.float32) -> Tensor:
    """D^-1/2 A D^-1/2 of users and items together."""
    users, items = graph.edges()
    values = (graph.user_degree[users] * graph.item_degree[items]).double().rsqrt().to(dtype)
    rows, columns = torch.cat([users, items + graph.num_users]), torch.cat([items + graph.num_users, users])
    size = (graph.num_users + graph.num_items,) * 2
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, torch.cat([values, values]), size, check_invariants=False)


def propagated(adjacency: Tensor, user: Tensor, item: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """Layers 1 to `num_layers` summed."""
    table, layers = torch.cat([user, item]), []
    for _ in range(num_layers):
        table = torch.sparse.mm(adjacency, table)
        layers.append(table)
    user, item = torch.split(sum(layers), [len(user), len(item)])
    return user, item
