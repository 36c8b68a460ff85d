"""Times every operation's providers interleaved in one process, and writes benchmarks/results/<machine>.json, where
other cases of the same machine and commit stay.

    python benchmarks/compare.py [--device cpu|cuda] [--rounds N] [--only NAME ...] [--out FILE] [--seconds S] [--tiny]

On a CPU under glibc's allocator as it comes and tuned: half of eager PyTorch's time there is page faults, because glibc
gives every large freed tensor back to the system and asks for it again. `tuned` tells it to keep them, so the ratio
against it is the one of the arithmetic. On a CUDA device called from Python and captured in a CUDA graph, with a warm
and a flushed L2, in float32, with TF32 allowed and in bfloat16, beside the device's own ceilings.
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
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import CASES, measure, settings
from ceilings import ceilings
from record import Record, default_file
from timing import ALLOCATORS, DeviceClock, WallClock, first_line

CEILINGS = "ceilings"


def work_through(names: list[str], arguments: argparse.Namespace) -> None:
    """A process: prints a line of JSON for each result as soon as it is there, and for each name that is done."""
    for name in names:
        small = name == CEILINGS or CASES[name].small
        if name == CEILINGS:
            print(json.dumps({CEILINGS: ceilings(arguments.device, _clock(arguments, small), arguments.tiny)}))
        else:
            for label, at in settings(name, arguments.device, arguments.tiny).items():
                try:
                    result = measure(name, at, _clock(arguments, small), arguments.rounds)
                except Exception as error:
                    traceback.print_exc()
                    result = {"failed": first_line(error)}
                    if arguments.device == "cuda" and not isinstance(error, AssertionError):
                        print(json.dumps({"case": label, **result}), flush=True)
                        os._exit(1)  # the device may be lost to this process
                print(json.dumps({"case": label, **result}), flush=True)
                gc.collect()
        print(json.dumps({"done": name}), flush=True)


def _clock(arguments: argparse.Namespace, small: bool) -> WallClock | DeviceClock:
    if arguments.device == "cuda":
        return DeviceClock(torch.device("cuda"), small)
    return WallClock(arguments.allocator)


def results_of(names: list[str], allocator: str, arguments: argparse.Namespace, deadline: float) -> Iterator[dict]:
    """What processes find, one after another: where one ends early, the next goes on behind the case that ended it."""
    while names and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--worker", "--device", arguments.device, "--allocator", allocator]
        command += ["--rounds", str(arguments.rounds), *(["--tiny"] if arguments.tiny else []), "--only", *names]
        environment = {**os.environ, **ALLOCATORS[allocator]}
        told = set()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            watch = threading.Timer(min(deadline - time.monotonic(), threading.TIMEOUT_MAX), process.kill)
            watch.start()
            for line in process.stdout:
                if not line.startswith("{"):  # what a library prints
                    continue
                result = json.loads(line)
                if "done" in result:
                    names, told = names[1:], set()
                else:
                    told.add(result.get("case"))
                    yield result
            watch.cancel()
        if names and time.monotonic() < deadline:
            name = names[0]
            for label in [name] if name == CEILINGS else settings(name, arguments.device, arguments.tiny):
                if label not in told:
                    yield {"case": label, "failed": f"the process ended with {process.returncode}"}
            names = names[1:]
    for name in names:
        yield {"case": name, "left out": "no time was left"}


def note(record: Record, line: dict) -> bool:
    """Writes a result down and prints it; whether nothing failed."""
    if CEILINGS in line:
        for name, value in line[CEILINGS].items():
            record.add(CEILINGS, name, value)
        print("ceilings: " + ", ".join(f"{name} {value:.4g}" for name, value in line[CEILINGS].items()), flush=True)
        return True
    case = line["case"]
    if "left out" in line:
        print(f"{case}: left out: {line['left out']}", flush=True)
        return True
    if "failed" in line:
        record.add("failed", case, line["failed"])
        print(f"{case}: failed: {line['failed']}", flush=True)
        return False
    record.add("results", case, {**record.content.get("results", {}).get(case, {}), **line["modes"]})
    record.add("extra_mib", case, line["extra_mib"])
    record.add("skipped", case, line["skipped"])
    for mode, found in line["modes"].items():
        text = ", ".join(f"{p} {f['median_ms']:.4g} (min {f['min_ms']:.4g})" for p, f in found.items())
        print(f"{case} [{mode}] ms: {text}", flush=True)
    for provider, why in line["skipped"].items():
        print(f"{case}: without {provider}: {why}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="default: 9 on a CPU, 30 on a CUDA device")
    parser.add_argument("--only", nargs="+", choices=(CEILINGS, *CASES), metavar="NAME")
    parser.add_argument("--out", type=Path, help="the results file; default: benchmarks/results/<machine>.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed: a test of this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--allocator", choices=ALLOCATORS, default="default", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    arguments.rounds = arguments.rounds or (9 if on_cpu else 30)
    names = arguments.only or [*(() if on_cpu else (CEILINGS,)), *(n for n, c in CASES.items() if c.cpu or not on_cpu)]
    if arguments.worker:
        work_through(names, arguments)
        return 0
    deadline = time.monotonic() + arguments.seconds
    record = Record(arguments.out or default_file(arguments.device), arguments.device)
    # A CPU's memory is as a case finds it; a device's processes take seconds to start.
    batches = [([name], a) for name in names for a in ALLOCATORS] if on_cpu else [(names, "default")]
    lines = (line for batch, a in batches for line in results_of(batch, a, arguments, deadline))
    return 0 if all([note(record, line) for line in lines]) else 1


if __name__ == "__main__":
    sys.exit(main())
