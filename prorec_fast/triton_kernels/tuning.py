"""Tile sizes, frozen: data that benchmarks/tune.py prints and a person pastes. No program tunes while it runs."""

from __future__ import annotations

from typing import NamedTuple

BANDS = (32, 64, 128)  # depths of packed rows up to which an entry serves; the last one serves deeper rows too


class Tile(NamedTuple):
    block_b: int  # rows of the batch
    block_n: int  # columns: items, or the batch again
    num_warps: int
    num_stages: int
    cols: int = 128  # columns of deeper rows that a program holds at a time


# Where a chip is not listed below: small enough for the registers of every chip and the 99 KB of shared memory that all
# from 8.0 on have. Float32 rows (4 bytes) take three TF32 products, which hold their operands twice.
DEFAULT: dict[str, dict[int, dict[int, Tile]]] = {
    "softmax_sweep": {
        4: {32: Tile(64, 16, 4, 2, 64), 64: Tile(64, 16, 4, 2, 64), 128: Tile(64, 16, 4, 2, 64)},
        2: {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(64, 32, 4, 2, 64)},
    },
    "distribution_kl_user": {
        4: {32: Tile(32, 16, 4, 2, 64), 64: Tile(64, 16, 4, 2, 32), 128: Tile(64, 16, 4, 2, 32)},
        2: {32: Tile(64, 32, 4, 2), 64: Tile(64, 16, 4, 2), 128: Tile(64, 32, 4, 2, 64)},
    },
    "distribution_kl_item": {
        4: {32: Tile(32, 64, 4, 2, 64), 64: Tile(32, 32, 4, 2, 64), 128: Tile(16, 64, 4, 2, 32)},
        2: {32: Tile(32, 64, 4, 2), 64: Tile(32, 64, 4, 2), 128: Tile(32, 32, 4, 2, 64)},
    },
    "info_nce_rows": {
        4: {32: Tile(64, 32, 4, 2, 64), 64: Tile(64, 16, 4, 2, 64), 128: Tile(64, 32, 8, 2, 64)},
        2: {32: Tile(64, 64, 4, 2), 64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 8, 2)},
    },
    "info_nce_columns": {
        4: {32: Tile(64, 32, 4, 2, 64), 64: Tile(64, 16, 4, 2, 64), 128: Tile(64, 32, 8, 2, 64)},
        2: {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2)},
    },
}

# (operation, compute capability as 90 for 9.0) -> tiles as in DEFAULT.
TILES: dict[tuple[str, int], dict[int, dict[int, Tile]]] = {
    ("softmax_sweep", 90): {
        4: {32: Tile(64, 64, 4, 2, 64), 64: Tile(64, 32, 4, 2, 64), 128: Tile(64, 32, 4, 2, 64)},
        2: {32: Tile(64, 128, 4, 2), 64: Tile(64, 128, 4, 2), 128: Tile(64, 64, 4, 2)},
    },
    ("distribution_kl_user", 90): {
        4: {32: Tile(64, 32, 4, 2, 64), 64: Tile(64, 16, 4, 2, 64), 128: Tile(64, 16, 4, 2, 32)},
        2: {32: Tile(64, 32, 4, 2), 64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(64, 32, 4, 2, 64)},
    },
    ("distribution_kl_item", 90): {
        4: {32: Tile(64, 64, 4, 2, 64), 64: Tile(32, 64, 4, 2, 64), 128: Tile(16, 64, 4, 2, 32)},
        2: {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(32, 64, 4, 2)},
    },
}


def tile(op: str, chip: int, depth: int, itemsize: int = 4) -> Tile:
    """The tile of `op` on `chip` for packed rows of `depth` and of `itemsize` bytes an entry."""
    tiles = TILES.get((op, chip), DEFAULT[op])
    bands = tiles.get(itemsize, tiles[4])
    return bands[next((band for band in bands if depth <= band), max(bands))]
