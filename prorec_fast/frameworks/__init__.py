"""Training objectives around a model: plain BPR (`"none"`) and ProMax."""

from __future__ import annotations

from .base import BPR, Framework, Objective
from .presets import PAPER, PRESETS, PUBLISHED_WEIGHTS, RELEASED, Preset, get_preset
from .promax import ProMax

__all__ = [
    "BPR",
    "FRAMEWORKS",
    "PAPER",
    "PRESETS",
    "PUBLISHED_WEIGHTS",
    "RELEASED",
    "Framework",
    "Objective",
    "Preset",
    "ProMax",
    "get_preset",
]

FRAMEWORKS: dict[str, type[Framework]] = {framework.name: framework for framework in (BPR, ProMax)}
