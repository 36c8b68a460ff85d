"""A graph with the best candidates added, and where each of them came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prorec_fast.graph import BipartiteGraph

from .candidates import RankedCandidates, place_in_row, rank_candidates

Rerank = Callable[[int, Tensor], Iterable[int]]


@dataclass(frozen=True, eq=False)
class Enrichment:
    """A graph with new edges, and for each of these n edges where it came from: users ascending, and one user's new
    items in the order they were chosen in.

    Attributes:
        graph: the original edges and the new ones.
        user, item: int64 [n].
        rank: int64 [n], the item's place among the user's candidates, from 1.
        cosine: float32 [n], between the mean profile of the user's own items and the item's (ProMax Eq. 7).
        votes: int32 [n], how many of the similar users have the item (Eq. 6).
        nearest: int64 [n], the most similar of those.
        reranked: bool [n], whether the item was chosen by an answer (Eq. 10) and not by its rank.
    """

    graph: BipartiteGraph
    user: Tensor
    item: Tensor
    rank: Tensor
    cosine: Tensor
    votes: Tensor
    nearest: Tensor
    reranked: Tensor


def choose(
    graph: BipartiteGraph, candidates: RankedCandidates, answers: Mapping[int, Iterable[int]] | None = None
) -> Enrichment:
    """Adds the first candidates of every user, as many as the budget allows; a user with fewer gets fewer.

    Args:
        graph: what `candidates` were ranked for. New edges have weight 1 in a weighted graph.
        answers: for some users, item ids, best first, to choose by in place of the candidates' order (ProMax Eq. 10: a
            language model that re-ranks). They can only choose: ids that are no candidates of the user are dropped,
            with one warning that counts them, and an answer with too few leaves the user with fewer.

    Raises:
        ValueError: an answer for a user without candidates.
    """
    sizes = candidates.indptr.diff()
    row = torch.arange(sizes.numel(), device=sizes.device).repeat_interleave(sizes)
    place = place_in_row(candidates.indptr)
    by_rank = place < candidates.budget[row]
    answered, picked = _picked(candidates, answers or {})
    by_rank &= ~torch.isin(row, answered)
    entry = torch.cat([by_rank.nonzero().flatten(), picked])
    entry = entry[row[entry].sort(stable=True).indices]

    user, item = candidates.users[row[entry]], candidates.items[entry]
    own_users, own_items = graph.edges()
    values = graph.user_values
    enriched = BipartiteGraph.from_edges(
        torch.cat([own_users, user]),
        torch.cat([own_items, item]),
        graph.num_users,
        graph.num_items,
        weights=None if values is None else torch.cat([values, values.new_ones(entry.numel())]),
    )
    return Enrichment(
        enriched,
        user,
        item,
        place[entry] + 1,
        candidates.cosine[entry],
        candidates.votes[entry],
        _nearest(graph, candidates.similar[row[entry]], item),
        torch.isin(row[entry], answered),
    )


def enrich(
    graph: BipartiteGraph,
    user_profiles: Tensor,
    item_profiles: Tensor,
    *,
    num_similar: int = 10,
    rerank: Rerank | None = None,
) -> BipartiteGraph:
    """The graph with new edges for users with few interactions (ProMax 2.2-2.3): `rank_candidates`, then `choose`.

    Args:
        graph: the training interactions.
        user_profiles, item_profiles: [num_users, t] and [num_items, s], finite, on the graph's device.
        rerank: called as rerank(user, candidates) for every user with a budget and candidates ([n] int64, best first);
            returns item ids, best first, to be used in place of that order (see `choose`).

    Returns:
        A new BipartiteGraph with the original edges and the new.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range; the message names it.
    """
    candidates = rank_candidates(graph, user_profiles, item_profiles, num_similar=num_similar)
    answers = None
    if rerank is not None:
        rows = zip(candidates.users.tolist(), candidates.items.split(candidates.indptr.diff().tolist()), strict=True)
        answers = {user: rerank(user, items.clone()) for user, items in rows if items.numel()}
    return choose(graph, candidates, answers).graph


def _picked(candidates: RankedCandidates, answers: Mapping[int, Iterable[int]]) -> tuple[Tensor, Tensor]:
    """(rows with an answer, the entries that the answers name within the budget, row by row)."""
    row_of = {user: row for row, user in enumerate(candidates.users.tolist())} if answers else {}
    bounds, budget = candidates.indptr.tolist(), candidates.budget.tolist()
    rows, entries, unknown = [], [], 0
    for user, answer in answers.items():
        row = row_of.get(int(user))
        if row is None or bounds[row] == bounds[row + 1]:
            raise ValueError(f"answers: user {user} has no candidates to choose from")
        offered = {item: at for at, item in enumerate(candidates.items[bounds[row] : bounds[row + 1]].tolist())}
        named = list(dict.fromkeys(int(item) for item in answer))
        known = [bounds[row] + offered[item] for item in named if item in offered]
        unknown += len(named) - len(known)
        rows.append(row)
        entries += known[: budget[row]]
    if unknown:
        warnings.warn(f"rerank: dropped {unknown} ids that were not among the candidates offered", stacklevel=3)
    return candidates.users.new_tensor(rows), candidates.users.new_tensor(entries)


def _nearest(graph: BipartiteGraph, similar: Tensor, item: Tensor) -> Tensor:
    """int64 [n]: the first of similar [n, K] that has the item [n]."""
    users, items = graph.edges()
    edges = users * graph.num_items + items  # ascending
    has = torch.zeros_like(similar, dtype=torch.bool)
    for column, users_there in zip(has.unbind(1), similar.unbind(1), strict=True):
        wanted = users_there * graph.num_items + item  # below 0 for nobody
        at = torch.searchsorted(edges, wanted).clamp_max(edges.numel() - 1)
        column.copy_(edges[at] == wanted)
    return similar.gather(1, has.int().argmax(1, keepdim=True)).flatten()
