"""Every provider of every case and pass, for pytest-benchmark: `pytest benchmarks [--size S] [-k OP]`."""

from __future__ import annotations

from functools import lru_cache

import pytest
from cases import PASSES, cells
from measure import prepare
from sizes import Unavailable

prepared = lru_cache(maxsize=1)(prepare)  # tests of a cell stand one behind the other


def pytest_generate_tests(metafunc) -> None:
    found = [
        pytest.param(cell, provider, id=f"{cell.label}-{provider}")
        for cell in cells(sizes=[metafunc.config.getoption("size")], passes=list(PASSES))
        for provider, run in cell.small_build().items()
        if cell.precision == "float32" and not isinstance(run, Unavailable)
    ]
    metafunc.parametrize("cell, provider", found)


def test_case(benchmark, cell, provider):
    ready = prepared(cell)  # no speed on red
    if provider in ready.skipped:
        pytest.skip(ready.skipped[provider])
    benchmark.group = cell.label
    benchmark(ready.found[provider])
