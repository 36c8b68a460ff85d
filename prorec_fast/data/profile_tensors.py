"""Files of several profile vectors of every user and item: `profiles_<name>.safetensors`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prorec_fast._checks import FLOAT_DTYPES

from .errors import DataError
from .jsonl import find_jsonl

LINEAGE = "lineage"  # the entry of the file's metadata
WHITENING = ("mean", "projection", "eigenvalues")


@dataclass(frozen=True, eq=False)
class ProfileVectors:
    """K vectors of every user and item, and where they came from.

    Attributes:
        users, items: float32 [K, M, t] and [K, N, t].
        user_has_text, item_has_text: bool [M] and [N]; false where there was no profile text and something stands in.
        lineage: plain values; `split` is the `Dataset.split_hash` of the training data that the texts were written
            from, absent where a file does not say.
        user_keys, item_keys: own ids by row; None where rows have no other names than their numbers.
        whitening: where the vectors are whitened, the state of the `retrieval.Whitening` that did it, which maps new
            rows alike.
    """

    users: Tensor
    items: Tensor
    user_has_text: Tensor
    item_has_text: Tensor
    lineage: Mapping[str, Any]
    user_keys: list[str] | None = None
    item_keys: list[str] | None = None
    whitening: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_profiles(self) -> int:
        return int(self.users.shape[0])

    @property
    def provenance(self) -> str:
        """In words, to be printed with every result that rests on the vectors."""
        lineage, (count, _, width) = self.lineage, self.users.shape
        words = [f"{count} profile{'s' * (count > 1)} of each user and item, {width}-d"]
        for verb, name in (("written by", "chat_models"), ("embedded by", "embed_model")):
            if lineage.get(name):
                given = lineage[name]
                words.append(f"{verb} {', '.join(map(str, given)) if isinstance(given, list) else given}")
        if self.whitening:
            words.append("whitened")
        if "split" not in lineage:
            words.append("from a split that the file does not name")
        for side, has_text in (("users", self.user_has_text), ("items", self.item_has_text)):
            without = int((~has_text).sum())
            if without:
                counts = lineage.get(side) or {}
                means = [f"{counts[key]} {text}" for key, text in STAND_INS[side].items() if counts.get(key)]
                words.append(f"{without} of {len(has_text)} {side} without a profile text: {', '.join(means) or '?'}")
        return "; ".join(words)

    def provenance_in(self, folder: Path) -> str:
        """`provenance`, and whether the folder's profile texts are other ones by now."""
        embedded = self.lineage.get("texts")
        stale = embedded is not None and embedded != text_digests(folder)
        return self.provenance + "; made of other texts than the folder now has: embed again" * stale

    def check_split(self, split_hash: str, where: str) -> None:
        """Refuses vectors of texts that were written from another training split than the data's; those whose file
        names none pass, and `provenance` says so.

        Raises:
            DataError: naming `where` and both splits.
        """
        split = self.lineage.get("split")
        if split is not None and split != split_hash:
            raise DataError(
                f"{where}: written from split {split[:12]}, and this data set is split {split_hash[:12]}: the texts "
                "may tell what is to be predicted; write profiles for this split, or move the file out of the folder"
            )


# What a row holds where there is no profile text: the lineage's counts by side, and in words.
STAND_INS = {
    "users": {"items_mean": "with their training items' mean", "none": "with zeros"},
    "items": {
        "description": "with the vector of their title and description",
        "readers_mean": "with their training users' mean",
        "none": "with zeros",
    },
}


def text_digests(folder: Path) -> dict[str, str]:
    """ "users" and "items" -> digest of the file of their profile texts, as far as there are such files."""
    paths = {side: find_jsonl(folder, f"profiles_{side}") for side in ("users", "items")}
    return {
        side: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for side, path in paths.items()
        if path is not None
    }


