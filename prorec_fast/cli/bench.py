"""`prorec-fast bench`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def run_bench(arguments: argparse.Namespace) -> int:
    """Time operations, in a process of their own: benchmarks are programs and no part of the package."""
    package = Path(__file__).parents[1]
    found = [folder / "bench.py" for folder in (package / "benchmarks", package.parent / "benchmarks")]
    program = next((file for file in found if file.exists()), None)
    if program is None:
        raise ValueError(f"benchmarks: want bench.py in {' or '.join(str(file.parent) for file in found)}")
    paths = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(program), *arguments.words]
    code = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode
    return code if code >= 0 else 1  # a signal ended it
