"""The tests marked `every_level` again, in a process held to each instruction set level that this one is not at: a
level is chosen when a process starts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

import pytest
from processes import HERE

from prorec_fast._native import extension

LEVELS = ("baseline", "avx2", "avx512")


def rerun(run: Callable, level: str) -> str:
    if platform.machine().lower() not in ("x86_64", "amd64") and level != "baseline":
        pytest.skip(f"{level} is a level of x86-64 only")
    at_level = dict(cwd=HERE, env={**os.environ, "PROREC_FAST_ISA": level})
    asked = "from prorec_fast._native import extension; print(extension().isa())"
    try:
        found = run([sys.executable, "-c", asked], **at_level)
    except AssertionError as error:
        if "and a processor with it" in str(error):
            pytest.skip(f"this processor has no {level}")
        raise
    assert found.strip() == level
    marked = sorted(path for path in HERE.glob("test_*.py") if "@pytest.mark.every_level\n" in path.read_text())
    pytest_at_level = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "every_level"]
    return run([*pytest_at_level, *marked], **at_level)


@pytest.mark.ahead(work=rerun)
@pytest.mark.parametrize("level", [level for level in LEVELS if level != extension().isa()])
def test_kernels_at_every_instruction_set(level, done_ahead):
    assert " passed" in done_ahead
