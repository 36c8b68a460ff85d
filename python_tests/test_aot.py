"""Every Triton kernel, in the forms that are shipped, compiled ahead of time: a tile that does not fit a chip shows
here and not on a user's device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARES = 2
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes a block may have


def compile_share(chip: int, share: int, cache: Path) -> list:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    program = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run(
        [sys.executable, program, str(chip), str(share), str(SHARES)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("chip", SHARED_LIMIT)
def test_kernels_compile_without_spills_and_within_shared_memory(chip, tmp_path):
    with ThreadPoolExecutor(SHARES) as pool:
        (kernels, *first), *others = pool.map(lambda share: compile_share(chip, share, tmp_path), range(SHARES))
    compiled = first + [form for share in others for form in share]
    assert {form["kernel"] for form in compiled} == set(kernels)  # every kernel is in some module's `variants`
    spilled = [form for form in compiled if form["stack"]]
    assert not spilled, "\n".join(map(str, spilled))
    too_large = [form for form in compiled if form["shared"] > SHARED_LIMIT[chip]]
    assert not too_large, "\n".join(map(str, too_large))
