from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 24  # scores held at a time: the definition serves devices without a kernel, where B x N may not fit


@torch.no_grad()
def topk(
    user: Tensor, item: Tensor, k: int, *, exclude: tuple[Tensor, Tensor] | None = None, users: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The first k of each row of user @ item.T by (score descending, item ascending); excluded and NaN left out."""
    rows = torch.arange(user.size(0), device=user.device) if users is None else users
    num_items = item.size(0)
    scores = user.new_full((rows.numel(), k), float("-inf"))
    items = rows.new_full((rows.numel(), k), -1)
    step = max(1, CHUNK // max(num_items, 1))
    for start in range(0, rows.numel(), step):
        chunk = rows[start : start + step]
        all_scores = user[chunk] @ item.T  # [chunk, N]
        all_scores[all_scores.isnan()] = float("-inf")
        if exclude is not None:
            all_scores[row_entries(*exclude, chunk)] = float("-inf")
        # torch.topk leaves the order of equal scores open; a stable sort does not.
        best, order = all_scores.sort(dim=1, descending=True, stable=True)
        kept = min(k, num_items)
        scores[start : start + step, :kept] = best[:, :kept]
        items[start : start + step, :kept] = order[:, :kept].masked_fill(best[:, :kept] == float("-inf"), -1)
    return scores, items


def row_entries(indptr: Tensor, indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of the given CSR rows, as (position in `rows`, column), both int64."""
    lengths = indptr[rows + 1] - indptr[rows]
    position = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), lengths)
    first = lengths.cumsum(0) - lengths  # where each row's entries begin in the output
    offset = torch.arange(position.numel(), device=rows.device) - first[position]
    return position, indices[indptr[rows][position] + offset].long()
