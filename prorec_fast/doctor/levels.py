"""The instruction sets that this process does not run. Which one serves is settled when a process first calls a kernel,
so each of the others is checked in a process of its own, that of a kernel which brings the process down, too."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict

import torch

from prorec_fast import _native
from prorec_fast.backends import CUDA_LANGUAGE
from prorec_fast.doctor.checks import Check, calls, check_device, failed

LEVELS = ("baseline", "avx2", "avx512")  # of x86-64, the best last; other processors have the first
_ABSENT = "and a processor with it"  # what the extension says of a level that the processor has not got
_SECONDS = 120.0  # that a process may take
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from prorec_fast.doctor.levels import main
main()
"""


def where(level: str) -> str:
    return f"cpu ({level})"


def check_others(used: str) -> list[Check]:
    """The checks of the levels that are not `used`, the best first."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.executable:
        return []
    processes = {level: _start(level) for level in reversed(LEVELS) if level != used}
    try:
        return [check for level, process in processes.items() for check in finish(level, process)]
    finally:
        for process in processes.values():
            process.kill()


def _start(level: str) -> subprocess.Popen:
    """A process that checks a level; it imports what this one does, wherever it was started. One thread is enough: on
    cores that others want, more would wait for each other."""
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _CODE, json.dumps(sys.path)],
        env={**os.environ, "PROREC_FAST_ISA": level, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(level: str, process: subprocess.Popen) -> list[Check]:
    """What the process found; nothing where the processor has no such level."""
    try:
        out, err = process.communicate(timeout=_SECONDS)
        ended = _ending(process.returncode, err)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        ended = f"no answer within {_SECONDS:g} s"
    if process.returncode and _ABSENT in err:
        return []
    found = [Check(**json.loads(line)) for line in out.splitlines()]
    if ended:
        made = list(calls(torch.device("cpu"), CUDA_LANGUAGE))
        if len(found) < len(made):
            found.append(failed(*made[len(found)], where(level), ended))
        else:
            found.append(failed(*made[-1], where(level), f"{ended}, after the last call"))
    return found


def _ending(code: int, err: str) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended: {(err.strip().splitlines() or ['without a word'])[-1]}"


def main() -> None:
    """Checks the level of this process and prints each check as a line of JSON."""
    level = where(_native.extension().isa())
    for check in check_device(torch.device("cpu"), level, CUDA_LANGUAGE):
        print(json.dumps(asdict(check)), flush=True)
