"""What a device reaches in this run: the measure of what kernels reach."""

from __future__ import annotations

from dataclasses import replace

import torch
from sizes import AMAZON_BOOK, precision
from timing import DeviceClock, WallClock, median_ms

ROUNDS = 9


def ceilings(device: str, clock: WallClock | DeviceClock, tiny: bool) -> dict[str, float]:
    """Bytes read and written a second of a copy that no cache holds and of one that L2 holds, and the rates of square
    products of random matrices."""
    found = {}
    for name, size in (("copy_gb_per_s", 2**30), ("copy_in_l2_gb_per_s", 2**23)):
        source = torch.ones(size // 1024 if tiny else size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        found[name] = 2 * source.numel() / median_ms(lambda s=source, t=target: t.copy_(s), clock, ROUNDS) / 1e6
    n = 64 if tiny else 8192
    for kind in ("float32", "tf32", "bfloat16"):
        at = replace(AMAZON_BOOK, device=device, precision=kind)
        a, b = (at.table(n, seed, n).detach() for seed in (1, 2))
        with precision(at):
            found[f"{kind}_tflops"] = 2 * n**3 / median_ms(lambda a=a, b=b: a @ b, clock, ROUNDS) / 1e9
    return found
