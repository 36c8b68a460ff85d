"""A data folder with texts and reviews, made up, whose held-out reviews carry a word that must never reach a prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prorec_fast.data.jsonl import write_jsonl

CANARY = "xylophonecanary"
_WORDS = ("amber", "basalt", "cedar", "dune", "ember", "fjord", "garnet", "harbour", "jasmine", "kelp", "reef")


def make_folder(folder: Path, *, num_users: int = 20, num_items: int = 12, degree: int = 5, seed: int = 0) -> Path:
    """`degree` interactions of every user, the last two of them held out; reviews of all, keys "u-0" and "i-0"."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [rng.permutation(num_items)[:degree] for _ in range(num_users)]
    splits = {"train": slice(0, degree - 2), "valid": slice(degree - 2, degree - 1), "test": slice(degree - 1, degree)}
    arrays = {"shape": np.array([num_users, num_items])}
    reviews = []
    for name, part in splits.items():
        kept = [np.sort(row[part]) for row in rows]
        arrays[f"{name}_indptr"] = np.cumsum([0, *map(len, kept)])
        arrays[f"{name}_indices"] = np.concatenate(kept).astype(np.int32)
        for user, items in enumerate(kept):
            for item in items:
                words = " ".join(rng.choice(_WORDS, 12)) + ("" if name == "train" else f" {CANARY}")
                reviews.append({"user": user, "item": int(item), "text": words, "rating": int(rng.integers(1, 6))})
    np.savez(folder / "interactions.npz", **arrays)
    write_jsonl(folder / "items.jsonl.gz", (_node("i", row, rng, title=f"Item {row}") for row in range(num_items)))
    write_jsonl(folder / "users.jsonl.gz", ({"id": row, "key": f"u-{row}"} for row in range(num_users)))
    write_jsonl(folder / "reviews.jsonl.gz", reviews)
    return folder


def _node(kind: str, row: int, rng: np.random.Generator, **given: str) -> dict[str, object]:
    return {"id": row, "key": f"{kind}-{row}", "text": " ".join(rng.choice(_WORDS, 10)), **given}
