"""Several profiles of a user or item for data sets that bring fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from prorec_fast._checks import positive_int

from .kmeans import CHUNK_POINTS, kmeans

if TYPE_CHECKING:
    from .dataset import Dataset


class Profiles(NamedTuple):
    """K profile tables of each side.

    Attributes:
        users, items: K float32 tables, [num_users, t] and [num_items, t]; tables of one position share one width.
        provenance: where they came from, in words.
    """

    users: list[Tensor]
    items: list[Tensor]
    provenance: str


def profiles_for(data: Dataset, num_profiles: int, *, seed: int = 0) -> Profiles:
    """See `Dataset.profiles_for`."""
    positive_int("num_profiles", num_profiles)
    pairs = data.profile_pairs
    if len(pairs) >= num_profiles:
        users, items = zip(*pairs[:num_profiles], strict=True)
        provenance = f"{_counted(num_profiles, 'profile')} of the data set: {data.provenance}"
        return Profiles(list(users), list(items), provenance)
    if pairs:
        provenance = f"1 profile of the data set ({data.provenance})"
    else:
        data = data.with_cooccurrence_profiles(seed=seed)
        provenance = data.provenance
    if num_profiles == 1:
        return Profiles([data.user_profiles], [data.item_profiles], provenance)
    num_facets = num_profiles - 1
    graph = data.train_graph
    users = facets(data.user_profiles, data.item_profiles, graph.user_indptr, graph.user_indices, num_facets)
    items = facets(data.item_profiles, data.user_profiles, graph.item_indptr, graph.item_indices, num_facets)
    made = (
        f"{_counted(num_facets, 'facet profile')} (k-means centroids of a user's training items' vectors and of an "
        "item's readers'), made without a language model"
    )
    return Profiles([data.user_profiles, *users], [data.item_profiles, *items], f"{provenance} and {made}")


def facets(
    own: Tensor, others: Tensor, indptr: Tensor, indices: Tensor, num_facets: int, *, chunk_points: int = CHUNK_POINTS
) -> list[Tensor]:
    """What the neighbours of each node are about: centroids of their vectors, as if each were a profile of the node.

    Args:
        own: float32 [G, t], the nodes' profile vectors.
        others: float32 [N, t], those of the other side.
        indptr, indices: CSR rows of the nodes' neighbours.
        num_facets: K' of them.

    Returns:
        K' tables [G, t], of larger clusters first, scaled to the mean length of `own`. A node with fewer clusters than
        facets has them again from the first on; one without neighbours has its own profile in their place.
    """
    centroids, sizes, _ = kmeans(others, indptr, indices, num_facets, chunk_points=chunk_points)
    found = (sizes > 0).sum(1, keepdim=True)  # [G, 1]
    turn = torch.arange(num_facets, device=own.device) % found.clamp(min=1)  # [G, K']
    lengths = torch.linalg.vector_norm(own, dim=1)
    length = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    repeated = length * centroids.gather(1, turn.unsqueeze(-1).expand_as(centroids))
    return list(torch.where(found.unsqueeze(-1) > 0, repeated, own.unsqueeze(1)).unbind(1))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"
