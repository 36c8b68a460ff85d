"""Tries tiles of every Triton kernel on the GPU at hand and prints the best ones as rows for TILES in
prorec_fast/triton_kernels/tuning.py.

    python benchmarks/tune.py [--seconds S] [--only OPERATION ...] [--bands D ...]

From the tile in use the search goes to the best of its neighbours in GRID for as long as there is a better one. A tile
that does not compile, does not fit or changes the results is passed over. Each operation, size of entry and band has an
equal share of the time that is left; what was found so far is printed when it is up.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import bench_distribution_kl
import bench_info_nce
import torch
from sizes import AMAZON_BOOK, OURS, TINY, Provider, Setting, difference
from timing import DeviceClock, WallClock, captured, first_line, warm

from prorec_fast.triton_kernels import tuning
from prorec_fast.triton_kernels.primitives import chip
from prorec_fast.triton_kernels.tuning import Tile

# The values of a tile's fields; a neighbour has the next value of one field, either way, or of two block sizes at once.
GRID: dict[str, tuple[int, ...]] = {
    "block_b": (16, 32, 64, 128, 256),
    "block_n": (16, 32, 64, 128, 256),
    "num_warps": (2, 4, 8, 16),
    "num_stages": (1, 2, 3, 4),
    "cols": (32, 64, 128),
}
BETTER = 0.99  # of the time so far, to be more than noise
SAME = 1e-2  # of the results; another order of sums in bfloat16 is within
ROUNDS = 15


def _shaping(at: Setting) -> Provider:
    """Without eps, and with it as in ProMax's released code, which sweeps another kernel over the items."""
    runs = [bench_distribution_kl.providers(at, eps=eps)[OURS] for eps in (0.0, 1e-8)]
    return lambda: [t for run in runs for t in run()]


def _contrast(at: Setting) -> Provider:
    return bench_info_nce.providers(at)[OURS]


# What an operation's kernels are timed in, by how its name in tuning.py begins.
WORKLOADS: dict[str, Callable[[Setting], Provider]] = {
    "softmax_sweep": _shaping,
    "distribution_kl": _shaping,
    "info_nce": _contrast,
}


def neighbours(tile: Tile) -> Iterator[Tile]:
    def moved(tile: Tile, field: str, step: int) -> Tile | None:
        values = GRID[field]
        place = values.index(getattr(tile, field)) + step
        return tile._replace(**{field: values[place]}) if 0 <= place < len(values) else None

    for field in tile._fields:
        yield from filter(None, (moved(tile, field, step) for step in (1, -1)))
    for step in (1, -1):
        across = moved(tile, "block_b", step)
        yield from filter(None, [across and moved(across, "block_n", -step)])


def search(run: Provider, use: Callable[[Tile], None], tile: Tile, clock: WallClock | DeviceClock, until: float):
    """(best tile, its milliseconds, those of `tile`, how many were tried); `use` makes the kernels take a tile."""

    def timed(candidate: Tile) -> tuple[float, list[torch.Tensor]]:
        use(candidate)
        replay = captured(run) if isinstance(clock, DeviceClock) else run
        return warm(replay, clock, ROUNDS)["median_ms"], [t.clone() for t in replay()]

    best, (first_ms, truth), tried = tile, timed(tile), {tile}
    best_ms = first_ms
    while True:
        start, reach = best, best_ms * BETTER
        for candidate in neighbours(start):
            if candidate in tried or time.monotonic() > until:
                continue
            tried.add(candidate)
            try:
                milliseconds, results = timed(candidate)
            except Exception as error:
                print(f"  {tuple(candidate)}: {first_line(error)[:80]}", file=sys.stderr)
                continue
            if milliseconds < reach and difference(results, truth) < SAME:
                best, best_ms, reach = candidate, milliseconds, milliseconds
        if best == start:
            return best, best_ms, first_ms, len(tried)


def tune(names: list[str], bands: list[int], base: Setting, clock: WallClock | DeviceClock, seconds: float) -> None:
    """Puts the best tiles into tuning.TILES. Later operations are timed with the tiles found for earlier ones."""
    number = chip(base.table(1))
    for name in names:
        old = tuning.TILES.get((name, number), tuning.DEFAULT[name])
        tuning.TILES[name, number] = {size: dict(tiles) for size, tiles in old.items()}
    todo = [
        (name, size, band)
        for name in names
        for size, tiles in tuning.TILES[name, number].items()
        for band in tiles
        if not bands or band in bands
    ]
    end = time.monotonic() + seconds
    for done, (name, size, band) in enumerate(todo):
        if (left := end - time.monotonic()) < 0:
            break
        until = time.monotonic() + left / (len(todo) - done)
        at = replace(base, dim=band, precision={4: "float32", 2: "bfloat16"}[size])
        run = next(build for prefix, build in WORKLOADS.items() if name.startswith(prefix))(at)
        tiles = tuning.TILES[name, number][size]
        found = tiles[band]
        try:
            use = partial(tiles.__setitem__, band)
            found, best_ms, first_ms, tried = search(run, use, found, clock, until)
            print(f"{name}, {size} bytes, d {band}: {first_ms:.4g} -> {best_ms:.4g} ms, {tried} tried", file=sys.stderr)
        finally:
            tiles[band] = found


def table(names: list[str], number: int) -> str:
    """Rows of tuning.TILES as Python, to paste."""
    lines = []
    for name in names:
        lines.append(f'    ("{name}", {number}): {{')
        for size, tiles in tuning.TILES[name, number].items():
            entries = ", ".join(f"{band}: Tile{tuple(tile)}" for band, tile in tiles.items())
            lines.append(f"        {size}: {{{entries}}},")
        lines.append("    },")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--only", nargs="+", choices=tuning.DEFAULT, default=list(tuning.DEFAULT), metavar="OPERATION")
    parser.add_argument("--bands", nargs="+", type=int, default=[], help="depths; default: all in tuning.py")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune.py: torch finds no CUDA device", file=sys.stderr)
        return 2
    clock = DeviceClock(torch.device("cuda"))
    base = replace(TINY if arguments.tiny else AMAZON_BOOK, device="cuda")
    try:
        tune(arguments.only, arguments.bands, base, clock, arguments.seconds)
    finally:
        print(f"# {torch.cuda.get_device_name(0)}, torch {torch.__version__}")
        print(table(arguments.only, chip(base.table(1))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
