"""What a device reaches, at best, in the process that times a cell: the measure of what kernels reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from sizes import AMAZON_BOOK, precision
from timing import DeviceClock, WallClock, captured, warm

ROUNDS = 7
SHORT = 50  # copies within L2 in a row: one alone is over sooner than it is launched
CPU_SIZES = {"copy": 2**28, "n": 2048}
DEVICE_SIZES = {"copy": 2**30, "n": 8192}


def mm_rate(precision: str) -> str:
    """The name of a precision's rate of products of matrices."""
    return "mm_gflop_per_s" if precision == "float32" else f"mm_{precision}_gflop_per_s"


def ceilings(device: str, clock: WallClock | DeviceClock, tiny: bool) -> tuple[dict[str, float], float]:
    """Bytes read and written a second by a copy that no cache holds and, on a CUDA device, by one that L2 holds; the
    rates of square products of random matrices. And the largest share of the processors that others had meanwhile."""
    on_cuda = isinstance(clock, DeviceClock)
    sizes, found, disturbed = DEVICE_SIZES if on_cuda else CPU_SIZES, {}, 0.0
    copies = [("copy_gb_per_s", sizes["copy"], 1), ("copy_in_l2_gb_per_s", 2**24, SHORT)]
    for name, size, repeats in copies[: 2 if on_cuda else 1]:
        source = torch.ones(size // 1024 if tiny else size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def copy(source=source, target=target, repeats=repeats):
            for _ in range(repeats):
                target.copy_(source)
            return [target]

        run = captured(copy) if on_cuda else copy
        times = warm(run, clock, ROUNDS, tiny)
        found[name] = repeats * 2 * source.numel() / times["min_ms"] / 1e6
        disturbed = max(disturbed, times["others_share"])
    n = 64 if tiny else sizes["n"]
    for kind in ("float32", "tf32", "bfloat16") if on_cuda else ("float32",):
        at = replace(AMAZON_BOOK, device=device, precision=kind)
        a, b = (at.table(n, seed, n).detach() for seed in (1, 2))
        product = torch.empty_like(a)
        with precision(at):
            run = partial(torch.mm, a, b, out=product)
            times = warm(run, clock, ROUNDS, tiny)
        found[mm_rate(kind)] = 2 * n**3 / times["min_ms"] / 1e6
        disturbed = max(disturbed, times["others_share"])
    return found, disturbed
