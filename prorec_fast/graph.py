"""The interaction graph, and graph convolution over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prorec_fast import _checks, _native, library  # noqa: F401  (library registers the operators that torch.compile traces)
from prorec_fast._checks import describe
from prorec_fast.ops import propagate as _propagate

__all__ = ["BipartiteGraph", "propagate"]

_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_MAX_NODES = 2**31 - 1  # node indices are stored as int32
_SEGMENT = 256  # edges; on a device, several warps share a row with more


class BipartiteGraph:
    """Users, items and the edges between them, each edge once, as CSR rows in both orientations.

    Made by `from_edges`, `from_csr` or `from_scipy`. An unweighted graph holds no values: its normalised adjacency
    D^-1/2 R D^-1/2 is applied by scaling rows. Treat a graph as immutable.

    Attributes:
        num_users, num_items, num_edges: sizes.
        user_indptr [num_users + 1] int64, user_indices [num_edges] int32: each user's items, ascending.
        item_indptr [num_items + 1] int64, item_indices [num_edges] int32: each item's users, ascending.
        user_values, item_values: float32 weights in the order of the indices, or None for an unweighted graph.
        user_segments, item_segments: int64 [S, 3], the parts (row, begin, end) of long rows in order; None on the CPU.
    """

    def __init__(
        self,
        user_indptr: Tensor,
        user_indices: Tensor,
        item_indptr: Tensor,
        item_indices: Tensor,
        user_values: Tensor | None = None,
        item_values: Tensor | None = None,
    ) -> None:
        """Takes the arrays as they are, of which it only looks whether they are tensors; the `from_` constructors check
        and sort."""
        arrays = {"user_indptr": user_indptr, "user_indices": user_indices}
        arrays |= {"item_indptr": item_indptr, "item_indices": item_indices}
        for name, array in arrays.items():
            if not isinstance(array, Tensor):
                raise TypeError(f"{name}: want a tensor, got {describe(array)}; of edges from_edges makes a graph")
        self.user_indptr, self.user_indices, self.user_values = user_indptr, user_indices, user_values
        self.item_indptr, self.item_indices, self.item_values = item_indptr, item_indices, item_values
        self.num_users = user_indptr.numel() - 1
        self.num_items = item_indptr.numel() - 1
        self.num_edges = user_indices.numel()
        self.device = user_indices.device
        self.user_segments, self.item_segments = _segments(user_indptr), _segments(item_indptr)
        self.negative_weights: dict[float, Any] = {}  # by popularity; sample_negatives keeps them here
        self._most_edges: Tensor | None = None

    @classmethod
    def from_edges(
        cls,
        users: Tensor,
        items: Tensor,
        num_users: int,
        num_items: int,
        *,
        weights: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> BipartiteGraph:
        """The graph of the edges (users[e], items[e]), in any order.

        Args:
            users, items: [E] integers (a tensor, or anything `torch.as_tensor` takes).
            num_users, num_items: the numbers of nodes, each below 2^31.
            weights: [E] finite numbers above 0. Duplicate edges are one edge; their weights are summed. Without
                weights the graph is binary.
            device: where the graph lives; by default, where `users` does.

        Raises:
            TypeError, ValueError, IndexError: an argument of another type, shape or range; the message names it.
        """
        num_users, num_items = _node_count("num_users", num_users), _node_count("num_items", num_items)
        users = _indices("users", users, num_users, device)
        items = _indices("items", items, num_items, users.device)
        if users.shape != items.shape:
            raise ValueError(f"items: want as many as users ({users.numel()}), got {items.numel()}")
        key = users * num_items + items  # below 2^62
        if weights is None:
            key, values = torch.unique(key), None
        else:
            weights = _weights(weights, users)
            key, inverse = torch.unique(key, return_inverse=True)
            values = weights.new_zeros(key.numel()).index_add_(0, inverse, weights).float()
        users = key.div(max(num_items, 1), rounding_mode="floor")
        return cls._from_sorted_edges(users, key - users * num_items, num_users, num_items, values)

    @classmethod
    def from_csr(
        cls,
        indptr: Tensor,
        indices: Tensor,
        num_items: int,
        *,
        values: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> BipartiteGraph:
        """The graph whose user u has the items indices[indptr[u]:indptr[u + 1]], in any order.

        Args:
            indptr: [num_users + 1] integers from 0 to E that never decrease.
            indices: [E] integers in [0, num_items).
            values: [E] edge weights, as in `from_edges`.

        Raises:
            TypeError, ValueError, IndexError: an argument of another type, shape or range; the message names it.
        """
        indices = _tensor(indices, device)
        indptr = _indices("indptr", indptr, indices.numel() + 1, indices.device)
        counts = indptr.diff()
        if indptr.numel() == 0 or indptr[0] != 0 or indptr[-1] != indices.numel() or bool((counts < 0).any()):
            raise ValueError(
                f"indptr: want offsets from 0 to {indices.numel()} (the number of indices) that never decrease, "
                f"got {describe(indptr)}"
            )
        users = _rows(indptr, indices.numel())
        return cls.from_edges(users, indices, counts.numel(), num_items, weights=values)

    @classmethod
    def from_scipy(cls, matrix: Any, *, device: torch.device | str | None = None) -> BipartiteGraph:
        """The graph of a scipy.sparse matrix [num_users, num_items]: an edge for every entry that is not zero.

        The graph is unweighted when all those entries are 1 or True, else the entries are its weights.

        Raises:
            TypeError, ValueError: not a sparse matrix, or an entry that is negative or not finite.
        """
        if not hasattr(matrix, "tocsr") or len(matrix.shape) != 2:
            raise TypeError(f"matrix: want a 2-d scipy.sparse matrix, got {type(matrix).__name__}")
        csr = matrix.tocsr(copy=True)  # the next line works in place
        csr.sum_duplicates()
        num_users, num_items = csr.shape
        indices, values = torch.from_numpy(csr.indices), torch.from_numpy(csr.data).double()
        users = _rows(torch.from_numpy(csr.indptr).long(), indices.numel())
        stored = values != 0
        users, indices, values = users[stored], indices[stored], values[stored]
        weights = None if bool((values == 1).all()) else values
        return cls.from_edges(users, indices, num_users, num_items, weights=weights, device=device)

    @classmethod
    def _from_sorted_edges(
        cls, users: Tensor, items: Tensor, num_users: int, num_items: int, values: Tensor | None
    ) -> BipartiteGraph:
        """From distinct edges in ascending order of (user, item)."""
        by_item = torch.sort(items, stable=True).indices
        return cls(
            _offsets(users, num_users),
            items.int(),
            _offsets(items, num_items),
            users[by_item].int(),
            values,
            None if values is None else values[by_item],
        )

    def to(self, device: torch.device | str) -> BipartiteGraph:
        """The graph on `device`; itself when it is there already.

        Raises:
            TypeError, ValueError: `device` is no device, but a dtype, say; the message names it.
        """
        device = _checks.device("device", device)
        moved = [None if t is None else t.to(device) for t in self.adjacency()[:6]]
        if moved[0] is self.user_indptr:
            return self
        indptr, indices, values, item_indptr, item_indices, item_values = moved
        return BipartiteGraph(indptr, indices, item_indptr, item_indices, values, item_values)

    def adjacency(self) -> _propagate.Adjacency:
        """(indptr, indices, values) of the user rows, then of the item rows, and the segments of both: what the kernels
        take."""
        return (
            self.user_indptr,
            self.user_indices,
            self.user_values,
            self.item_indptr,
            self.item_indices,
            self.item_values,
            self.user_segments,
            self.item_segments,
        )

    def csr(self) -> tuple[Tensor, Tensor]:
        """(indptr [num_users + 1] int64, indices [num_edges] int32): each user's items, ascending."""
        return self.user_indptr, self.user_indices

    def edges(self) -> tuple[Tensor, Tensor]:
        """(users, items), each int64 [num_edges], in ascending order of (user, item)."""
        return _rows(self.user_indptr, self.num_edges), self.user_indices.long()

    def to_sparse_csr(self) -> Tensor:
        """The interaction matrix as a float32 torch.sparse_csr tensor [num_users, num_items]."""
        values = self.user_values
        if values is None:
            values = torch.ones(self.num_edges, dtype=torch.float32, device=self.device)
        size = (self.num_users, self.num_items)
        columns = self.user_indices.long()
        return torch.sparse_csr_tensor(self.user_indptr, columns, values, size, check_invariants=False)

    @property
    def user_degree(self) -> Tensor:
        """int64 [num_users]: the number of edges of each user."""
        return self.user_indptr.diff()

    @property
    def item_degree(self) -> Tensor:
        """int64 [num_items]: the number of edges of each item."""
        return self.item_indptr.diff()

    def most_edges(self, num_users: int) -> int:
        """The most edges that so many different users have together. The first call waits for the graph's device."""
        if self._most_edges is None:
            self._most_edges = self.user_degree.sort(descending=True).values.cumsum(0).cpu()
        counted = min(num_users, self.num_users)
        return int(self._most_edges[counted - 1]) if counted else 0

    def __repr__(self) -> str:
        weighted = "" if self.user_values is None else ", weighted"
        return (
            f"BipartiteGraph(num_users={self.num_users}, num_items={self.num_items}, num_edges={self.num_edges}"
            f"{weighted}, device={str(self.device)!r})"
        )


