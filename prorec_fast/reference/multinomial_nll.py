from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast.reference.reduce import reduce
from prorec_fast.reference.topk import row_entries


def multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: tuple[Tensor, Tensor, Tensor | None],
    *,
    rows: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-sum_j x_bj log softmax(hidden_b weight^T + bias)_j per row, x in CSR rows (indptr, indices, values or None)."""
    indptr, indices, values = targets
    if rows is None:
        rows = torch.arange(hidden.size(0), device=hidden.device)
    position, entry = row_entries(indptr, torch.arange(indices.numel(), device=indices.device), rows)
    log_softmax = F.linear(hidden, weight, bias).log_softmax(1)  # [B, N]
    terms = -log_softmax[position, indices[entry].long()]
    if values is not None:
        value = values[entry].to(terms.dtype)
        terms = (value * terms).where(value > 0, 0)  # no target, even where its probability is 0
    return reduce(terms.new_zeros(hidden.size(0)).index_add(0, position, terms), reduction)
