from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import index_vector
from prorec_fast.reference.philox import seed_tensor
from prorec_fast.reference.sample_negatives import item_weights, raise_if_full
from prorec_fast.reference.sample_negatives import sample_negatives as sample_negatives_reference

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


def sample_negatives(
    graph: BipartiteGraph, users: Tensor, num: int = 1, *, seed: int | None = None, popularity: float = 0.0
) -> Tensor:
    if not hasattr(graph, "adjacency"):
        raise TypeError(f"graph: want a BipartiteGraph, got {type(graph).__name__}")
    index_vector("users", users, size=graph.num_users, device=graph.device)
    if not isinstance(num, int) or isinstance(num, bool) or num < 1:
        raise ValueError(f"num: want an int of 1 or more, got {num!r}")
    if not 0 <= popularity < float("inf"):
        raise ValueError(f"popularity: want a finite number of 0 or more, got {popularity!r}")
    seed = seed_tensor(seed, users.device)
    if users.device.type != "cpu":
        return sample_negatives_reference(graph, users, num, seed=seed, popularity=popularity)
    cumulative = item_weights(graph, popularity).cumsum(0) if popularity else None
    run = torch.ops.prorec_fast.sample_negatives if torch.compiler.is_compiling() else sample_negatives_cpu
    return run(*graph.csr(), graph.num_items, users, num, seed, cumulative)


def sample_negatives_cpu(
    indptr: Tensor, indices: Tensor, num_items: int, users: Tensor, num: int, seed: Tensor, cumulative: Tensor | None
) -> Tensor:
    """int64 [B, num]. `cumulative` [num_items] are running sums of the items' integer weights; None is all ones."""
    negatives = _native.empty(users.numel(), num, dtype=torch.int64)
    failed = _native.zeros(dtype=torch.int64)
    users = _native.index("users", users, indptr.numel() - 1)
    _native.extension().sample_negatives(
        _native.csr(indptr, indices, None, num_items),
        users.data_ptr(),
        users.numel(),
        num,
        _native.address(cumulative),
        int(seed),
        negatives.data_ptr(),
        failed.data_ptr(),
        _native.threads(),
    )
    if failed:
        raise_if_full(users[negatives[:, 0] < 0], 0.0 if cumulative is None else 1.0)
    return negatives
