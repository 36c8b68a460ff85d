"""Python processes of their own: for the instruction set level, which is chosen when a process starts, and for what
importing the package does."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

LEVELS = ("baseline", "avx2", "avx512")
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


def rerun_at(level: str, files: str | list[str], *tests: str) -> None:
    """Runs `tests` of one file or several (names as pytest's -k takes them) in a process held to `level`; skips what
    this processor has not got."""
    if platform.machine().lower() not in ("x86_64", "amd64") and level != "baseline":
        pytest.skip(f"{level} is a level of x86-64 only")
    try:
        found = run_python("from prorec_fast._native import extension; print(extension().isa())", PROREC_FAST_ISA=level)
    except AssertionError as error:
        if "and a processor with it" in str(error):
            pytest.skip(f"this processor has no {level}")
        raise
    assert found.strip() == level
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [*([files] if isinstance(files, str) else files), "-k", " or ".join(tests)]
    environment = {**os.environ, "PROREC_FAST_ISA": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
