"""How many new interactions a user may get, and which items are offered for them, best first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast._checks import describe, positive_int
from prorec_fast.graph import BipartiteGraph
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.topk import row_entries

from .similar import candidate_items, similar_users
from .tables import finite_matrix

_USERS = 1 << 12  # ranked at a time


@dataclass(frozen=True, eq=False)
class RankedCandidates:
    """What the users with a budget may be given: one CSR row for each of these U users, best candidates first.

    Attributes:
        users: int64 [U], ascending.
        budget: int64 [U], at least 1: how many new interactions the user may get (ProMax Eq. 8-9).
        similar: int64 [U, K], the users whose items are the candidates, most similar first; -1 for nobody.
        indptr: int64 [U + 1], offsets into the rest.
        items: int64 [C], the candidates.
        cosine: float32 [C], between the mean profile of the user's own items and the candidate's.
        votes: int32 [C], how many of the similar users have the candidate.
    """

    users: Tensor
    budget: Tensor
    similar: Tensor
    indptr: Tensor
    items: Tensor
    cosine: Tensor
    votes: Tensor


def sparsity_level_budget(counts: Tensor) -> Tensor:
    """How many new interactions each user may get: the sparsity level shift (ProMax Eq. 8-9).

    With Q1, Q2, Q3 the quartiles of `counts` (linear interpolation), a user with c interactions gets floor(q - c + 1),
    q the smallest quartile above c: one more than it takes to reach the next level. From c = Q3 on there is none. This
    is the rule that the authors' published enriched matrices obey (Amazon-Book, quartiles 5, 7, 11: 3 -> 6, 5 -> 8,
    7 -> 12, 11 -> 11 interactions).

    Args:
        counts: [M] integers, interactions per user.

    Returns:
        [M] int64.

    Raises:
        TypeError: counts is not a 1-d integer tensor.
    """
    if not isinstance(counts, Tensor) or counts.dim() != 1 or counts.is_floating_point() or counts.dtype == torch.bool:
        raise TypeError(f"counts: want a 1-d integer tensor, got {describe(counts)}")
    if counts.numel() == 0:
        return counts.long()
    quartiles, level = sparsity_levels(counts)
    target = torch.cat([quartiles, quartiles.new_full((1,), -1.0)])[level]
    return (target - counts + 1).floor().clamp_min(0).long()


def sparsity_levels(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(quartiles float64 [3], level int64 [M]): those of `counts`, and how many of them each count reaches."""
    ordered = counts.double().sort().values
    at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=counts.device) * (counts.numel() - 1)
    below = ordered[at.floor().long()]
    quartiles = below + (ordered[at.ceil().long()] - below) * at.frac()
    return quartiles, torch.searchsorted(quartiles, counts.double(), right=True)


@torch.no_grad()
def rank_candidates(
    graph: BipartiteGraph,
    user_profiles: Tensor,
    item_profiles: Tensor,
    *,
    num_similar: int = 10,
    limit: int | None = None,
) -> RankedCandidates:
    """For every user that `sparsity_level_budget` allows new interactions: the items of the `num_similar` most similar
    users (ProMax Eq. 5-6), ordered by the cosine between the mean profile of the user's own items and the candidate's
    (Eq. 7); equal ones by how many similar users have them, then by index.

    Beyond its arguments and its result it holds a float32 copy of the larger table.

    Args:
        graph: the training interactions.
        user_profiles, item_profiles: [num_users, t] and [num_items, s], finite, on the graph's device.
        limit: the most candidates to keep of one user; all of them without it.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range; the message names it.
    """
    if not isinstance(graph, BipartiteGraph):
        raise TypeError(f"graph: want a BipartiteGraph, got {describe(graph)}")
    finite_matrix("user_profiles", user_profiles, rows=graph.num_users)
    finite_matrix("item_profiles", item_profiles, rows=graph.num_items)
    for name, profiles in (("user_profiles", user_profiles), ("item_profiles", item_profiles)):
        if profiles.device != graph.device:
            raise ValueError(f"{name}: want a tensor on {graph.device}, got {describe(profiles)}")
    positive_int("num_similar", num_similar)
    if limit is not None:
        positive_int("limit", limit)

    budget = sparsity_level_budget(graph.user_degree)
    users = budget.nonzero().flatten()
    similar = similar_users(user_profiles, num_similar, users=users)
    of_all = similar.new_full((graph.num_users, num_similar), -1)
    of_all[users] = similar
    found = candidate_items(graph, of_all)
    indptr = torch.cat([found.indptr[users], found.indptr[-1:]])  # rows of users without a budget are empty

    item_profiles = item_profiles.float()
    unit_items = F.normalize(item_profiles)
    sizes, orders, cosines = [], [], []
    for first in range(0, users.numel(), _USERS):
        own = _own_mean(graph, item_profiles, users[first : first + _USERS])
        begin, end = int(indptr[first]), int(indptr[first + own.size(0)])
        bounds = indptr[first : first + own.size(0) + 1] - begin
        cosine = pair_scores(own, unit_items, bounds, found.indices[begin:end])
        order = _best_first(bounds, cosine, found.counts[begin:end])
        size = bounds.diff()
        if limit is not None:
            order, size = order[place_in_row(bounds) < limit], size.clamp_max(limit)
        sizes.append(size)
        orders.append(order + begin)
        cosines.append(cosine[order])
    order = torch.cat([*orders, users[:0]])
    return RankedCandidates(
        users,
        budget[users],
        similar,
        torch.cat([users.new_zeros(1), *sizes]).cumsum(0),
        found.indices[order].long(),
        torch.cat([*cosines, unit_items.new_empty(0)]),
        found.counts[order],
    )


def _best_first(indptr: Tensor, cosine: Tensor, votes: Tensor) -> Tensor:
    """int64 [nnz]: the entries of CSR rows by descending cosine, then descending votes, within their rows."""
    sizes = indptr.diff()
    row = torch.arange(sizes.numel(), device=sizes.device).repeat_interleave(sizes)
    order = votes.sort(descending=True, stable=True).indices  # the most significant key comes last
    order = order[cosine[order].sort(descending=True, stable=True).indices]
    return order[row[order].sort(stable=True).indices]


def place_in_row(indptr: Tensor) -> Tensor:
    """int64 [nnz]: where in its CSR row each entry stands, from 0."""
    sizes = indptr.diff()
    return torch.arange(int(sizes.sum()), device=indptr.device) - indptr[:-1].repeat_interleave(sizes)


def _own_mean(graph: BipartiteGraph, item_profiles: Tensor, users: Tensor) -> Tensor:
    """[U, s] unit rows: the direction of the mean profile of each user's items; zeros without any."""
    _, items = row_entries(*graph.csr(), users)
    sizes = graph.user_degree[users]
    return F.normalize(F.embedding_bag(items, item_profiles, sizes.cumsum(0) - sizes, mode="mean"))