def propagate(
    graph: BipartiteGraph,
    user: Tensor,
    item: Tensor,
    num_layers: int = 3,
    *,
    combine: str | Sequence[float] = "mean",
    noise: float = 0.0,
    keep_prob: float = 1.0,
    self_loops: bool = False,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Graph convolution without transforms (LightGCN, He et al., 2020): a combination of the layers
    E[0] = (user, item), E[l + 1] = A E[l], with A = D^-1/2 R D^-1/2 between the two sides. A node without edges
    receives zeros, so only its own row at layer 0 counts.

    Args:
        graph: on the device of `user`. A weighted graph is normalised by its sums of weights.
        user: [num_users, d] floating.
        item: [num_items, d], of the dtype of `user`.
        num_layers: L, 0 or more.
        combine: "mean" of layers 0..L (LightGCN), "sum" of layers 1..L (the code released with ProEx and ProMax),
            "last", "concat" ([rows, (L + 1) d], layer by layer), or L + 1 weights, layer 0 first.
        noise: eps of SimGCL (Yu et al., 2022): every layer E[l], l > 0, gets sign(E[l]) * normalize(r) * eps added, r
            uniform in [0, 1) per entry and normalised per row; the gradient passes straight through. 0 is none.
        keep_prob: edge dropout (SGL, Wu et al., 2021): each edge is kept with this probability, for all layers of the
            call alike, and kept edges are scaled by 1 / keep_prob. The degrees are those of the whole graph.
        self_loops: use (D + I)^-1/2 (R + I) (D + I)^-1/2 (LR-GCCF, Chen et al., 2020). Self loops are never dropped.
        seed: of `noise` and `keep_prob`, in [0, 2^63); the same seed gives the same numbers on every device and thread
            count. None draws one from torch's default generator for the device.

    Returns:
        (user_out, item_out), [num_users, d] and [num_items, d] in the dtype of `user` (with "concat", (L + 1) d wide),
        differentiable any number of times. Inside an autocast region the tables may differ in dtype; the wider counts.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range; the message names it.
    """
    return _propagate.propagate(
        graph,
        user,
        item,
        num_layers,
        combine=combine,
        noise=noise,
        keep_prob=keep_prob,
        self_loops=self_loops,
        seed=seed,
    )


def _node_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= int(value) <= _MAX_NODES:
        raise ValueError(f"{name}: want an int in [0, 2^31), got {value!r}")
    return int(value)


def _tensor(value: Any, device: torch.device | str | None) -> Tensor:
    """`value` as a tensor; one that is a tensor stays where it is unless `device` says otherwise."""
    if device is None and isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, device=device)


def _indices(name: str, value: Any, size: int, device: torch.device | str | None) -> Tensor:
    """`value` as a 1-d int64 tensor with entries in [0, size)."""
    value = _tensor(value, device)
    if value.numel() == 0 and value.dim() == 1:
        return value.long()  # an empty list makes a floating tensor
    if value.dim() != 1 or value.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name}: want a 1-d tensor of integers, got {describe(value)}")
    low, high = (int(x) for x in torch.aminmax(value))
    if low < 0 or high >= size:
        raise IndexError(f"{name}: want entries in [0, {size}), got entries in [{low}, {high}]")
    return value.long()


def _weights(value: Any, users: Tensor) -> Tensor:
    """`value` as float64 weights, one for each of `users`."""
    value = torch.as_tensor(value, device=users.device)
    if value.shape != users.shape:
        raise ValueError(f"weights: want as many as users ({users.numel()}), got {describe(value)}")
    value = value.double()
    if value.numel():
        low, high = (float(x) for x in torch.aminmax(value))  # NaN propagates
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"weights: want finite numbers above 0, got numbers in [{low}, {high}]")
    return value


def _offsets(rows: Tensor, num_rows: int) -> Tensor:
    """CSR offsets, int64 [num_rows + 1], of edges with these rows."""
    offsets = rows.new_zeros(num_rows + 1)
    torch.cumsum(torch.bincount(rows, minlength=num_rows), 0, out=offsets[1:])
    return offsets


def _rows(indptr: Tensor, num_edges: int) -> Tensor:
    """The row of every edge, int64 [num_edges]."""
    rows = torch.arange(indptr.numel() - 1, device=indptr.device)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=num_edges)


def _segments(indptr: Tensor) -> Tensor | None:
    """The parts of the rows with more than _SEGMENT edges, by which a device's warps get even shares of the work."""
    if not _native.on_cuda(indptr):
        return None
    rows = (indptr.diff() > _SEGMENT).nonzero().flatten()
    begin, end = indptr[rows], indptr[rows + 1]
    parts = (end - begin + _SEGMENT - 1) // _SEGMENT
    part = torch.repeat_interleave(parts)  # the position in `rows` of every part's row
    number = torch.arange(part.numel(), device=indptr.device) - (parts.cumsum(0) - parts)[part]
    begin = begin[part] + _SEGMENT * number
    return torch.stack([rows[part], begin, torch.minimum(begin + _SEGMENT, end[part])], dim=1)
