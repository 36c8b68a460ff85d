from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import describe, positive_int
from prorec_fast.ops.csr import csr_rows
from prorec_fast.ops.operation import operation
from prorec_fast.reference.ranking_metrics import METRICS
from prorec_fast.reference.ranking_metrics import ranking_metrics as ranking_metrics_reference

_MAX_CUT_OFFS, _MAX_CUT_OFF = 16, 2048  # of a launch on a device
_BLOCKS, _ROWS = 1024, 8  # blocks at most on a device, and the rows a block takes at a time


@operation("ranking_metrics")
def ranking_metrics(
    items: Tensor, truth: Any, ks: Sequence[int] = (10, 20), *, num_items: int | None = None
) -> dict[str, Tensor]:
    if not isinstance(items, Tensor) or items.dtype != torch.int64 or items.dim() != 2:
        raise TypeError(f"items: want a 2-d int64 tensor, got {describe(items)}")
    if not isinstance(ks, Iterable):
        raise TypeError(f"ks: want cut-offs, (10, 20) for example, got {describe(ks)}")
    ks = tuple(ks)
    for k in ks:
        positive_int("ks", k)
        if k > items.size(1):
            raise ValueError(f"ks: want cut-offs of at most {items.size(1)}, the ranks in items, got {k}")
    found = csr_rows("truth", truth, device=items.device, rows=items.size(0), cols=num_items)
    indptr, indices, columns = found.indptr, found.indices, found.num_cols
    num_items = num_items if columns is None else columns
    if num_items is None:
        raise ValueError("num_items: want the number of items where truth is (indptr, indices), got None")
    beyond = _native.on_cuda(items) and max(ks, default=0) > _MAX_CUT_OFF
    if not _native.device_has_kernel("cuda", items) or beyond:
        table = ranking_metrics_reference(items, (indptr, indices), num_items, ks)
    elif torch.compiler.is_compiling():
        table = torch.ops.prorec_fast.ranking_metrics(items, indptr, indices, num_items, ks)
    else:
        table = ranking_metrics_kernel(items, indptr, indices, num_items, ks)
    rows = [row.unbind() for row in table.float().unbind()]
    return {f"{name}@{k}": rows[i][j] for i, k in enumerate(ks) for j, name in enumerate(METRICS)}


def ranking_metrics_kernel(items: Tensor, indptr: Tensor, indices: Tensor, num_items: int, ks: Sequence[int]) -> Tensor:
    launch = ranking_metrics_cuda if _native.on_cuda(items) else ranking_metrics_cpu
    return launch(items, indptr, indices, num_items, ks)


def ranking_metrics_cpu(items: Tensor, indptr: Tensor, indices: Tensor, num_items: int, ks: Sequence[int]) -> Tensor:
    items = _native.index("items", items, num_items, low=-1)
    ascending = sorted(set(ks))  # what the kernel wants
    cut_offs = torch.tensor(ascending, dtype=torch.int64, device="cpu")
    table = _native.empty(len(ascending), len(METRICS), dtype=torch.float64)
    _native.extension().ranking_metrics(
        items.data_ptr(),
        *items.shape,
        _native.csr(indptr, indices, None, num_items),
        cut_offs.data_ptr(),
        len(ascending),
        table.data_ptr(),
        _native.threads(),
    )
    return table[[ascending.index(k) for k in ks]]


def ranking_metrics_cuda(items: Tensor, indptr: Tensor, indices: Tensor, num_items: int, ks: Sequence[int]) -> Tensor:
    items = _native.index("items", items, num_items, low=-1)
    blocks = min(_BLOCKS, max(1, -(-items.size(0) // _ROWS)))
    table = items.new_empty((len(ks), len(METRICS)), dtype=torch.float64)
    for start in range(0, len(ks), _MAX_CUT_OFFS):
        some = list(ks[start : start + _MAX_CUT_OFFS])
        first_rank = items.new_full((num_items,), items.size(1), dtype=torch.int32)
        parts = items.new_empty((blocks, len(some) * len(METRICS) + 1), dtype=torch.float64)
        _native.cuda_call(
            items,
            "ranking_metrics",
            items.data_ptr(),
            *items.shape,
            _native.csr(indptr, indices, None, num_items),
            indices.numel(),
            some,
            first_rank.data_ptr(),
            parts.data_ptr(),
            blocks,
            table[start:].data_ptr(),
        )
    return table
