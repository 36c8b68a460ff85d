"""Training, early stopping, full-ranking evaluation and run folders."""

from __future__ import annotations

from .evaluation import evaluate
from .loop import Run, TrainingError, fit
from .run_folder import RunError, RunFolder, read_weights
from .stored import StoredRun, load_run

__all__ = [
    "Run",
    "RunError",
    "RunFolder",
    "StoredRun",
    "TrainingError",
    "evaluate",
    "fit",
    "load_run",
    "read_weights",
]
