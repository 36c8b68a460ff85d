"""Tables of profiles, looked at a part at a time: a million rows are never held twice over, nor in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast._checks import describe, float_matrix

_ENTRIES = 1 << 20  # of a table, held in float64 at a time


def row_parts(x: Tensor) -> tuple[Tensor, ...]:
    """x [n, d] as views of some consecutive rows each."""
    return x.split(max(1, _ENTRIES // x.size(1)))


def finite_matrix(name: str, value: Tensor, *, rows: int | None = None) -> None:
    """Requires a 2-d floating tensor, of `rows` rows where given, with finite entries unless torch.compile is tracing
    and there are none."""
    float_matrix(name, value, rows=rows)
    if not torch.compiler.is_compiling() and not all(bool(torch.isfinite(part).all()) for part in row_parts(value)):
        raise ValueError(f"{name}: want finite entries, got NaN or infinity in {describe(value)}")
