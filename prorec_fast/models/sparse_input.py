"""A linear layer whose input is rows of a sparse matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding_bag

from prorec_fast import _native
from prorec_fast._checks import positive_int, probability

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


class SparseLinear(nn.Module):
    """x -> x W + b for rows x of a graph's matrix, of which only the entries that are there are read.

    No row is ever dense: `embedding_bag` sums the rows of W that a user's items pick, and its gradient writes W's once.

    Args:
        num_items: width of x.
        width: of the output.
        dropout: while training, each entry is left out with this probability, the others scaled by 1 / (1 - dropout).
        bias: whether there is a b.

    Attributes:
        weight [num_items, width], bias [width]: uninitialised, for the model that owns them to draw.
    """

    def __init__(self, num_items: int, width: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        positive_int("num_items", num_items)
        positive_int("width", width)
        probability("dropout", dropout)
        self.dropout = float(dropout)
        self.weight = nn.Parameter(torch.empty(num_items, width, dtype=torch.float32, device="cpu"))
        own = nn.Parameter(torch.empty(width, dtype=torch.float32, device="cpu")) if bias else None
        self.register_parameter("bias", own)

    def forward(self, graph: BipartiteGraph, values: Tensor, users: Tensor) -> Tensor:
        """[B, width], the layer's output for the rows of `users`.

        Args:
            graph: over as many items, on the weight's device.
            values: [num_edges], the matrix's entries in the order of `graph.user_indices`.
            users: int64 [B] in [0, num_users); a row without edges gives the bias. On a device they all differ: those
                who come again may make the output NaN.
        """
        collect = _padded_entries if _native.on_cuda(users) else _entries
        items, picked, starts = collect(graph, values.to(self.weight.dtype), users)
        picked = dropout(picked, self.dropout, self.training)
        out = embedding_bag(items, self.weight, starts, mode="sum", per_sample_weights=picked)
        out = out[: users.numel()]
        return out if self.bias is None else out + self.bias


def _entries(graph: BipartiteGraph, values: Tensor, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(items [E], values [E], starts [B]): the users' rows one behind the other, and where each one starts."""
    begin = graph.user_indptr[users]
    count = graph.user_indptr[users + 1] - begin
    start = count.cumsum(0) - count
    total = int(count.sum())
    entry = torch.arange(total, device=users.device)
    entry += torch.repeat_interleave(begin - start, count, output_size=total)
    return graph.user_indices[entry], values[entry], start.int()


def _padded_entries(graph: BipartiteGraph, values: Tensor, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_entries`, for as many entries as any B different users can have, so that the host need not ask how many they
    are and a CUDA graph can hold it. Those too many are 0, shared out among B rows more: one would be a long one."""
    begin = graph.user_indptr[users]
    count = graph.user_indptr[users + 1] - begin
    end, total = count.cumsum(0), count.sum()
    start = end - count
    capacity, batch = graph.most_edges(users.numel()), users.numel()
    place = torch.arange(capacity, device=users.device)
    row = torch.searchsorted(end, place, right=True).clamp_(max=batch - 1)
    entry = torch.where(place < total, place + (begin - start)[row], 0)
    picked = torch.where(place < total, values[entry], 0).masked_fill(total > capacity, torch.nan)
    spare = total + (capacity - total) * torch.arange(batch, device=users.device) // max(batch, 1)
    starts = torch.cat([start, spare]).clamp_(max=capacity)
    return graph.user_indices[entry], picked, starts.int()


def unit_rows(graph: BipartiteGraph) -> Tensor:
    """float32 [num_edges]: the users' rows, each scaled to Euclidean length 1."""
    users, _ = graph.edges()
    values = _values(graph)
    square = values.new_zeros(graph.num_users).index_add_(0, users, values.square())
    return values * square[users].rsqrt()


def symmetrically_normalised(graph: BipartiteGraph) -> Tensor:
    """float32 [num_edges]: the entries of D_u^-1/2 R D_i^-1/2, D the sums of a node's weights."""
    users, items = graph.edges()
    values = _values(graph)
    user_sum = values.new_zeros(graph.num_users).index_add_(0, users, values)
    item_sum = values.new_zeros(graph.num_items).index_add_(0, items, values)
    return values * (user_sum[users] * item_sum[items]).rsqrt()


def _values(graph: BipartiteGraph) -> Tensor:
    if graph.user_values is not None:
        return graph.user_values
    return torch.ones(graph.num_edges, dtype=torch.float32, device=graph.device)
