"""A data set small enough that training on it takes well under a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prorec_fast.data import Dataset, load
from prorec_fast.data.synthetic import SyntheticConfig, make_synthetic

TINY = SyntheticConfig(
    num_users=60,
    num_items=50,
    num_facets=4,
    facet_concentration=0.25,
    profile_width=12,
    min_degree=8,
    max_degree=24,
    sharpness=6.0,
    profile_noise=0.5,
)


def write_tiny(folder: Path, *, profiles: bool = True) -> Path:
    """The tiny set in the npz layout; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    interactions, tables = make_synthetic(TINY)
    np.savez(folder / "interactions.npz", **interactions)
    if profiles:
        np.savez(folder / "profiles_tiny.npz", **tables)
    return folder


def tiny(folder: Path, *, profiles: bool = True) -> Dataset:
    return load(write_tiny(folder, profiles=profiles))
