"""Every Triton kernel, in the forms that are shipped, compiled ahead of time: a tile that does not fit a chip shows
here and not on a user's device."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("triton")

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes a block may have


def compile_kernels(run: Callable, chip: int) -> list:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        program = Path(__file__).with_name("compile_ahead.py")
        printed = run([sys.executable, program, chip], env={**environment, "TRITON_CACHE_DIR": cache})
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.ahead(work=compile_kernels)
@pytest.mark.parametrize("chip", SHARED_LIMIT)
def test_kernels_compile_without_spills_and_within_shared_memory(chip, done_ahead):
    kernels, *compiled = done_ahead
    assert {form["kernel"] for form in compiled} == set(kernels)  # every kernel is in some module's `variants`
    spilled = [form for form in compiled if form["stack"]]
    assert not spilled, "\n".join(map(str, spilled))
    too_large = [form for form in compiled if form["shared"] > SHARED_LIMIT[chip]]
    assert not too_large, "\n".join(map(str, too_large))
