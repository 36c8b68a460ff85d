from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prorec_fast.reference.reduce import keep, leading, reduce


def profile_contrast(
    profiles: Tensor,
    *,
    count: Tensor | None = None,
    temperature: float = 0.2,
    shift: float | None = None,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """sum_k log(1 + exp(shift) sum_{k' != k} exp(<c_k, c_k'> / temperature)) within each row's K profiles (ProEx
    Eq. 7)."""
    kept = leading(count, profiles.size(1))
    rows = keep(kept, profiles).transpose(0, 1)  # [B, K, d]
    if normalize:
        rows = F.normalize(rows, dim=-1)
    num = rows.size(1)
    s = (rows @ rows.mT / temperature).flatten(1)
    # Without its first entry the matrix has rows of K + 1 that end with the diagonal: what is left needs no mask.
    others = s[:, 1:].unflatten(1, (num - 1, num + 1))[:, :, :-1].reshape(s.size(0), num, num - 1)
    y = others.logsumexp(-1) + (1 / temperature if shift is None else shift)
    return reduce(keep(kept, F.softplus(y).sum(-1)), reduction, count)
