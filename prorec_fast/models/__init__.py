"""Recommender models of two kinds with one interface: see `Recommender`, `Discriminative` and `Generative`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Recommender
from .cvga import CVGA
from .discriminative import Discriminative
from .generative import Generative
from .l_diffrec import LDiffRec
from .lightgcn import LightGCN
from .lr_gccf import LRGCCF
from .mf import MF
from .mult_vae import MultVAE
from .simgcl import SimGCL

if TYPE_CHECKING:
    from prorec_fast.data import Dataset

__all__ = [
    "CVGA",
    "LRGCCF",
    "MF",
    "MODELS",
    "Discriminative",
    "Generative",
    "LDiffRec",
    "LightGCN",
    "MultVAE",
    "Recommender",
    "SimGCL",
    "build",
]

MODELS: dict[str, type[Recommender]] = {
    model.name: model for model in (LightGCN, LRGCCF, SimGCL, MF, MultVAE, CVGA, LDiffRec)
}


def build(name: str, data: Dataset, **options: Any) -> Recommender:
    """The model called `name` over `data`; `options` as its class takes them, and as `Recommender.config` gives them.

    Raises:
        ValueError: no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model: want one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](data, **options)
