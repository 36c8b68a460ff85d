"""Rows of item indices, taken as a BipartiteGraph, a torch.sparse_csr tensor or (indptr, indices[, values])."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prorec_fast._checks import FLOAT_DTYPES, describe


class CsrRows(NamedTuple):
    indptr: Tensor  # [rows + 1] int64
    indices: Tensor  # [nnz] int32, strictly ascending within a row
    num_cols: int | None  # None where the form does not say
    values: Tensor | None = None  # [nnz] floating, at least 0; None for ones


def csr_rows(
    name: str,
    value: Any,
    *,
    device: torch.device,
    rows: int | None = None,
    cols: int | None = None,
    may_wait: bool = False,
    valued: bool = False,
) -> CsrRows:
    """`value` as CSR rows on `device`, with `rows` rows and indices in [0, cols) where given.

    A graph is taken at its word; the entries of the other forms are checked on the CPU, where looking at them does not
    stall a device, and elsewhere if `may_wait`. Values are looked at and given back with `valued` only.
    """
    if hasattr(value, "csr") and hasattr(value, "num_items"):
        indptr, indices = value.csr()
        found = CsrRows(indptr, indices, value.num_items, value.user_values if valued else None)
        trusted = True
    else:
        found = _from_tensors(name, value, valued)
        trusted = (device.type != "cpu" and not may_wait) or torch.compiler.is_compiling()
    for t in (found.indptr, found.indices, found.values):
        if t is not None and t.device != device:
            raise ValueError(f"{name}: want tensors on {device}, got {describe(t)}")
    if rows is not None and found.indptr.numel() != rows + 1:
        raise ValueError(f"{name}: want {rows} rows, got {found.indptr.numel() - 1}")
    if cols is not None and found.num_cols not in (None, cols):
        raise ValueError(f"{name}: want {cols} columns, got {found.num_cols}")
    if not trusted:
        _check_entries(name, found, found.num_cols if cols is None else cols)
    indices = found.indices.to(torch.int32).contiguous()
    return CsrRows(found.indptr.contiguous(), indices, found.num_cols, found.values)


def _from_tensors(name: str, value: Any, valued: bool) -> CsrRows:
    tensors = value if isinstance(value, tuple) and all(isinstance(t, Tensor) for t in value) else ()
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        values = value.values() if valued else None
        found = CsrRows(value.crow_indices().long(), value.col_indices(), value.size(1), values)
    elif len(tensors) == 2 or (valued and len(tensors) == 3):
        found = CsrRows(*tensors[:2], None, *tensors[2:])
    else:
        arrays = "(indptr, indices[, values])" if valued else "(indptr, indices)"
        raise TypeError(f"{name}: want a BipartiteGraph, a torch.sparse_csr tensor or {arrays}, got {describe(value)}")
    if found.indptr.dtype != torch.int64 or found.indptr.dim() != 1 or found.indptr.numel() < 1:
        raise TypeError(f"{name}: want indptr as a 1-d int64 tensor [rows + 1], got {describe(found.indptr)}")
    if found.indices.dtype not in (torch.int32, torch.int64) or found.indices.dim() != 1:
        raise TypeError(f"{name}: want indices as a 1-d int32 or int64 tensor, got {describe(found.indices)}")
    if found.values is not None:
        _check_values(name, found)
    return found


def _check_values(name: str, found: CsrRows) -> None:
    values, wanted = found.values, tuple(found.indices.shape)
    if values.dtype not in FLOAT_DTYPES or values.shape != wanted:
        raise TypeError(f"{name}: want values as a floating tensor of shape {wanted}, got {describe(values)}")
    if values.requires_grad:
        raise ValueError(f"{name}: want values without a gradient; they are counted, not differentiated")


def _check_entries(name: str, found: CsrRows, cols: int | None) -> None:
    indptr, indices, _, values = found
    if indptr[0] != 0 or indptr[-1] != indices.numel() or (indptr.diff() < 0).any():
        raise ValueError(f"{name}: want indptr to rise from 0 to {indices.numel()}, the number of indices")
    if indices.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(indices))
    limit = 2**31 if cols is None else cols
    if low < 0 or high >= limit:
        raise IndexError(f"{name}: want indices in [0, {limit}), got indices in [{low}, {high}]")
    falls = indices[1:] <= indices[:-1]
    starts = indptr[1:-1]  # where a row starts, its first index may be below its neighbour
    falls[starts[(starts > 0) & (starts < indices.numel())] - 1] = False
    if values is not None and not ((values >= 0) & (values < torch.inf)).all():
        raise ValueError(f"{name}: want finite values of at least 0")
    if falls.any():
        raise ValueError(f"{name}: want indices strictly ascending within a row; sort each row and drop repetitions")