def read_profile_tensors(
    path: str | os.PathLike[str], *, num_users: int | None = None, num_items: int | None = None
) -> ProfileVectors:
    """The vectors of a file.

    Tensors `users` [K, M, t] and `items` [K, N, t] (float16, bfloat16, float32 or float64); optionally `user_has_text`
    [M] and `item_has_text` [N] (bool), `user_keys` and `item_keys` (uint8: a JSON list of strings in UTF-8) and
    `whitening.{mean,projection,eigenvalues}`. The metadata's entry `lineage`, where there is one, is a JSON object.

    Raises:
        DataError: naming the file and what is missing, damaged, of another shape or not finite.
    """
    path = Path(path)
    tensors, metadata = _opened(path)
    missing = [name for name in ("users", "items") if name not in tensors]
    if missing:
        raise DataError(f"{path}: no tensor '{missing[0]}' [K, {missing[0]}, t]")
    users, items = _table(tensors, "users", num_users, path), _table(tensors, "items", num_items, path)
    if users.shape[0] != items.shape[0] or users.shape[2] != items.shape[2]:
        raise DataError(
            f"{path}: users are {tuple(users.shape)} and items {tuple(items.shape)}; both want the same number of "
            "profiles in one space"
        )
    return ProfileVectors(
        users,
        items,
        _flags(tensors, "user_has_text", users.shape[1], path),
        _flags(tensors, "item_has_text", items.shape[1], path),
        _lineage(metadata, path),
        _keys(tensors, "user_keys", users.shape[1], path),
        _keys(tensors, "item_keys", items.shape[1], path),
        {name: tensors[f"whitening.{name}"] for name in WHITENING if f"whitening.{name}" in tensors},
    )


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable safetensors file ({reason})") from error


def _table(tensors: Mapping[str, Tensor], name: str, rows: int | None, path: Path) -> Tensor:
    table = tensors[name]
    if table.dtype not in FLOAT_DTYPES or table.dim() != 3 or 0 in table.shape:
        kind = str(table.dtype).removeprefix("torch.")
        raise DataError(f"{path}: {name}: want a floating tensor [K, {name}, t], got {kind} {tuple(table.shape)}")
    if rows is not None and table.shape[1] != rows:
        raise DataError(f"{path}: {name}: {table.shape[1]} rows, expected {rows}")
    table = table.float()
    for place, profiles in enumerate(table):
        finite = torch.isfinite(profiles).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise DataError(f"{path}: {name}: row {row} of profile {place} holds a value that is not finite")
    return table


def _flags(tensors: Mapping[str, Tensor], name: str, rows: int, path: Path) -> Tensor:
    flags = tensors.get(name)
    if flags is None:
        return torch.ones(rows, dtype=torch.bool)
    if flags.dtype != torch.bool or flags.shape != (rows,):
        raise DataError(f"{path}: {name}: want bool [{rows}], got {flags.dtype} {tuple(flags.shape)}")
    return flags


def _keys(tensors: Mapping[str, Tensor], name: str, rows: int, path: Path) -> list[str] | None:
    if name not in tensors:
        return None
    try:
        keys = json.loads(tensors[name].numpy().tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {name}: not a JSON list in UTF-8") from error
    if not isinstance(keys, list) or len(keys) != rows or not all(isinstance(key, str) for key in keys):
        raise DataError(f"{path}: {name}: want a JSON list of {rows} strings")
    return keys


def key_bytes(keys: list[str]) -> Tensor:
    """Own ids as `read_profile_tensors` wants them: the metadata of the format has no room for a million."""
    text = json.dumps(keys, ensure_ascii=False, separators=(",", ":")).encode()
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def _lineage(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if LINEAGE not in metadata:
        return {}
    try:
        lineage = json.loads(metadata[LINEAGE])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its lineage is no JSON ({error})") from error
    if not isinstance(lineage, dict) or not isinstance(lineage.get("split", ""), str):
        raise DataError(f"{path}: its lineage is no JSON object with a hash as 'split'")
    return lineage
