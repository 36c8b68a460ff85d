from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 18  # gathered numbers held at a time: small enough to stay in cache


def pair_scores(user: Tensor, item: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """<user_r, item_j> for the entries (r, j) of CSR rows."""
    rows = torch.arange(user.size(0), device=user.device).repeat_interleave(indptr.diff())
    columns, step = indices.long(), max(1, CHUNK // user.size(1))
    scores = user.new_empty(len(rows))  # results kept one by one between what is freed would break memory up
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        scores[some] = (user[rows[some]] * item[columns[some]]).sum(1)
    return scores
