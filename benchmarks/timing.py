"""How providers are timed: in rounds of one call each, interleaved, by their device's clock; and what they hold."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from other_work import OtherWork
from sizes import Provider

from prorec_fast.train.step import WARMUP_STEPS, CudaGraphs

LIMIT_MS = 4000.0  # what a provider may take of a mode; at least MIN_ROUNDS are measured
MIN_ROUNDS = 3
# Rounds come in windows of so many seconds at least, which the system's count of used processor time needs. One in
# which other processes had more than this share of the processors is measured anew, until so many seconds are lost.
WINDOW_S, OTHERS_SHARE, PATIENCE_S = 0.5, 0.08, 10.0
# Of a process whose glibc gives large freed blocks back to the system, as it does by default, or keeps them.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
ALLOCATORS = {"default": {}, "tuned": TUNED}
LONG_MS = 1000.0  # a call so long has no use for caches as it leaves them
# The environment of a process in which `extra_memory` is exact on a CPU: what is freed is gone, and not used again.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class WallClock:
    """The CPU's: each call after one more of the same provider, so that it finds the caches as it leaves them."""

    def __init__(self, mode: str = "default") -> None:
        self.modes = (mode,)

    def runs(self, mode: str, found: dict[str, Provider]) -> tuple[dict[str, Provider], dict[str, str]]:
        return found, {}

    def prepare(self, mode: str, run: Provider) -> None:
        run()

    def timed(self, run: Provider) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    def milliseconds(self, taken: list[float]) -> list[float]:
        return taken


class DeviceClock:
    """A CUDA device's, by events: "called" from Python, with the gaps that this leaves, and "captured" in a CUDA graph
    and replayed; with what the call before left in L2, and with another buffer written over it."""

    def __init__(self, device: torch.device, small: bool = True) -> None:
        self.modes = ("called, L2 warm", "called, L2 flushed", "captured, L2 warm", "captured, L2 flushed")
        if not small:
            self.modes = self.modes[:1]
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self.larger_than_l2 = torch.empty(2 * l2, dtype=torch.uint8, device=device)
        self.graphs: tuple[dict[str, Provider], dict[str, str]] | None = None

    def runs(self, mode: str, found: dict[str, Provider]) -> tuple[dict[str, Provider], dict[str, str]]:
        """What to call in a mode, and why some cannot be."""
        if mode.startswith("called"):
            return found, {}
        if self.graphs is None:
            self.graphs = {}, {}
            for name, run in found.items():
                try:
                    self.graphs[0][name] = captured(run)
                except (RuntimeError, AssertionError) as error:
                    self.graphs[1][name] = f"not captured: {first_line(error)}"
        return self.graphs

    def prepare(self, mode: str, run: Provider) -> None:
        if mode.endswith("warm"):
            run()
        else:
            self.larger_than_l2.zero_()

    def timed(self, run: Provider) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        return start, stop

    def milliseconds(self, taken: list[Any]) -> list[float]:
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop in taken]


def extra_memory(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """The most bytes that a call held at once beyond what there was, its results among them; None where a CPU's system
    does not tell. On a CPU those of the process: a call's first of its size, because kernels keep their scratch, in a
    process with EXACT_MEMORY, whose code and threads a smaller call has brought in already."""
    if device == "cpu":
        return _extra_resident(run)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _extra_resident(run: Callable[[], Any]) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what is free would be used without being counted
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again
    except OSError:
        return None
    before = _resident_peak()
    run()
    return _resident_peak() - before


def _resident_peak() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def captured(run: Provider) -> Provider:
    """`run` as a CUDA graph's replay. A call that waits for the device is found out before a capture that it would
    break, and with it the process."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graphs, results = CudaGraphs(torch.device("cuda", torch.cuda.current_device())), []
    for _ in range(WARMUP_STEPS):
        graphs.warm_up(run)
    graph = graphs.capture(lambda: results.extend(run()), None)

    def replay() -> list[torch.Tensor]:
        graph.replay()
        return results

    return replay


def time_providers(
    runs: dict[str, Provider], clock: WallClock | DeviceClock, mode: str, rounds: int, tiny: bool = False
) -> tuple[dict[str, list[float]], float]:
    """{provider: milliseconds of each of its rounds}, and the largest share of the processors that others had. There
    are more rounds than wanted where those are over before a window is. What is `tiny` says nothing about speed: no
    window is filled, and nothing is measured anew."""
    others, disturbed, patience = OtherWork(), 0.0, 0.0 if tiny else PATIENCE_S
    first = {name: clock.timed(run) for name, run in runs.items()}
    once = {name: clock.milliseconds([of])[0] for name, of in first.items()}
    fill = 1 if tiny else math.ceil(1e3 * WINDOW_S / max(2 * sum(once.values()), 1e-3))
    counts = {name: max(fill, min(rounds, max(MIN_ROUNDS, int(LIMIT_MS / max(ms, 1e-3))))) for name, ms in once.items()}
    window: dict[str, list] = {name: [first[name]] if once[name] >= LONG_MS else [] for name in runs}
    kept: dict[str, list] = {name: [] for name in runs}
    while any(len(kept[name]) < counts[name] for name in runs):
        for name, run in runs.items():
            if len(kept[name]) + len(window[name]) < counts[name]:
                if once[name] < LONG_MS:
                    clock.prepare(mode, run)
                window[name].append(clock.timed(run))
        complete = all(len(kept[name]) + len(window[name]) == counts[name] for name in runs)
        if complete or others.seconds() >= WINDOW_S:
            if (share := others.share()) <= OTHERS_SHARE or patience <= 0:
                kept = {name: kept[name] + window[name] for name in runs}
                disturbed = max(disturbed, share)
            else:
                patience -= others.seconds()
            window = {name: [] for name in runs}
            others.restart()
    return {name: clock.milliseconds(values) for name, values in kept.items()}, disturbed


def summary(times: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    found = {"median_ms": median, "q1_ms": q1, "q3_ms": q3, "min_ms": min(times), "max_ms": max(times)}
    return {**found, "rounds": len(times)}


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def warm(run: Callable[[], Any], clock: WallClock | DeviceClock, rounds: int, tiny: bool = False) -> dict[str, float]:
    """The summary of warm calls, and the largest share of the processors that others had."""
    run()
    times, share = time_providers({"": run}, clock, clock.modes[0], rounds, tiny)
    return {**summary(times[""]), "others_share": share}
