"""Users with similar profiles, and what those users have."""

from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast._checks import positive_int
from prorec_fast.graph import BipartiteGraph
from prorec_fast.ops import candidate_items as _candidate_items
from prorec_fast.ops.candidate_items import CandidateItems
from prorec_fast.ops.operation import operation
from prorec_fast.ranking import topk

from .tables import finite_matrix, row_parts


@operation("similar_users")
@torch.no_grad()
def similar_users(user_profiles: Tensor, k: int = 10, *, users: Tensor | None = None) -> Tensor:
    """The k users with the most similar profiles by cosine, without the user (ProMax Eq. 5).

    Equal cosines come by ascending index. A profile that is all zeros has no direction: it has no similar users and is
    nobody's.

    Args:
        user_profiles: [M, t] finite floating; cosines are taken in float32.
        users: [B] int64, whose similar users are wanted, out of all M; everybody's without it.

    Returns:
        [B, k] int64, most similar first; -1 where no user is left.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape or range; the message names it.
    """
    finite_matrix("user_profiles", user_profiles)
    positive_int("k", k)
    unit = torch.empty_like(user_profiles, dtype=torch.float32)
    for part, to in zip(row_parts(user_profiles), row_parts(unit), strict=True):
        # 0 / 0 makes a zero row NaN, which topk never ranks
        to.copy_(part / torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=torch.float64))
    self_only = torch.arange(unit.size(0) + 1, device=unit.device)
    return topk(unit, unit, k, exclude=(self_only, self_only[:-1].int()), users=users)[1]


def candidate_items(graph: BipartiteGraph | Tensor | tuple[Tensor, Tensor], similar: Tensor) -> CandidateItems:
    """The items of each user's similar users, with the number of those users that have the item (ProMax Eq. 6); the
    user's own items are left out.

    Args:
        graph: the interactions of M users: a BipartiteGraph, a torch.sparse_csr tensor [M, N] (its values are not
            looked at) or (indptr, indices), indices ascending within a row.
        similar: [M, K] int64 users, -1 for nobody, as `similar_users` returns them. A user that stands in a row twice
            counts twice.

    Returns:
        CandidateItems(indptr [M + 1] int64, indices int32, counts int32): CSR rows, items ascending.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape or range; the message names it.
    """
    return _candidate_items.candidate_items(graph, similar)
