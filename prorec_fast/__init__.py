"""Compiled kernels and trainers for recommender systems that learn from LLM-written profiles.

Importing this package imports nothing but its version; each name is loaded on first use.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("prorec-fast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_SUBMODULES = ("data", "frameworks", "library", "losses", "models", "profiles", "reference", "retrieval", "train")
_HOMES = {
    "BipartiteGraph": "graph",
    "propagate": "graph",
    "topk": "ranking",
    "ranking_metrics": "ranking",
    "sample_negatives": "sampling",
    "show_backends": "backends",
    "fit": "train",
}

__all__ = ["__version__", *_SUBMODULES, *_HOMES]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"prorec_fast.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"prorec_fast.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'prorec_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
