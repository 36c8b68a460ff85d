"""The options of `prorec-fast bench`, which are those of benchmarks/bench.py."""

from __future__ import annotations

import argparse

SIZES = ("amazon_book", "yelp", "steam", "large")
PASSES = ("forward", "forward+backward")


def add_bench_options(parser: argparse.ArgumentParser, positive_int: type, positive: type) -> None:
    """The last arguments are the parser's own checks."""
    add = parser.add_argument
    add(
        "operations",
        nargs="*",
        metavar="OP",
        help="an operation, or one variant of it (default: all)",
    )
    add("--size", nargs="+", choices=SIZES, metavar="S", help=f"{', '.join(SIZES)} (default: amazon_book)")
    add(
        "--pass",
        dest="passes",
        nargs="+",
        choices=PASSES,
        metavar="P",
        help="forward, forward+backward (default: the latter, where there is one)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add(
        "--rounds",
        type=positive_int,
        metavar="N",
        help="of each provider (default: 9 on a CPU, 30 on a CUDA device); more where those are over in half a second, "
        "fewer, 3 at least, where they would take over 4 seconds",
    )
    add("--seconds", type=positive, metavar="X", help="leave out what has not begun after so many")
    add(
        "--save",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a results file (default name: <machine>.json, in benchmarks/results of a source tree)",
    )
    add(
        "--against",
        metavar="OLD",
        help="a results file to compare with (exit code 1: something got worse)",
    )
    add("--tiny", action="store_true", help="sizes that say nothing about speed: a test")
