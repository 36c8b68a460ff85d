from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prorec_fast.reference.reduce import reduce


def bpr(user: Tensor, positive: Tensor, negative: Tensor, *, reduction: str = "mean") -> Tensor:
    """softplus(<u, n> - <u, p>) per row."""
    return reduce(F.softplus((user * negative).sum(-1) - (user * positive).sum(-1)), reduction)
