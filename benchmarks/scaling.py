"""Time and memory as one axis at a time grows: ours beside the definition, until it runs out of memory or of time.

    python benchmarks/scaling.py [OP ...] [--axis AXIS ...] [--device cpu|cuda] [--seconds S] [--memory GIB]
                                 [--out FILE] [--plot FOLDER] [--tiny]

Every value is twice the one before. A provider goes no further where its next call is foretold to hold more than
--memory (by default, than there is) or to take longer than --seconds, and the results file says which; beyond the
definition's last value, which it is compared with, ours goes on by itself. On a CPU every
value has a process of its own, so that what a kernel keeps for its next call is counted, and where the system ends a
process for its memory the others go on; times are those of bench.py's "tuned". Exponents are the slopes of log(time)
and log(memory) over the upper half of the values.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import CASES, TOLERANCE
from growth import AXES, GROWTHS, Growth
from measure import free_memory
from record import add_out, opened
from sizes import OURS, Setting, difference
from timing import EXACT_MEMORY, TUNED, DeviceClock, WallClock, extra_memory, first_line

ROUNDS, ROUNDS_MS = 9, 300.0  # of a call: so many, or fewer where they take so long
LEAST_MIB = 1.0  # less is not what grows: an exponent of memory is fitted to more
GIB = 2**30
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def measured(growth: Growth, at: Setting, small: Setting, going: list[str], memory: float) -> dict[str, Any]:
    """{"found": {provider: its median_ms and extra_mib}, "stopped": {provider: why}} of one value. No speed on red."""
    for name, run in growth.providers(small).items():
        if name in going:
            run()  # what a process's first call brings in is not counted
    clock = DeviceClock(torch.device("cuda"), small=False) if at.device == "cuda" else WallClock()
    foretold, runs = growth.foretold(at), growth.providers(at)
    if at.device == "cuda":
        torch.cuda.empty_cache()
    room = min(memory, free_memory(at.device) or math.inf)
    extra, stopped, results = {}, {}, []
    for name in going:
        if foretold[name] > room:
            stopped[name] = f"memory: it would hold {foretold[name] / GIB:.3g} GiB, and there are {room / GIB:.3g}"
            continue
        try:
            extra[name] = extra_memory(lambda run=runs[name]: results.append(run()), at.device)
        except Exception as error:
            if not of_memory(error):
                raise
            stopped[name] = f"memory: {first_line(error)}"
    if len(results) == 2:
        error = difference(*(CASES[growth.operation].compared(at, of) for of in reversed(results)))
        assert error < TOLERANCE["float32"], f"{OURS} differs by {error:.2g}"
    results.clear()
    keep_freed()
    found = {
        name: {"median_ms": timed(runs[name], clock), "extra_mib": None if size is None else size / 2**20}
        for name, size in extra.items()
    }
    return {"found": found, "stopped": stopped}


def keep_freed() -> None:
    """Tells glibc in this process what TUNED tells it when a process starts: what `extra_memory` does not want."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, int(TUNED["MALLOC_TOP_PAD_"]))):
            libc.mallopt(parameter, value)


def timed(run: Callable, clock: WallClock | DeviceClock) -> float:
    """The median of warm calls' milliseconds."""
    clock.prepare(clock.modes[0], run)
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ROUNDS_MS:
        taken += clock.milliseconds([clock.timed(run)])
    return median(taken)


def of_memory(error: Exception) -> bool:
    """Whether there is not enough of it; a CPU's allocator says so in a RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def here(function: Callable[[], Any]) -> Any:
    """What a function gives; as a string, that there was not enough memory."""
    try:
        return function()
    except Exception as error:
        if not of_memory(error):
            raise
        return first_line(error)


def apart(function: Callable[[], Any]) -> Any:
    """The same in a process of its own, which the system may end for its memory.

    Raises:
        RuntimeError: it ended otherwise; what it raised is printed.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(here(function)))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a value's process ended with {process.exitcode}") from None
        return f"its process ended with {process.exitcode}"
    finally:
        process.join()


def too_slow(times: list[float], seconds: float) -> str:
    """Why the next value is not tried; "" where nothing is against it. The next call takes as many times as long as the
    last one did, and no more than 4 times: nothing here grows faster than a square."""
    if not times:
        return ""
    growth = min(4.0, max(1.0, times[-1] / times[-2])) if len(times) > 1 else 2.0
    foretold = times[-1] * growth / 1e3
    return f"time: a call would take {foretold:.3g} s" if foretold > seconds else ""


def grow(growth: Growth, axis: str, arguments: argparse.Namespace, run_apart: Callable = apart) -> Iterator[dict]:
    """A line for every value: {"value", "found", "stopped"}."""
    going, times = [growth.baseline, OURS], {growth.baseline: [], OURS: []}
    values = growth.values(axis, arguments.tiny)
    small = growth.at(axis, growth.values(axis, True)[0], arguments.device, True)
    for value in values:
        stopped = {name: why for name in going if (why := too_slow(times[name], arguments.seconds))}
        going = [name for name in going if name not in stopped]
        found, at = {}, growth.at(axis, value, arguments.device, arguments.tiny)
        while going:
            line = run_apart(lambda at=at, going=going: measured(growth, at, small, going, arguments.memory * GIB))
            if isinstance(line, dict):
                found = line["found"]
                stopped |= line["stopped"]
                break
            stopped[going[0]] = f"memory: {line}"  # the definition's part, which is larger, has to do with it
            going = going[1:]
        going = list(found)
        for name in going:
            times[name].append(found[name]["median_ms"])
        yield {"value": value, "found": found, "stopped": stopped}
        if not going:
            return


