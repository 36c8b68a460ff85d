from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast.reference.topk import row_entries


def candidate_items(indptr: Tensor, indices: Tensor, num_items: int, similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(indptr, indices, counts): the distinct items of each row's similar users without the row's own."""
    user, place = (similar >= 0).nonzero(as_tuple=True)
    pair, item = row_entries(indptr, indices, similar[user, place])
    keys, counts = torch.unique(user[pair] * num_items + item, return_counts=True)
    rows = torch.arange(similar.size(0), device=similar.device)
    new = ~torch.isin(keys, rows.repeat_interleave(indptr.diff()) * num_items + indices)
    keys, counts = keys[new], counts[new]
    sizes = torch.bincount(keys // max(num_items, 1), minlength=rows.numel())
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), (keys % max(num_items, 1)).int(), counts.int()
