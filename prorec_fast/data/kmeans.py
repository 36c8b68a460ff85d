"""k-means of many groups of points at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CHUNK_POINTS = 1 << 12  # 6 MB of 384-d points: every iteration reads them twice, so they should stay in a cache
_SAME = 1e-5  # cosines as near as this are equal but for rounding


class Clusters(NamedTuple):
    """What `kmeans` found in each of G groups.

    Attributes:
        centroids: float32 [G, num_clusters, t], unit rows, larger clusters first; an empty one, which is last, is zero.
        sizes: int64 [G, num_clusters], points of each cluster that are not zero.
        labels: int64 [P], each point's cluster in its group.
    """

    centroids: Tensor
    sizes: Tensor
    labels: Tensor


@torch.no_grad()
def kmeans(
    table: Tensor,
    indptr: Tensor,
    indices: Tensor,
    num_clusters: int,
    *,
    max_iterations: int = 50,
    chunk_points: int = CHUNK_POINTS,
) -> Clusters:
    """Spherical k-means (Dhillon & Modha, 2001) of every group: Lloyd's iteration on directions, by cosine.

    It starts at the point nearest to the group's mean, then takes the point farthest from all that were taken; so
    nothing is drawn. A group with fewer distinct points than clusters is left with empty ones.

    Args:
        table: [N, t] floating, rows of any length. A zero row has no direction: it belongs to some cluster and moves
            none.
        indptr: int64 [G + 1], the points of each group: indices[indptr[g]:indptr[g + 1]].
        indices: [P] integers, rows of `table`.
        num_clusters: of each group.
        chunk_points: groups are taken together until they have so many points, padding included: a larger group alone.
    """
    unit = normalize(table.float(), dim=1)
    sizes = indptr.diff()
    num_groups = sizes.numel()
    centroids = unit.new_zeros(num_groups, num_clusters, unit.shape[1])
    counts = sizes.new_zeros(num_groups, num_clusters)
    labels = indptr.new_zeros(indices.numel())
    # Padded to a power of two: what a group comes to does not depend on the groups beside it.
    widths = (2 ** sizes.clamp(min=1).double().log2().ceil()).long()
    for width in widths[sizes > 0].unique().tolist():
        offsets = torch.arange(width, device=indptr.device)
        for groups in ((widths == width) & (sizes > 0)).nonzero().flatten().split(max(1, chunk_points // width)):
            real = offsets < sizes[groups, None]  # [g, width]
            position = (indptr[groups, None] + offsets).where(real, indptr[groups, None])
            points = unit[indices[position].long()] * real.unsqueeze(-1)
            centroids[groups], counts[groups], label = _lloyd(points, num_clusters, max_iterations)
            labels[position[real]] = label[real]
    return Clusters(centroids, counts, labels)


def _lloyd(points: Tensor, num_clusters: int, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """(centroids [g, c, t], sizes [g, c], labels [g, n]) of points [g, n, t], unit rows and zeros."""
    present = points.any(-1)
    centroids = _farthest_first(points, present, num_clusters)
    means, counts = torch.zeros_like(centroids), centroids.new_zeros(centroids.shape[:2], dtype=torch.int64)
    labels = counts.new_full(present.shape, -1)
    groups = torch.arange(points.shape[0], device=points.device)  # those that still change: most are done soon
    for _ in range(max_iterations):
        nearest = (points @ centroids.mT).argmax(-1)
        moved = (nearest != labels[groups]).any(1)
        if not bool(moved.all()):
            groups, points, present, nearest = groups[moved], points[moved], present[moved], nearest[moved]
        if groups.numel() == 0:
            break
        member = one_hot(nearest, num_clusters) * present.unsqueeze(-1)  # [g, n, c]
        centroids, sizes = normalize(member.to(points.dtype).mT @ points, dim=-1), member.sum(1)
        labels[groups], means[groups], counts[groups] = nearest, centroids, sizes
    order = counts.argsort(dim=1, descending=True, stable=True)
    means = means.gather(1, order.unsqueeze(-1).expand_as(means))
    return means, counts.gather(1, order), order.argsort(dim=1).gather(1, labels)


def _farthest_first(points: Tensor, present: Tensor, num_clusters: int) -> Tensor:
    """[g, c, t]: the point nearest to the mean, then always the one least similar to all before."""
    rows = torch.arange(points.shape[0], device=points.device)
    similarity = -(points @ normalize(points.sum(1), dim=-1).unsqueeze(-1)).squeeze(-1)
    chosen = []
    for taken in range(num_clusters):
        similarity = similarity.masked_fill(~present, torch.inf)
        least = similarity <= similarity.amin(1, keepdim=True) + _SAME  # two points are as near to their mean as each
        chosen.append(points[rows, least.int().argmax(1)])  # other: of such ties, the first
        to_this = (points @ chosen[-1].unsqueeze(-1)).squeeze(-1)
        similarity = torch.maximum(similarity, to_this) if taken else to_this
    return torch.stack(chosen, dim=1)
