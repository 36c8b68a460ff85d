"""`enriched.npz`: the training interactions with others added, and where each of these came from."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prorec_fast._files import replaced_atomically, tsv_line, write_atomically

from .dataset import Dataset, Interactions, checked_interactions
from .errors import DataError
from .npz import read_arrays

if TYPE_CHECKING:
    from prorec_fast.retrieval import Enrichment

ENRICHED = "enriched.npz"
SOURCES = ("profile", "llm")  # chosen by its rank among the candidates, or by a language model
_FORMAT = 1
_ADDED = {"user": "i", "item": "i", "rank": "i", "cosine": "f", "similar": "i", "nearest": "i", "source": "U"}


def save_enrichment(
    path: str | os.PathLike[str], data: Dataset, enrichment: Enrichment, how: Mapping[str, Any]
) -> None:
    """Write an enrichment of the training interactions of `data`, in one step.

    The file has CSR rows `train_enriched_indptr` and `train_enriched_indices`, `split` (the hash of the interactions
    that they were made from), `how` (JSON), and for each of the n added pairs `added_user`, `added_item`, `added_rank`
    (place among the user's candidates by profile, from 1), `added_cosine`, `added_similar` (how many similar users have
    the item), `added_nearest` (the most similar one that has it) and `added_source` ("profile" or "llm"): users
    ascending, a user's items in the order they were chosen in.

    Args:
        how: plain values that say how it was made: "num_similar" and, where a language model chose, "rerank" with
            "model" and "without" (how many users its answers left without new interactions) are read again.
    """
    indptr, indices = (part.cpu().numpy() for part in enrichment.graph.csr())
    arrays = {
        "format": np.array(_FORMAT),
        "split": np.array(data.split_hash),
        "how": np.array(json.dumps(how, ensure_ascii=False)),
        "train_enriched_indptr": indptr,
        "train_enriched_indices": indices,
    }
    columns = {
        "user": enrichment.user.int(),
        "item": enrichment.item.int(),
        "rank": enrichment.rank.int(),
        "cosine": enrichment.cosine.float(),
        "similar": enrichment.votes.int(),
        "nearest": enrichment.nearest.int(),
    }
    arrays |= {f"added_{name}": column.cpu().numpy() for name, column in columns.items()}
    arrays["added_source"] = np.array(SOURCES)[enrichment.reranked.cpu().numpy().astype(np.int64)]
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_atomically(Path(path), packed.getvalue())


def with_enrichment(data: Dataset, path: str | os.PathLike[str]) -> Dataset:
    """`data` with the enrichment that `save_enrichment` wrote to `path`.

    Raises:
        DataError: naming the file: it was made from another split, lacks a training interaction, is malformed, or
            `data` has an enrichment already, and nothing says which one counts.
    """
    path = Path(path)
    if data.train_enriched is not None:
        raise DataError(f"{path}: {data.name} has an enrichment of its own already; remove one of the two")
    arrays = read_arrays(path)
    wanted = ("format", "split", "how", "train_enriched_indptr", "train_enriched_indices")
    for name in (*wanted, *(f"added_{name}" for name in _ADDED)):
        if name not in arrays:
            raise DataError(f"{path}: no array '{name}'; `prorec-fast retrieve` makes the file anew")
    if arrays["format"].shape != () or arrays["format"] != _FORMAT:
        raise DataError(
            f"{path}: format {arrays['format']}, this is for {_FORMAT}; `prorec-fast retrieve` makes it anew"
        )
    if str(arrays["split"]) != data.split_hash:
        raise DataError(
            f"{path}: made from other interactions, or another split of them, than {data.name} holds now; "
            "make it anew with `prorec-fast retrieve`, or remove it"
        )
    rows = checked_interactions(
        arrays["train_enriched_indptr"],
        arrays["train_enriched_indices"],
        data.num_users,
        data.num_items,
        f"{path}: train_enriched",
    )
    _check_added(arrays, data, rows, path)
    return replace(data, train_enriched=rows, enriched_by=f"{path.name}: {_words(arrays, path)}")


def write_enrichment_table(
    path: str | os.PathLike[str], enrichment: Enrichment, user_ids: Sequence[str], item_ids: Sequence[str]
) -> None:
    """The added pairs as tab-separated lines, by the user's own ids: user, item, rank, cosine, how many similar users
    have the item, the most similar of them, source."""
    columns = (
        [user_ids[user] for user in enrichment.user.tolist()],
        [item_ids[item] for item in enrichment.item.tolist()],
        enrichment.rank.tolist(),
        [f"{cosine:.6f}" for cosine in enrichment.cosine.tolist()],
        enrichment.votes.tolist(),
        [user_ids[user] for user in enrichment.nearest.tolist()],
        [SOURCES[reranked] for reranked in enrichment.reranked.tolist()],
    )
    with replaced_atomically(Path(path)) as file:
        file.write(tsv_line(("user", "item", "rank", "cosine", "similar_users", "nearest_user", "source")))
        file.writelines(tsv_line(row) for row in zip(*columns, strict=True))


def _check_added(arrays: Mapping[str, np.ndarray], data: Dataset, rows: Interactions, path: Path) -> None:
    """Requires the enriched rows to be those of training and the added pairs, and nothing else."""
    shape = arrays["added_user"].shape
    for name, kind in _ADDED.items():
        array = arrays[f"added_{name}"]
        if array.ndim != 1 or array.shape != shape or array.dtype.kind != kind:
            raise DataError(
                f"{path}: added_{name}: expected {shape[:1]} entries as added_user, got {array.dtype} {array.shape}"
            )
    before, after = (_keys(split, data.num_items) for split in (data.train, rows))
    lost = before[~np.isin(before, after, assume_unique=True)]
    if lost.size:
        user, item = divmod(int(lost[0]), data.num_items)
        raise DataError(f"{path}: train_enriched lacks item {item} of user {user}, a training interaction")
    named = np.sort(arrays["added_user"].astype(np.int64) * data.num_items + arrays["added_item"])
    if not np.array_equal(named, after[~np.isin(after, before, assume_unique=True)]):
        raise DataError(f"{path}: added_user and added_item are not the pairs that train_enriched adds to training")


def _keys(split: Interactions, num_items: int) -> np.ndarray:
    """int64, ascending: a number for each interaction."""
    users, items = split.edges()
    return (users * num_items + items).numpy()


def _words(arrays: Mapping[str, np.ndarray], path: Path) -> str:
    try:
        how = json.loads(str(arrays["how"]))
        words = f"items of the {how['num_similar']} users most similar by profile, within each user's sparsity budget, "
        if how.get("rerank") is None:
            words += "no LLM re-ranking"
        else:
            words += f"re-ranked by {how['rerank']['model']}"
            if how["rerank"]["without"]:
                words += f" ({how['rerank']['without']} users without a valid answer got none)"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: 'how' does not say how it was made ({error})") from error
    return f"{words}, {arrays['added_user'].size} added"