def exponent(values: list[int], measures: list[float | None], least: float = 0.0) -> float | None:
    """The least squares slope of log(measure) against log(value) over the upper half; None of fewer than two points."""
    pairs = [(math.log(v), math.log(m)) for v, m in zip(values, measures, strict=False) if m is not None and m > least]
    pairs = pairs[min(len(pairs) // 2, len(pairs) - 2) :] if len(pairs) > 1 else []
    if not pairs:
        return None
    mean_x, mean_y = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


def gathered(growth: Growth, lines: list[dict]) -> dict[str, Any]:
    """An axis's entry of the results file."""
    entry: dict[str, Any] = {"values": [line["value"] for line in lines if line["found"]], "stopped": {}}
    for name in (growth.baseline, OURS):
        points = [line["found"][name] for line in lines if name in line["found"]]
        entry[name] = {measure: [point[measure] for point in points] for measure in ("median_ms", "extra_mib")}
    entry["exponents"] = {
        name: {
            "time": exponent(entry["values"], entry[name]["median_ms"]),
            "memory": exponent(entry["values"], entry[name]["extra_mib"], LEAST_MIB),
        }
        for name in (growth.baseline, OURS)
    }
    for line in lines:
        entry["stopped"] |= line["stopped"]
    return entry


def said(operation: str, axis: str, entry: dict[str, Any]) -> str:
    parts = []
    for name, found in entry["exponents"].items():
        reached = len(entry[name]["median_ms"])
        slopes = ", ".join(f"{what} {axis}^{slope:.2f}" for what, slope in found.items() if slope is not None)
        end = f"to {entry['values'][reached - 1]}" if reached else "nowhere"
        why = entry["stopped"].get(name)
        parts.append(f"{name} {slopes} {end}{f' ({why})' if why else ''}")
    return f"{operation}, {axis}: " + "; ".join(parts)


def work(arguments: argparse.Namespace) -> None:
    """A process: prints a line of JSON for each value of one operation's axis."""
    growth, (axis,) = GROWTHS[arguments.operations[0]], arguments.axis
    directly = arguments.device == "cuda"  # whose allocator knows what a call held, and starts in seconds
    for line in grow(growth, axis, arguments, here if directly else apart):
        print(json.dumps(line), flush=True)


def lines_of(operation: str, axis: str, arguments: argparse.Namespace) -> tuple[list[dict], int]:
    """What a process found, and how it ended."""
    command = [
        sys.executable,
        "-W",
        "ignore:Sparse",
        __file__,
        "--worker",
        operation,
        "--axis",
        axis,
        "--device",
        arguments.device,
    ]
    command += ["--seconds", str(arguments.seconds), "--memory", str(arguments.memory)]
    command += ["--tiny"] if arguments.tiny else []
    done = subprocess.run(command, env={**os.environ, **EXACT_MEMORY}, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operations", nargs="*", metavar="OP", help=f"default: all of {', '.join(GROWTHS)}")
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="the longest that a call may take (default: 2)")
    parser.add_argument("--memory", type=float, default=math.inf, metavar="GIB", help="default: what there is")
    add_out(parser)
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw what was measured there, too")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.operations if name not in GROWTHS]
    if unknown:
        parser.error(f"OP: want of {', '.join(GROWTHS)}, got {', '.join(unknown)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if arguments.worker:
        work(arguments)
        return 0
    todo = [(name, axis) for name in arguments.operations or GROWTHS for axis in GROWTHS[name].axes]
    todo = [(name, axis) for name, axis in todo if axis in arguments.axis]
    if not todo:
        parser.error(f"--axis {' '.join(arguments.axis)}: not one of {' '.join(arguments.operations)}'s")
    record, measured, failed = opened(parser, arguments), {}, False
    limits = {"seconds": arguments.seconds, "memory_gib": arguments.memory}
    limits = {name: limit for name, limit in limits.items() if limit < math.inf}
    for name, axis in todo:
        lines, code = lines_of(name, axis, arguments)
        if code:
            failed = True
            print(f"{name}, {axis}: failed: the process ended with {code}", flush=True)
        else:
            entry = gathered(GROWTHS[name], lines) | {"limits": limits, "commit": record.commit}
            record.add("scaling", name, {**record.content.get("scaling", {}).get(name, {}), axis: entry})
            measured.setdefault(name, {})[axis] = entry
            print(said(name, axis, entry), flush=True)
    if arguments.plot:
        from plot import draw

        draw({"scaling": measured}, arguments.plot, ["scaling.png"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
