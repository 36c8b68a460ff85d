"""Retrieval before training, after ProMax (arXiv 2604.26231, 2.2-2.3): whitened profiles, users with similar profiles,
the items those users have, and a graph enriched with the best of them for the users with few interactions.

`similar_users` and `candidate_items` run compiled kernels on CPUs and CUDA devices. Nothing here is differentiable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast._checks import describe, float_matrix, positive_int
from prorec_fast.graph import BipartiteGraph
from prorec_fast.ops import candidate_items as _candidate_items
from prorec_fast.ops.candidate_items import CandidateItems
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.ranking import topk

__all__ = ["CandidateItems", "Whitening", "candidate_items", "enrich", "similar_users", "sparsity_level_budget"]

Rerank = Callable[[int, Tensor], Iterable[int]]

_ROWS = 1 << 16  # rows held in float64 at a time


class Whitening:
    """Principal components scaled to unit variance (ProMax Eq. 2-4).

        mean = sum_i x_i / n;  C = sum_i (x_i - mean)(x_i - mean)^T / (n - 1);  C v_k = lambda_k v_k
        transform(x) = (x - mean) [v_1 / sqrt(lambda_1), ..., v_dim / sqrt(lambda_dim)],  lambda descending

    All of it in float64. Every v_k is given the sign that makes its entry of largest magnitude positive, so that a fit
    does not depend on the eigensolver's choice.

    Attributes:
        dim: the number of components.
        mean [d], projection [d, dim], eigenvalues [dim]: float64, None before `fit`.
    """

    def __init__(self, dim: int) -> None:
        positive_int("dim", dim)
        self.dim = dim
        self.mean: Tensor | None = None
        self.projection: Tensor | None = None
        self.eigenvalues: Tensor | None = None

    def fit(self, x: Tensor) -> Whitening:
        """Learns mean and projection from x [n, d], n > 1; returns itself.

        Raises:
            TypeError, ValueError: x is not a finite floating matrix with 2 rows or more, or has fewer than `dim`
                components: an eigenvalue counts as zero at or below max(n, d) * 2.2e-16 times the largest.
        """
        _finite_matrix("x", x)
        rows, width = x.shape
        if rows < 2:
            raise ValueError(f"x: want at least 2 rows to take a covariance of, got {describe(x)}")
        mean = sum(part.double().sum(0) for part in x.split(_ROWS)) / rows
        covariance = x.new_zeros(width, width, dtype=torch.float64)
        for part in x.split(_ROWS):
            centred = part.double() - mean
            covariance += centred.T @ centred
        eigenvalues, vectors = torch.linalg.eigh(covariance / (rows - 1))
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
        # A constant column leaves the rounding of its mean in the covariance, which is no component either.
        rounding = max(rows, width) * torch.finfo(torch.float64).eps
        floor = rounding * torch.maximum(eigenvalues[0], rounding * mean.square().sum())
        rank = int((eigenvalues > floor).sum())
        if rank < self.dim:
            raise ValueError(f"dim: want at most {rank}, the rank of the {rows} centred rows of x, got {self.dim}")
        eigenvalues, vectors = eigenvalues[: self.dim], vectors[:, : self.dim]
        largest = vectors.abs().argmax(0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        self.mean, self.eigenvalues, self.projection = mean, eigenvalues.clone(), vectors / eigenvalues.sqrt()
        return self

    def transform(self, x: Tensor) -> Tensor:
        """x [n, d] -> [n, dim], float64 for a float64 x and float32 otherwise.

        Raises:
            RuntimeError: `fit` has not been called.
            TypeError, ValueError: x is not a floating matrix of the width fitted.
        """
        if self.mean is None or self.projection is None:
            raise RuntimeError("Whitening.transform: call fit first")
        float_matrix("x", x, cols=self.mean.numel())
        mean, projection = self.mean.to(x.device), self.projection.to(x.device)
        out = x.new_empty(x.size(0), self.dim, dtype=torch.promote_types(x.dtype, torch.float32))
        for part, to in zip(x.split(_ROWS), out.split(_ROWS), strict=True):
            to.copy_((part.double() - mean) @ projection)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """What `fit` learnt: mean, projection and eigenvalues."""
        if self.mean is None or self.projection is None or self.eigenvalues is None:
            raise RuntimeError("Whitening.state_dict: call fit first")
        return {"mean": self.mean, "projection": self.projection, "eigenvalues": self.eigenvalues}

    def load_state_dict(self, state: dict[str, Tensor]) -> Whitening:
        """Takes over what another `Whitening` of the same dim has learnt; returns itself.

        Raises:
            KeyError, ValueError: an entry is missing or of another width.
        """
        mean, projection, eigenvalues = (state[key].double() for key in ("mean", "projection", "eigenvalues"))
        if projection.shape != (mean.numel(), self.dim) or eigenvalues.shape != (self.dim,):
            raise ValueError(f"state: want a projection to {self.dim} dimensions, got {describe(projection)}")
        self.mean, self.projection, self.eigenvalues = mean, projection, eigenvalues
        return self


def similar_users(user_profiles: Tensor, k: int = 10) -> Tensor:
    """The k users with the most similar profiles by cosine, without the user (ProMax Eq. 5).

    Equal cosines come by ascending index. A profile that is all zeros has no direction: it has no similar users and is
    nobody's.

    Args:
        user_profiles: [M, t] finite floating; cosines are taken in float32.

    Returns:
        [M, k] int64, most similar first; -1 where no user is left.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range; the message names it.
    """
    _finite_matrix("user_profiles", user_profiles)
    positive_int("k", k)
    norms = torch.linalg.vector_norm(user_profiles, dim=1, keepdim=True, dtype=torch.float64)
    unit = (user_profiles / norms).float()  # 0 / 0 makes a zero row NaN, which topk never ranks
    self_only = torch.arange(unit.size(0) + 1, device=unit.device)
    return topk(unit, unit, k, exclude=(self_only, self_only[:-1].int()))[1]


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
    ordered = counts.double().sort().values
    at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=counts.device) * (counts.numel() - 1)
    below = ordered[at.floor().long()]
    quartiles = below + (ordered[at.ceil().long()] - below) * at.frac()
    level = torch.searchsorted(quartiles, counts.double(), right=True)  # how many quartiles are at most c
    target = torch.cat([quartiles, quartiles.new_full((1,), -1.0)])[level]
    return (target - counts + 1).floor().clamp_min(0).long()


def enrich(
    graph: BipartiteGraph,
    user_profiles: Tensor,
    item_profiles: Tensor,
    *,
    num_similar: int = 10,
    rerank: Rerank | None = None,
) -> BipartiteGraph:
    """The graph with new edges for users with few interactions (ProMax 2.2-2.3).

    Candidates are the items of the `num_similar` most similar users (Eq. 5-6), ordered by the cosine between the mean
    profile of the user's own items and the candidate's profile (Eq. 7); equal ones by how many similar users have
    them, then by index. The first of them, as many as `sparsity_level_budget` allows (Eq. 8-9), become edges, of weight
    1 in a weighted graph. A user with fewer candidates gets fewer edges.

    Args:
        graph: the training interactions.
        user_profiles, item_profiles: [num_users, t] and [num_items, s], finite, on the graph's device.
        rerank: called as rerank(user, candidates) for every user with a budget and candidates ([n] int64, best first);
            returns item ids, best first, to be used in place of that order (Eq. 10: a language model that re-ranks). It
            can only choose: ids that were not offered are dropped, with one warning that counts them.

    Returns:
        A new BipartiteGraph with the original edges and the new.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range; the message names it.
    """
    if not isinstance(graph, BipartiteGraph):
        raise TypeError(f"graph: want a BipartiteGraph, got {describe(graph)}")
    _finite_matrix("user_profiles", user_profiles, rows=graph.num_users)
    _finite_matrix("item_profiles", item_profiles, rows=graph.num_items)
    for name, profiles in (("user_profiles", user_profiles), ("item_profiles", item_profiles)):
        if profiles.device != graph.device:
            raise ValueError(f"{name}: want a tensor on {graph.device}, got {describe(profiles)}")
    budget = sparsity_level_budget(graph.user_degree)
    similar = similar_users(user_profiles, num_similar)
    similar[budget == 0] = -1  # those users want no candidates
    indptr, indices, count = candidate_items(graph, similar)
    own = _own_items_mean(graph, item_profiles.float())
    score = pair_scores(F.normalize(own), F.normalize(item_profiles.float()), indptr, indices)
    user = torch.arange(graph.num_users, device=graph.device).repeat_interleave(indptr.diff())
    order = count.sort(descending=True, stable=True).indices  # stable sorts, the most significant key last
    order = order[score[order].sort(descending=True, stable=True).indices]
    order = order[user[order].sort(stable=True).indices]
    user, item = user[order], indices[order].long()
    if rerank is not None:
        user, item = _reranked(user, item, rerank)
    chosen = _place_in_row(user) < budget[user]
    own_users, own_items = graph.edges()
    values = graph.user_values
    return BipartiteGraph.from_edges(
        torch.cat([own_users, user[chosen]]),
        torch.cat([own_items, item[chosen]]),
        graph.num_users,
        graph.num_items,
        weights=None if values is None else torch.cat([values, values.new_ones(int(chosen.sum()))]),
    )


def _finite_matrix(name: str, value: Tensor, *, rows: int | None = None) -> None:
    float_matrix(name, value, rows=rows)
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}: want finite entries, got NaN or infinity in {describe(value)}")


def _own_items_mean(graph: BipartiteGraph, item_profiles: Tensor) -> Tensor:
    """[num_users, s]: the mean profile of each user's items, zeros without any."""
    indptr, indices = graph.csr()
    return F.embedding_bag(indices.long(), item_profiles, indptr, mode="mean", include_last_offset=True)


def _place_in_row(rows: Tensor) -> Tensor:
    """For rows in ascending order: how many equal ones stand before each."""
    return torch.arange(rows.numel(), device=rows.device) - torch.searchsorted(rows, rows)


def _reranked(user: Tensor, item: Tensor, rerank: Rerank) -> tuple[Tensor, Tensor]:
    """The pairs in the order that `rerank` gives each user's items, without those it does not name."""
    users, sizes = torch.unique_consecutive(user, return_counts=True)
    chosen_users, chosen_items, unknown = [], [], 0
    for u, offered in zip(users.tolist(), item.split(sizes.tolist()), strict=True):
        left = set(offered.tolist())
        known = set(left)
        for answer in rerank(u, offered.clone()):
            if int(answer) in left:
                left.remove(int(answer))
                chosen_users.append(u)
                chosen_items.append(int(answer))
            elif int(answer) not in known:
                unknown += 1
    if unknown:
        warnings.warn(f"rerank: dropped {unknown} ids that were not among the candidates offered", stacklevel=3)
    return user.new_tensor(chosen_users), item.new_tensor(chosen_items)
