"""`load`: from a name or a folder to a `Dataset`."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import npz, pickles
from .dataset import Dataset
from .enriched import ENRICHED, with_enrichment
from .errors import DataError

SYNTHETIC = "synthetic"
_SYNTHETIC_VERSION = 1  # a change of the generator needs a new number; a change of its settings is seen


def cache_dir() -> Path:
    """Where built-in sets are kept: $PRORECFAST_CACHE, else $XDG_CACHE_HOME/prorec_fast, else ~/.cache/prorec_fast."""
    explicit = os.environ.get("PRORECFAST_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "prorec_fast"


def _write_synthetic(folder: Path) -> None:
    """Fill `folder`, which must not exist, in one step: no reader ever sees half of it."""
    from .synthetic import make_synthetic

    interactions, profiles = make_synthetic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        np.savez_compressed(scratch / npz.INTERACTIONS, **interactions)
        np.savez_compressed(scratch / "profiles_synthetic.npz", **profiles)
        try:
            os.replace(scratch, folder)
        except OSError:
            # another process finished first; what it wrote is the same
            if not (folder / npz.INTERACTIONS).exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _synthetic_folder() -> Path:
    """A folder for this generator with these settings: a set that another version cached is not taken for this one."""
    from .synthetic import SyntheticConfig

    settings = hashlib.sha256(repr(SyntheticConfig()).encode()).hexdigest()[:8]
    return cache_dir() / f"{SYNTHETIC}-v{_SYNTHETIC_VERSION}-{settings}"


def _load_synthetic() -> Dataset:
    folder = _synthetic_folder()
    try:
        if not folder.exists():
            _write_synthetic(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the built-in set cannot be written there ({error.strerror}); set PRORECFAST_CACHE to a "
            "writable folder"
        ) from error
    try:
        data = npz.load_npz_folder(folder)
    except DataError as error:
        raise DataError(f"{error}; delete {folder} and it will be made again") from error
    return replace(
        data,
        name=SYNTHETIC,
        source=SYNTHETIC,
        provenance="synthetic: a noisy linear image of the latent tastes the interactions were drawn from",
    )


def load(path_or_name: str | os.PathLike[str] = SYNTHETIC, *, profiles: bool = True, enriched: bool = True) -> Dataset:
    """Load a data set.

    Args:
        path_or_name: "synthetic" (built in; made on first use and kept in the user's cache folder), or a folder with
            `interactions.npz` (see `npz.load_npz_folder`) or with `trn_mat.pkl` (see `pickles.load_pickle_folder`),
            and, where `prorec-fast retrieve` has been there, `enriched.npz` (see `enriched.save_enrichment`).
        profiles: false for the interactions alone, for what writes profiles: those in the folder may be of a split
            that is no more, which is an error otherwise.
        enriched: false to leave `enriched.npz` alone, for what writes it; it rests on profiles, and goes with them.

    Raises:
        DataError: no such data set, or one that is malformed; one line naming the file and the problem.
    """
    data = _load(path_or_name, profiles=profiles, enriched=enriched and profiles)
    if profiles:
        return data
    return replace(data, user_profiles=None, item_profiles=None, further_profiles=(), provenance="no profiles")


def _load(path_or_name: str | os.PathLike[str], *, profiles: bool, enriched: bool) -> Dataset:
    if str(path_or_name) == SYNTHETIC:
        return _load_synthetic()
    folder = Path(path_or_name).expanduser().absolute()
    if folder.is_file():
        raise DataError(f"{folder}: is a file; give the folder that holds it")
    if (folder / npz.INTERACTIONS).is_file():
        data = npz.load_npz_folder(folder, profiles=profiles)
    elif (folder / pickles.TRAIN).is_file():
        data = pickles.load_pickle_folder(folder)
    elif not folder.is_dir():
        raise DataError(f"{path_or_name}: no such folder, and the only built-in data set is '{SYNTHETIC}'")
    else:
        raise DataError(f"{folder}: holds neither {npz.INTERACTIONS} nor {pickles.TRAIN}")
    file = folder / ENRICHED
    return with_enrichment(data, file) if enriched and file.is_file() else data
