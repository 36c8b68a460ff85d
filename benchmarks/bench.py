"""Times operations: every provider of every cell, interleaved in one process. `prorec-fast bench` is the same program.

    python benchmarks/bench.py [OP ...] [--size S ...] [--pass P ...] [--device D] [--save [FILE]] [--against OLD]

On a CPU under glibc's allocator as it comes and tuned: much of eager PyTorch's time there is page faults, because glibc
gives every large freed tensor back to the system and asks for it again. `tuned` tells it to keep them, so the ratio
against it is the one of the arithmetic. On a CUDA device called from Python and captured in a CUDA graph, with a warm
and a flushed L2, in float32, with TF32 allowed and in bfloat16. Rates are shares of ceilings that the same process
measures, too; what other processes disturb is measured anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Cell, cells
from ceilings import ceilings, mm_rate
from measure import free_memory, measure, measure_memory, work
from record import Record, default_file, details, read
from regressions import Incomparable, compare, not_compared
from sizes import graphs_of
from timing import ALLOCATORS, EXACT_MEMORY, DeviceClock, WallClock, first_line

from prorec_fast.cli.parser import make_parser

MEMORY = "memory"
LOST = 3  # exit code: a cell's error is printed, and the device may be lost to this process
ENVIRONMENTS = {**ALLOCATORS, MEMORY: EXACT_MEMORY}  # of a CPU's processes, by mode


def work_through(job: dict[str, Any]) -> None:
    """A process: prints a line of JSON for each cell as soon as it is there."""
    on_cuda, reached, disturbed = job["device"] == "cuda", {}, 0.0
    if not on_cuda:
        _refuse_more_than_there_is()
    for fields in job["cells"]:
        cell = Cell(**fields)
        clock = DeviceClock(torch.device("cuda"), cell.small) if on_cuda else WallClock(job["mode"])
        graphs_of.clear()
        try:
            if job["mode"] == MEMORY:
                result = measure_memory(cell, job["names"])
            else:
                result = measure(cell, clock, job["rounds"])
                if not reached:  # not before: what glibc keeps depends on what was freed
                    reached, disturbed = ceilings(job["device"], clock, cell.size == "tiny")
                    torch.cuda.empty_cache()
                shares = {mode: max(share, disturbed) for mode, share in result["others_share"].items()}
                result |= {"ceilings": reached, "others_share": shares, "work": work(cell)}
                result |= {"data": ", ".join(sorted(graphs_of))}
        except Exception as error:
            traceback.print_exc()
            result = {"failed": first_line(error)}
        print(json.dumps(result), flush=True)
        if on_cuda and "failed" in result and not result["failed"].startswith("AssertionError"):
            os._exit(LOST)
        gc.collect()


def _refuse_more_than_there_is() -> None:
    """A provider that wants more memory than there is gets an error, where the system might end the process."""
    if (free := free_memory("cpu")) is not None:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + free, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def results_of(
    todo: list[Cell], mode: str, rounds: int, deadline: float, names: Sequence[str] = ()
) -> Iterator[tuple[Cell, dict]]:
    """What processes find, one after another: where one ends early, the next goes on behind the cell that ended it.
    `names` are the providers whose memory is measured."""
    while todo and time.monotonic() < deadline:
        job = {"device": todo[0].device, "mode": mode, "rounds": rounds, "names": names}
        job["cells"] = [asdict(cell) for cell in todo]
        environment = {**os.environ, **ENVIRONMENTS.get(mode, {})}
        command = [sys.executable, "-W", "ignore:Sparse", __file__, "--worker", json.dumps(job)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            watch = threading.Timer(min(deadline - time.monotonic(), threading.TIMEOUT_MAX), process.kill)
            watch.start()
            try:
                for line in process.stdout:
                    if line.startswith("{"):  # and not what a library prints
                        yield todo[0], json.loads(line)
                        todo = todo[1:]
            finally:  # also where who asks is interrupted: Python would wait for the timer at its end
                watch.cancel()
        if todo and process.returncode != LOST and time.monotonic() < deadline:
            yield todo[0], {"failed": f"the process ended with {process.returncode}"}
            todo = todo[1:]
    for cell in todo:
        yield cell, {"left out": "no time was left"}


class Run:
    """Cells as they are measured, in a results file.

    Attributes:
        well: whether no cell has failed.
        done: labels of cells that something was found of.
        left_out: those that something is missing of, for lack of time.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.well, self.done, self.left_out = record, True, [], set()

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        label = cell.label
        if "left out" in result:
            if label not in self.left_out:
                print(f"{label}: left out: {result['left out']}", file=sys.stderr)
            self.left_out.add(label)
            if label in self.done:
                self.record.add("cases", label, self._found(cell) | {"left out": result["left out"]})
            return
        entry = self._found(cell) or _identity(cell) | {"commit": self.record.commit}
        entry |= {key: result[key] for key in ("failed", "data", "work") if result.get(key)}
        if "failed" in result:
            self.well = False
            print(f"{label}: failed: {result['failed']}", file=sys.stderr)
        for mode, times in result.get("modes", {}).items():
            reached = result["ceilings"]
            rated = {name: {**of, **_rates(cell, entry, reached, of["median_ms"])} for name, of in times.items()}
            entry.setdefault("modes", {})[mode] = rated
            entry.setdefault("ceilings", {})[mode] = reached
        for name in ("others_share", "skipped", "extra_mib"):
            entry.setdefault(name, {}).update(result.get(name, {}))
        self.record.add("cases", label, entry)
        if label not in self.done:
            self.done.append(label)

    def failed(self, cell: Cell) -> bool:
        return "failed" in self._found(cell)

    def timed(self, cell: Cell) -> list[str]:
        """The providers that were, in whatever mode."""
        return list({name: None for times in self._found(cell).get("modes", {}).values() for name in times})

    def _found(self, cell: Cell) -> dict[str, Any]:
        return self.record.content["cases"][cell.label] if cell.label in self.done else {}


