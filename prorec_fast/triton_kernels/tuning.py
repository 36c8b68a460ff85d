"""Tile sizes, frozen: data that benchmarks/tune.py prints and a person pastes. Nothing is tuned while a program runs."""

from __future__ import annotations

from typing import NamedTuple

BANDS = (32, 64, 128)  # depths of packed rows up to which a row of the table serves; deeper rows come in chunks of 128


class Tile(NamedTuple):
    block_b: int  # rows of the batch
    block_n: int  # columns: items, or the batch again
    num_warps: int
    num_stages: int


# Where a chip is not listed below: small enough for the 99 KB of shared memory that every chip from 8.0 on has.
DEFAULT = {
    "row_sums": {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
    "distribution_kl_user": {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 8, 2)},
    "distribution_kl_item": {32: Tile(64, 64, 4, 2), 64: Tile(64, 64, 4, 2), 128: Tile(32, 64, 8, 2)},
}

# (operation, compute capability as 90 for 9.0) -> a tile for each band.
TILES: dict[tuple[str, int], dict[int, Tile]] = {}


def tile(op: str, chip: int, depth: int) -> Tile:
    """The tile of `op` on `chip` for packed rows of `depth`."""
    band = next((band for band in BANDS if depth <= band), BANDS[-1])
    return TILES.get((op, chip), DEFAULT[op])[band]
