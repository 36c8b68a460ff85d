"""A data set small enough that training on it takes well under a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from prorec_fast.data import Dataset, Interactions, load
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


def with_gaps(full: Dataset) -> Dataset:
    """With one user, and one item, that training knows nothing of."""
    users, items = (t.numpy() for t in full.train.edges())
    kept = (users != 7) & (items != 3)
    degrees = np.bincount(users[kept], minlength=full.num_users)
    train = Interactions(np.append(0, degrees.cumsum()).astype(np.int64), items[kept].astype(np.int32))
    return replace(full, train=train)


def with_random_biases(model):
    """So that a bias left out is seen."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(std=0.3, generator=generator)
    return model
