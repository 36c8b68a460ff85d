from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import describe
from prorec_fast.ops.csr import csr_rows
from prorec_fast.ops.operation import operation
from prorec_fast.reference.candidate_items import candidate_items as candidate_items_reference


class CandidateItems(NamedTuple):
    """CSR rows of candidate items, one row a user."""

    indptr: Tensor  # [M + 1] int64
    indices: Tensor  # [nnz] int32, ascending within a row
    counts: Tensor  # [nnz] int32: how many of the similar users have the item


@operation("candidate_items")
def candidate_items(graph: Any, similar: Tensor) -> CandidateItems:
    if not isinstance(similar, Tensor) or similar.dtype != torch.int64 or similar.dim() != 2:
        raise TypeError(f"similar: want a 2-d int64 tensor, got {describe(similar)}")
    found = csr_rows("graph", graph, device=similar.device, rows=similar.size(0), may_wait=True)
    indptr, indices, num_items = found.indptr, found.indices, found.num_cols
    if num_items is None:
        num_items = int(indices.max()) + 1 if indices.numel() else 0  # items that nobody has are nobody's candidates
    if not _native.device_has_kernel("cuda", similar):
        return CandidateItems(*candidate_items_reference(indptr, indices, num_items, similar))
    if torch.compiler.is_compiling():
        return CandidateItems(*torch.ops.prorec_fast.candidate_items(indptr, indices, num_items, similar))
    return CandidateItems(*candidate_items_kernel(indptr, indices, num_items, similar))


def candidate_items_kernel(
    indptr: Tensor, indices: Tensor, num_items: int, similar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts each user's candidates, then writes them; in between, how many there are is read from the device."""
    similar = _native.index("similar", similar, similar.size(0), low=-1)
    graph = _native.csr(indptr, indices, None, num_items)

    def run(*to_fill: Tensor | None) -> None:
        addresses = map(_native.address, to_fill)
        _native.call(similar, "candidate_items", graph, similar.data_ptr(), similar.size(1), *addresses)

    row_counts = similar.new_empty(similar.size(0))
    run(row_counts, None, None, None)
    out_indptr = torch.cat([row_counts.new_zeros(1), row_counts.cumsum(0)])
    items, counts = (similar.new_empty(int(out_indptr[-1]), dtype=torch.int32) for _ in range(2))
    run(None, out_indptr, items, counts)
    return out_indptr, items, counts
