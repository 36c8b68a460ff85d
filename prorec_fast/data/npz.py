"""Folders of `interactions.npz` and any `profiles_*.npz` and `profiles_*.safetensors`. Nothing in them is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from .dataset import SPLITS, Dataset, checked_interactions, checked_profiles
from .errors import DataError
from .profile_tensors import read_profile_tensors

INTERACTIONS = "interactions.npz"
Pair = tuple[Tensor, Tensor]  # users', items'


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable .npz of plain arrays ({reason})") from error


def _shape(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[int, int]:
    shape = arrays.get("shape")
    if shape is None:
        raise DataError(f"{path}: no array 'shape' = [users, items]")
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 1).any() or (shape > 2**31 - 1).any():
        raise DataError(f"{path}: 'shape' must be two positive integers below 2^31, got {shape.tolist()}")
    return int(shape[0]), int(shape[1])


def _archived_profiles(path: Path, num_users: int, num_items: int) -> tuple[list[Pair], str]:
    arrays = read_arrays(path)
    if "items" not in arrays:
        raise DataError(f"{path}: no array 'items' [{num_items}, t]")
    items = checked_profiles(arrays["items"], num_items, f"{path}: items")
    # some sets carry an empty table where the other one is meant
    present = [key for key in ("users", "users_item_mean") if key in arrays and arrays[key].shape[:1] != (0,)]
    user_key = present[0] if present else None
    if user_key is None:
        raise DataError(f"{path}: no array 'users' [{num_users}, t]")
    users = checked_profiles(arrays[user_key], num_users, f"{path}: {user_key}")
    if users.shape[1] != items.shape[1]:
        raise DataError(f"{path}: users are {users.shape[1]}-d and items {items.shape[1]}-d; both must share one space")
    note = f"{path.name} ({items.shape[1]}-d"
    has_text = arrays.get("user_has_text")
    if user_key == "users_item_mean":
        note += "; users: mean of their training items"
    elif has_text is not None and has_text.shape == (num_users,) and not has_text.all():
        note += f"; {100 * float(has_text.mean()):.0f} % of users have a text, the others their training items' mean"
    return [(users, items)], note + ")"


def _profiles(path: Path, data: Dataset) -> tuple[list[Pair], str]:
    """The pairs of tables in a file, and where they came from."""
    if path.suffix == ".npz":
        return _archived_profiles(path, data.num_users, data.num_items)
    vectors = read_profile_tensors(path, num_users=data.num_users, num_items=data.num_items)
    vectors.check_split(data.split_hash, str(path))
    return list(zip(vectors.users, vectors.items, strict=True)), f"{path.name} ({vectors.provenance_in(path.parent)})"


def load_npz_folder(folder: Path, *, profiles: bool = True) -> Dataset:
    """Read `interactions.npz` and, unless `profiles` is false, the profiles beside it.

    `interactions.npz`: `shape` = [users, items] and, for each split of train, valid, test and optionally
    train_enriched, `<split>_indptr` [users + 1] and `<split>_indices`: CSR rows, sorted, without repeats.
    `profiles_*.npz`: float `items` [items, t] and `users` [users, t]. `profiles_*.safetensors`: float `items`
    [K, items, t] and `users` [K, users, t] (see `profile_tensors`). Files come by name, and the first pair of tables in
    the first of them is the main one.

    Raises:
        DataError: naming the file and the problem; also where profile texts were written from another split.
    """
    path = folder / INTERACTIONS
    arrays = read_arrays(path)
    num_users, num_items = _shape(arrays, path)
    splits = {}
    for split in (*SPLITS, "train_enriched"):
        keys = (f"{split}_indptr", f"{split}_indices")
        missing = [key for key in keys if key not in arrays]
        if split == "train_enriched" and len(missing) == 2:
            continue
        if missing:
            raise DataError(f"{path}: no array '{missing[0]}'")
        splits[split] = checked_interactions(arrays[keys[0]], arrays[keys[1]], num_users, num_items, f"{path}: {split}")
    data = Dataset(name=folder.name, source=str(folder), num_users=num_users, num_items=num_items, **splits)
    files = sorted(file for file in folder.glob("profiles_*") if file.suffix in (".npz", ".safetensors"))
    if not files or not profiles:
        return data
    found = [_profiles(file, data) for file in files]
    main, *further = [pair for pairs, _ in found for pair in pairs]
    return replace(
        data,
        user_profiles=main[0],
        item_profiles=main[1],
        further_profiles=tuple(further),
        provenance=", ".join(note for _, note in found),
    )
