"""Several profiles of a user or item for data sets that bring fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .kmeans import CHUNK_POINTS, kmeans

if TYPE_CHECKING:
    from .dataset import Dataset


class Profiles(NamedTuple):
    """K profile tables of each side.

    Attributes:
        users, items: K float32 tables, [num_users, t] and [num_items, t], all of one width.
        provenance: where they came from, in words.
    """

    users: list[Tensor]
    items: list[Tensor]
    provenance: str


def profiles_for(data: Dataset, num_profiles: int, *, seed: int = 0) -> Profiles:
    """See `Dataset.profiles_for`."""
    own = brings = data.profile_pairs
    if own:
        width = own[0][0].shape[1]
        own = [pair for pair in own if pair[0].shape[1] == width][:num_profiles]
        if len(own) < len(brings):
            brought = f"{len(own)} of {len(brings)} profiles of the data set, the first that are {width}-d"
        else:
            brought = f"{_counted(len(own), 'profile')} of the data set"
        enough = len(own) == num_profiles
        provenance = f"{brought}: {data.provenance}" if enough else f"{brought} ({data.provenance})"
    else:
        stand_in = data.with_cooccurrence_profiles(seed=seed)
        own, provenance = stand_in.profile_pairs, stand_in.provenance
    users, items = (list(tables) for tables in zip(*own, strict=True))
    num_facets = num_profiles - len(own)
    if num_facets:
        (user, item), graph = own[0], data.train_graph
        users += facets(user, item, graph.user_indptr, graph.user_indices, num_facets)
        items += facets(item, user, graph.item_indptr, graph.item_indices, num_facets)
        provenance += (
            f"; {_counted(num_facets, 'facet profile')} (k-means centroids of a user's training items' vectors and "
            "of an item's readers'), made without a language model"
        )
    return Profiles(users, items, provenance)


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
