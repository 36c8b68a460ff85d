"""What each module's `variants(chip)` lists: its kernels in the forms that are shipped, for compiling them without a
device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prorec_fast.triton_kernels.tuning import BANDS, Tile, tile

FLOATS = {"fp32": 4, "bf16": 2, "fp16": 2}  # Triton's names of the storage types, and their bytes


class Variant(NamedTuple):
    kernel: object  # a triton.jit function
    types: dict[str, str]  # of arguments that are not constants; the others are "*fp32" (names in _ptr) or "i32"
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 3


def shipped_tiles(op: str, chip: int) -> Iterator[tuple[str, int, Tile]]:
    """Storage type, packed depth and tile of every form of `op` on `chip`. Deeper rows than a program holds at a time
    loop over chunks: they are one form more."""
    for name, itemsize in FLOATS.items():
        for depth in (*BANDS, 2 * BANDS[-1]):
            size = tile(op, chip, depth, itemsize)
            if depth <= BANDS[-1] or size.cols >= BANDS[-1] or size != tile(op, chip, BANDS[-1], itemsize):
                yield name, depth, size


def pointers(name: str, *arguments: str) -> dict[str, str]:
    """Types of arguments that point to rows of the storage type `name`."""
    return dict.fromkeys(arguments, "*" + name)


def precision(name: str) -> str:
    """The precision of products of rows of the storage type `name`, where TF32 is not allowed for float32."""
    return "tf32x3" if name == "fp32" else "tf32"
