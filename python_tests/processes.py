"""Python processes of their own: for what is chosen when a process starts, for what importing the package does, and for
what a process holds."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Processes start here and not at the root, where `import prorec_fast` would find the sources and not what is installed.
HERE = Path(__file__).parent


def run_python(code: str, **environment: str) -> str:
    """The standard output of `code` in a new process; fails with its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=HERE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def peak_memory() -> int:
    """The most bytes that this process has held, as Linux tells it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
