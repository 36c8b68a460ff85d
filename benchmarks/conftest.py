from __future__ import annotations

from sizes import SIZES


def pytest_addoption(parser) -> None:
    parser.addoption("--size", choices=(*SIZES, "tiny"), default="amazon_book", help="of benchmarks")
