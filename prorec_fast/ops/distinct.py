from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Distinct(NamedTuple):
    """The distinct entries of an index vector [B], in shapes that depend on B alone.

    values: [B] int64, ascending; the last is repeated behind the first `count`.
    count: 0-d int64, how many of `values` count.
    inverse: [B] int64, where in `values` each entry stands.
    multiplicity: [B] float32, how often each value occurs; 0 behind the first `count`.
    order: [B] int64, sorts the entries by value, equal ones as they came.
    starts: [B + 1] int64, where each value's run starts among the sorted entries; B behind the last.
    """

    values: Tensor
    count: Tensor
    inverse: Tensor
    multiplicity: Tensor
    order: Tensor
    starts: Tensor

    def entries(self) -> Tensor:
        """The index vector again."""
        return self.values.index_select(0, self.inverse)


def distinct(index: Tensor) -> Distinct:
    """torch.unique of a 1-d int64 tensor without its synchronisation: a CUDA graph can capture it."""
    batch = index.size(0)
    ascending, order = torch.sort(index, stable=True)
    is_first = torch.ones_like(index, dtype=torch.bool)
    torch.ne(ascending[1:], ascending[:-1], out=is_first[1:])
    place = is_first.cumsum(0) - 1
    # Where a run starts goes to its place; all else to one slot more, which is cut off.
    starts = index.new_full((batch + 2,), batch)
    starts.scatter_(0, torch.where(is_first, place, batch + 1), torch.arange(batch, device=index.device))
    starts = starts[:-1]
    values = ascending.index_select(0, starts[:-1].clamp_max(batch - 1))
    inverse = torch.empty_like(order).scatter_(0, order, place)
    return Distinct(values, is_first.sum(), inverse, starts.diff().float(), order, starts)
