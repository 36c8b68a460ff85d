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
from itertools import islice

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


def start_others(used: str) -> dict[str, subprocess.Popen]:
    """Processes that check the levels which are not `used`; they import what this one does, wherever it was started."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.executable:
        return {}
    command = [sys.executable, "-I", "-c", _CODE, json.dumps(sys.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {
        level: subprocess.Popen(
            command, env={**os.environ, "PROREC_FAST_ISA": level, "OMP_NUM_THREADS": "1"}, **pipes
        )
        for level in LEVELS
        if level != used
    }  # fmt: skip


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
        case, dtype = next(islice(calls(torch.device("cpu"), CUDA_LANGUAGE), len(found), None))
        found.append(failed(case, dtype, where(level), ended))
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
