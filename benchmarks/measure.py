"""One cell's measurement: its providers' agreement with the definition, their times and memory, and the work done."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from cases import BACKWARD, TOLERANCE, Cell
from sizes import COMPILED, EAGER, OURS, Provider, Unavailable, difference, precision
from timing import DeviceClock, WallClock, extra_memory, first_line, summary, time_providers
from work import costs, eager_memory

SLOW_S = 60.0  # a call: what another provider may take
FREE_SHARE = 0.6  # of the free memory: what a provider may be expected to take; kept memory is in pieces


@dataclass(frozen=True)
class Prepared:
    """Providers that give what they should; `accept` says what is wrong with results, "" where nothing is."""

    found: dict[str, Provider]
    skipped: dict[str, str]
    accept: Callable[[list], str]


def prepare(cell: Cell) -> Prepared:
    """No speed on red: every provider is compared with the definition in float64, or looked at by its file's check."""
    if cell.case.compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled in a few forms
    built = cell.build(cell.at)
    skipped = {name: str(run) for name, run in built.items() if isinstance(run, Unavailable)}
    if EAGER in built and (why := _beyond_memory(cell, _dtype(cell))):
        skipped[EAGER] = why
    accept = _acceptance(cell)
    found, wrong = those_that_work({name: run for name, run in built.items() if name not in skipped}, accept)
    return Prepared(found, skipped | wrong, accept)


def measure(cell: Cell, clock: WallClock | DeviceClock, rounds: int) -> dict[str, Any]:
    """{"modes": {mode: {provider: times}}, "others_share": {mode: of the processors}, "skipped": {provider: why}} and
    on a CUDA device {"extra_mib": ...}."""
    with precision(cell.at):
        prepared = prepare(cell)
        found, skipped = prepared.found, prepared.skipped
        modes: dict[str, dict[str, dict]] = {}
        disturbed: dict[str, float] = {}
        for mode in clock.modes:
            runs, unfit = clock.runs(mode, found)
            runs, others = (runs, {}) if runs is found else those_that_work(runs, prepared.accept)
            wanted = min(rounds, cell.case.rounds or rounds)
            times, disturbed[mode] = time_providers(runs, clock, mode, wanted, cell.size == "tiny")
            modes[mode] = {name: summary(of) for name, of in times.items()}
            skipped |= {f"{name} [{mode}]": why for name, why in (unfit | others).items()}
        result = {"modes": modes, "others_share": disturbed, "skipped": skipped}
        if isinstance(clock, DeviceClock):
            result["extra_mib"] = {name: extra_memory(run, "cuda") / 2**20 for name, run in found.items()}
    return result


def measure_memory(cell: Cell, names: list[str]) -> dict[str, Any]:
    """{"extra_mib": {provider: ...}, "skipped": {provider: why}} on a CPU, of providers that work, in a process with
    timing.py's EXACT_MEMORY that has done nothing else."""
    extra, skipped = {}, {}
    with precision(cell.at):
        small, built = cell.small_build(), cell.build(cell.at)
        for name in sorted(names, key=lambda name: not name.startswith(OURS)):
            # What a first call compiles or brings in is not counted; ours keeps its scratch.
            try:
                (built if cell.case.compiled and not name.startswith(OURS) else small)[name]()
                extra[name] = extra_memory(built[name])
            except Exception as error:
                if name.startswith(OURS):
                    raise
                skipped[f"{name} [memory]"] = first_line(error)
            gc.collect()
    return {"extra_mib": {name: size / 2**20 for name, size in extra.items() if size is not None}, "skipped": skipped}


def work(cell: Cell) -> dict[str, float]:
    """{"gflop": ..., "gb": ...} of the kernels; empty where there is more to it than operations with formulas."""
    if cell.calls is None:
        return {}
    ours = [kernels for kernels, _ in costs(cell.calls, cell.at, cell.passing == BACKWARD, _dtype(cell))]
    moved = sum(cost.bytes_read + cost.bytes_written for cost in ours)
    return {"gflop": sum(cost.flops for cost in ours) / 1e9, "gb": moved / 1e9}


def those_that_work(
    found: dict[str, Provider], accept: Callable[[list], str]
) -> tuple[dict[str, Provider], dict[str, str]]:
    """What is ours has to work; another provider is left out, and why is said."""
    working, skipped = {}, {}
    for name, run in found.items():
        start = time.perf_counter()
        try:
            problem = accept(run())
        except torch.OutOfMemoryError as error:
            problem = f"does not fit: {first_line(error)}"
        except Exception as error:
            if name.startswith(OURS):
                raise
            problem = first_line(error)
        took = time.perf_counter() - start
        if not problem and took > SLOW_S and not (name.startswith(OURS) or COMPILED in name):  # which has been compiled
            problem = f"takes {took:.0f} s"
        if not problem:
            working[name] = run
        elif name.startswith(OURS):
            raise AssertionError(f"{name}: {problem}")
        else:
            skipped[name] = problem
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return working, skipped


def free_memory(device: str) -> int | None:
    """Bytes; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    except (OSError, TypeError):
        return None


def _acceptance(cell: Cell) -> Callable[[list], str]:
    """A function that says what is wrong with a provider's results; "" where nothing is."""
    case, at = cell.case, cell.at
    if not case.agree:
        check = import_module(case.file).check

        def accept(results: list) -> str:
            check(at, results)
            return ""

        return accept
    wide = replace(at, exact=True)
    exact = cell.build(wide)
    definition = next(iter(exact))
    if case.instead is not None and _beyond_memory(cell, torch.float64):
        definition = next(name for name in exact if name.startswith(case.instead))
    truth = [t.double() for t in case.compared(wide, exact[definition]())]
    tolerance = max(TOLERANCE[at.precision], case.least_tolerance)

    def accept(results: list) -> str:
        error = difference(case.compared(at, results), truth)
        return "" if error < tolerance else f"differs from the definition in float64 by {error:.2g}"

    return accept


def _beyond_memory(cell: Cell, dtype: torch.dtype) -> str:
    """Why eager PyTorch is not to be tried: a process that takes more than there is may be ended by the system."""
    free = free_memory(cell.device)
    if cell.calls is None or free is None:
        return ""
    needed = eager_memory(cell.calls, cell.at, cell.passing == BACKWARD, dtype)
    if needed <= FREE_SHARE * free:
        return ""
    return f"would hold {needed / 2**30:.3g} GiB (prorec_fast/costs.py) where {free / 2**30:.3g} GiB are free"


def _dtype(cell: Cell) -> torch.dtype:
    return torch.bfloat16 if cell.precision == "bfloat16" else torch.float32
