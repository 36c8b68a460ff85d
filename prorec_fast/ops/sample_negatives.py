from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import index_vector
from prorec_fast.ops.operation import operation
from prorec_fast.reference.philox import seed_tensor
from prorec_fast.reference.sample_negatives import edge_weights, item_weights, raise_if_full
from prorec_fast.reference.sample_negatives import sample_negatives as sample_negatives_reference

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


@operation("sample_negatives")
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
    if not _native.device_has_kernel("cuda", users):
        return sample_negatives_reference(graph, users, num, seed=seed, popularity=popularity)
    run = torch.ops.prorec_fast.sample_negatives if torch.compiler.is_compiling() else sample_negatives_kernel
    return run(*graph.csr(), graph.num_items, users, num, seed, *_weights(graph, float(popularity)))


class _Weights(NamedTuple):
    """What sample_negatives has to know of a graph for a popularity."""

    cumulative: Tensor | None  # [num_items] running sums of the items' integer weights; None: every weight is 1
    place: Tensor | None  # [num_edges] weight of the items before the edge's that are not its user's; with `cumulative`
    may_fail: bool  # whether there may be users without an item left to draw


def _weights(graph: BipartiteGraph, popularity: float) -> _Weights:
    """Made once for a graph, because it takes a look at the device's memory; under torch.compile, which sees no values,
    made anew unless it is there."""
    found = graph.negative_weights.get(popularity)
    if found is None:
        found = _Weights(None, None, True)
        if popularity:
            weights = item_weights(graph, popularity)
            found = _Weights(weights.cumsum(0), edge_weights(graph, weights)[1], True)
        if torch.compiler.is_compiling():
            return found
        if _native.on_cuda(graph.user_indptr):
            everyone = torch.arange(graph.num_users, device=graph.device)
            seed = torch.zeros((), dtype=torch.int64, device=graph.device)
            found = found._replace(may_fail=False)
            drawn = sample_negatives_kernel(*graph.csr(), graph.num_items, everyone, 1, seed, *found)
            found = found._replace(may_fail=bool((drawn < 0).any()))
        graph.negative_weights[popularity] = found
    return found


def sample_negatives_kernel(
    indptr: Tensor,
    indices: Tensor,
    num_items: int,
    users: Tensor,
    num: int,
    seed: Tensor,
    cumulative: Tensor | None,
    place: Tensor | None,
    may_fail: bool = True,
) -> Tensor:
    """int64 [B, num]. On CUDA, looking for users without an item left to draw waits for the device; it is done where
    `may_fail` says so, and such users' draws are -1 where it does not."""
    users = _native.index("users", users, indptr.numel() - 1)
    negatives = users.new_empty(users.numel(), num)
    arguments = (
        _native.csr(indptr, indices, None, num_items),
        users.data_ptr(),
        users.numel(),
        num,
        _native.address(cumulative),
        _native.address(place),
    )
    if _native.on_cuda(users):
        _native.cuda_call(users, "sample_negatives", *arguments, seed.data_ptr(), negatives.data_ptr())
    else:
        failed = _native.zeros(dtype=torch.int64)
        _native.extension().sample_negatives(
            *arguments, int(seed), negatives.data_ptr(), failed.data_ptr(), _native.threads()
        )
        may_fail = bool(failed)
    if may_fail:
        raise_if_full(users[negatives[:, 0] < 0], 0.0 if cumulative is None else 1.0)
    return negatives
