"""Training objectives around a model: its own loss (`"none"`), ProMax and ProEx."""

from __future__ import annotations

from typing import Any

from .base import OWN_STATE, Framework, Objective, Plain
from .presets import PAPER, PRESETS, PUBLISHED_SETTINGS, RELEASED, Preset, get_preset
from .proex import ProEx
from .promax import ProMax

__all__ = [
    "FRAMEWORKS",
    "OWN_STATE",
    "PAPER",
    "PRESETS",
    "PUBLISHED_SETTINGS",
    "RELEASED",
    "Framework",
    "Objective",
    "Plain",
    "Preset",
    "ProEx",
    "ProMax",
    "build",
    "get_preset",
]

FRAMEWORKS: dict[str, type[Framework]] = {framework.name: framework for framework in (Plain, ProMax, ProEx)}


def build(name: str, **options: Any) -> Framework:
    """The framework called `name`; `options` as its class takes them, and as `Framework.config` gives them.

    Raises:
        ValueError: no such framework.
    """
    if name not in FRAMEWORKS:
        raise ValueError(f"framework: want one of {', '.join(FRAMEWORKS)}, got {name!r}")
    return FRAMEWORKS[name](**options)
