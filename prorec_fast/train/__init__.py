"""Training, early stopping, full-ranking evaluation and run folders."""

from __future__ import annotations

from .evaluation import evaluate
from .loop import Run, TrainingError, fit
from .run_folder import RunError, RunFolder, read_weights

__all__ = ["Run", "RunError", "RunFolder", "TrainingError", "evaluate", "fit", "read_weights"]
