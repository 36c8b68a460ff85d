"""What a device reaches in this run: the measure of what kernels reach."""

from __future__ import annotations

from dataclasses import replace

import torch
from sizes import AMAZON_BOOK, precision
from timing import DeviceClock, WallClock, captured, median_ms

ROUNDS = 9
SHORT = 50  # copies within L2 in a row: one alone is over sooner than it is launched


def ceilings(device: str, clock: WallClock | DeviceClock, tiny: bool) -> dict[str, float]:
    """Bytes read and written a second of a copy that no cache holds and of one that L2 holds, and the rates of square
    products of random matrices."""
    found = {}
    for name, size, repeats in (("copy_gb_per_s", 2**30, 1), ("copy_in_l2_gb_per_s", 2**24, SHORT)):
        source = torch.ones(size // 1024 if tiny else size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def copies(source=source, target=target, repeats=repeats):
            for _ in range(repeats):
                target.copy_(source)
            return [target]

        run = captured(copies) if isinstance(clock, DeviceClock) else copies
        found[name] = repeats * 2 * source.numel() / median_ms(run, clock, ROUNDS) / 1e6
    n = 64 if tiny else 8192
    for kind in ("float32", "tf32", "bfloat16"):
        at = replace(AMAZON_BOOK, device=device, precision=kind)
        a, b = (at.table(n, seed, n).detach() for seed in (1, 2))
        with precision(at):
            found[f"{kind}_tflops"] = 2 * n**3 / median_ms(lambda a=a, b=b: a @ b, clock, ROUNDS) / 1e9
    return found
