"""Random numbers as a function of (seed, counter): Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011). The same bits on every device, in any order, however the work is shared out.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# The last counter word: one seed gives each use numbers of its own.
EDGE_STREAM, NOISE_STREAM, NEGATIVE_STREAM = 1, 2, 3


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor | int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for each counter. All words are int64 tensors with values in [0, 2^32); the four counter words (ints
    or tensors) broadcast."""
    k0, k1 = key
    c0, c1, c2, c3 = torch.broadcast_tensors(*(torch.as_tensor(c, device=k0.device) for c in counter))
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2^64: the sign does not matter
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def seed_key(seed: Tensor) -> tuple[Tensor, Tensor]:
    """The key of a 0-d int64 seed: its low and its high word."""
    return seed & _MASK, (seed >> 32) & _MASK


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A 0-d int64 tensor on `device` of a seed in [0, 2^63); None draws one from torch's default generator for that
    device. No copy from the host, so that a CUDA graph can hold it: there, None gives new numbers in every replay."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: want None or an int in [0, 2^63), got {seed!r}")
    return torch.full((), seed, dtype=torch.int64, device=device)
