"""Profiles as `prorec-fast profile` writes them, without a language model."""

from __future__ import annotations

from pathlib import Path

from prorec_fast.data import Dataset
from prorec_fast.data.jsonl import write_jsonl


def write_profiles(folder: Path, data: Dataset, *, count: int = 2, skip_users=(), skip_items=()) -> None:
    """`count` texts of every user and item that is not to be skipped."""
    lineage = {"split": data.split_hash, "model": "gpt-x", "prompt": "p", "settings": "s"}
    for side, number, skipped in (("user", data.num_users, skip_users), ("item", data.num_items, skip_items)):
        lines = (
            {"id": row, "profiles": [f"{side} {row} likes {k}" for k in range(count)], "lineage": lineage}
            for row in range(number)
            if row not in skipped
        )
        write_jsonl(folder / f"profiles_{side}s.jsonl.gz", lines)
