"""`prorec-fast doctor`."""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys

import torch

from prorec_fast.backends import CUDA_LANGUAGE, as_text
from prorec_fast.doctor import Diagnosis, diagnose

from .settings import pick_device


def run_doctor(arguments: argparse.Namespace) -> int:
    """Say what runs where and check every kernel; exit code 1 where one is off."""
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # where a kernel brings the process down, this says which
    if arguments.device is not None:
        devices = [pick_device(arguments.device)]
    else:
        on_cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        devices = [torch.device("cpu"), *(torch.device("cuda", number) for number in on_cuda)]
    print(f"checking the kernels on {', '.join(map(str, devices))} ...", file=sys.stderr, flush=True)
    found = diagnose(devices)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=1, allow_nan=False))
    else:
        print(*as_text(found.facts), *_table(found), found.verdict, sep="\n")
    return 0 if found.ok else 1


def _table(found: Diagnosis) -> list[str]:
    """Each operation's largest error as a share of what is allowed, and each call that is off on a line of its own."""
    if not found.checks:
        return []
    rows = [["", *found.places]]
    for operation in CUDA_LANGUAGE:
        row = [operation]
        for where in found.places:
            of = [check for check in found.checks if (check.where, check.operation) == (where, operation)]
            well = all(check.ok for check in of)
            row.append((f"{max(check.share for check in of):.2f}" if well else "OFF") if of else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["largest error, as a share of what is allowed, of values and gradients against float64:"]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines + [f"  off: {check}" for check in found.checks if not check.ok]
