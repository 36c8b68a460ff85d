from __future__ import annotations

import torch
from torch import Tensor


def mix_environments(profiles: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights_ek profiles_k, in the wider of the two dtypes, as profiles are stored (ProEx Eq. 8 and 9)."""
    wide = torch.promote_types(profiles.dtype, weights.dtype)
    return torch.tensordot(weights.to(wide), profiles.to(wide), 1).to(profiles.dtype)