def _rates(cell: Cell, entry: dict[str, Any], reached: dict[str, float], milliseconds: float) -> dict[str, float]:
    if not entry.get("work"):
        return {}
    gflop, gb = (entry["work"][name] for name in ("gflop", "gb"))
    seconds = milliseconds / 1e3
    found = {"gflop_per_s": gflop / seconds, "gb_per_s": gb / seconds}
    if (products := reached.get(mm_rate(cell.precision))) is not None:  # a CPU's are of float32
        found["share_of_ceiling"] = max(gflop / products, gb / reached["copy_gb_per_s"]) / seconds
    return found


def _identity(cell: Cell) -> dict[str, Any]:
    of = {"operation": cell.case.operation, "variant": cell.case.variant, "size": cell.size, "pass": cell.passing}
    return {**of, "precision": cell.precision}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(["bench", *(sys.argv[1:] if argv is None else argv)])
    try:
        return bench(arguments)
    except (ValueError, OSError, Incomparable) as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"prorec-fast: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def bench(arguments: argparse.Namespace) -> int:
    operations = {case.operation: None for case in CASES.values()}
    names = {**operations, **CASES}
    if unknown := [name for name in arguments.operations if name not in names]:
        near = ", ".join(map(repr, get_close_matches(unknown[0], names))) or ", ".join(operations)
        raise ValueError(f"OP: want an operation or a variant of one, such as {near}; got {unknown[0]!r}")
    on_cpu = arguments.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    sizes = ["tiny"] if arguments.tiny else arguments.size
    todo = cells(arguments.operations, sizes, arguments.passes, arguments.device)
    if not todo:
        raise ValueError("OP: none of these is timed at these sizes, in these passes and on this device")
    if arguments.save in names:
        raise ValueError(f"--save: {arguments.save!r} is an operation; name a file, or let --save come last")
    file = None if arguments.save is None else Path(arguments.save or default_file(arguments.device))
    old = None if arguments.against is None else _named("--against", read, Path(arguments.against))
    record = _named("--save", Record, file, arguments.device)
    if old is not None:
        compare(old, record.content, ())  # says at once where it cannot be done
        if not any(cell.label in old.get("cases", {}) for cell in todo):
            raise Incomparable(f"--against: {arguments.against} has nothing of what is to be timed: {todo[0].label}")
    run, rounds = Run(record), arguments.rounds or (9 if on_cpu else 30)
    deadline = time.monotonic() + (arguments.seconds or float("inf"))
    # A CPU's memory is to be as a cell finds it; a device's processes take seconds to start.
    batches = [[cell] for cell in todo] if on_cpu else [todo]
    for batch in batches:
        print(f"{batch[0].label} ..." if on_cpu else f"{len(batch)} cells ...", file=sys.stderr, flush=True)
        for mode in ENVIRONMENTS if on_cpu else ("",):
            names = run.timed(batch[0]) if mode == MEMORY else ()
            left = [cell for cell in batch if not run.failed(cell) and (names or mode != MEMORY)]
            for cell, result in results_of(left, mode, rounds, deadline, names):
                run.add(cell, result)
                if not on_cpu:
                    _show(run, cell, arguments.json)
        if on_cpu:
            _show(run, batch[0], arguments.json)
    cases = record.content.get("cases", {})
    worse = None if old is None else compare(old, record.content, run.done)
    apart = [] if old is None else not_compared(old, record.content, run.done)
    if arguments.json:
        content = {**record.content, "cases": {label: cases[label] for label in run.done}}
        compared = {} if worse is None else {"worse": worse, "not_compared": apart}
        print(json.dumps({**content, **compared}, indent=1, allow_nan=False))
    elif worse is not None:
        print(*apart, *worse, f"{len(worse)} got worse", sep="\n")
    return 0 if run.well and not worse else 1


def _named(option: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """A function's result; what it says of a file names the option."""
    try:
        return function(*arguments)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {error}") from error


def _show(run: Run, cell: Cell, as_json: bool) -> None:
    if cell.label in run.done:
        text = "\n".join(details(cell.label, run.record.content["cases"][cell.label]))
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_through(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
