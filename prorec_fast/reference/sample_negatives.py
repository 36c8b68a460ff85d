from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prorec_fast.reference.philox import NEGATIVE_STREAM, philox, seed_key, seed_tensor

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


def sample_negatives(
    graph: BipartiteGraph, users: Tensor, num: int = 1, *, seed: int | Tensor | None = None, popularity: float = 0.0
) -> Tensor:
    """A point among the items' weights laid end to end, those of the user's own items left out: which item holds it?"""
    key = seed_key(seed_tensor(seed, users.device))
    weights = item_weights(graph, popularity)
    total = weights.cumsum(0)
    own, place = edge_weights(graph, weights)
    begin, end = graph.user_indptr[:-1], graph.user_indptr[1:]
    room = weights.sum() - (own[end] - own[begin])  # [num_users]
    raise_if_full(users[room[users] == 0], popularity)

    b, j = torch.arange(users.numel(), device=users.device)[:, None], torch.arange(num, device=users.device)
    words = philox(key, (b & 0xFFFFFFFF, b >> 32, j // 2, NEGATIVE_STREAM))
    high, low = torch.where(j % 2 == 0, words[0], words[2]), torch.where(j % 2 == 0, words[1], words[3])
    uniform = (high << 21 | low >> 11).double() * 2.0**-53
    target = (uniform * room[users][:, None]).long()

    # The user's items at or before the target, by bisection within the user's edges.
    low, high = (bound[users][:, None].expand_as(target) for bound in (begin, end))
    for _ in range(graph.num_edges.bit_length()):
        middle = (low + high) // 2
        after = (low < high) & (place[middle.clamp_max(graph.num_edges - 1)] <= target)
        low, high = torch.where(after, middle + 1, low), torch.where(after, high, middle)
    target = target + own[low] - own[begin][users][:, None]
    return torch.searchsorted(total, target, right=True)


def edge_weights(graph: BipartiteGraph, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(own, place) for `weights` of the items: int64 [num_edges + 1], that of the items of all edges before one; int64
    [num_edges], that of the items before the edge's that are not its user's, ascending within a user's row."""
    owners, items = graph.edges()
    own = torch.cat([weights.new_zeros(1), weights[items].cumsum(0)])  # may wrap around; a row's differences are right
    skipped = own[:-1] - own[graph.user_indptr[owners]]
    return own, weights.cumsum(0)[items] - weights[items] - skipped


def item_weights(graph: BipartiteGraph, popularity: float) -> Tensor:
    """int64 [num_items] proportional to degree^popularity, their sum below 2^52. Integers, because their sums are the
    same in any order; made on the CPU, because powers are not the same on every device."""
    if popularity == 0:
        return torch.ones(graph.num_items, dtype=torch.int64, device=graph.device)
    degree = graph.item_degree.cpu().double()
    largest = degree.max() if degree.numel() else degree.new_ones(())
    weights = (degree / largest.clamp_min(1)) ** popularity * (2**50 // max(graph.num_items, 1))
    return torch.where(degree > 0, weights.long() + 1, 0).to(graph.device)


def raise_if_full(users: Tensor, popularity: float) -> None:
    """ValueError naming `users`, who have no item left to draw; nothing when there are none."""
    if users.numel():
        full = users.unique().tolist()
        named = ", ".join(map(str, full[:10])) + (f" and {len(full) - 10} more" if len(full) > 10 else "")
        what = "every item" if popularity == 0 else "every item of positive weight"
        raise ValueError(f"users: no negative to draw, {what} is a positive of user {named}")
