"""`prorec-fast evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prorec_fast.train import RunError, evaluate, load_run
from prorec_fast.train.run_folder import WEIGHTS

from .report import merged_notes
from .settings import pick_device

if TYPE_CHECKING:
    import torch

# the same weights on the same device rank alike; another device may order near-equal scores otherwise
_SAME_DEVICE_TOLERANCE = 1e-6
_OTHER_DEVICE_TOLERANCE = 1e-3


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Recompute the test metrics of every run in the folder; 1 if any differs from what was stored."""
    device = pick_device(arguments.device)
    rows = [_evaluate_one(folder, arguments.data, device) for folder in run_folders(Path(arguments.run))]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            metrics = ", ".join(
                f"{name} {row['test'][name]:.4f}" for name in row["test"] if "recall" in name or "ndcg" in name
            )
            print(f"{row['run']}: {metrics} ({row['verdict']})")
        for name, text in merged_notes(rows, "run").items():
            print(f"{name}: {text}")
    return 1 if any(row["verdict"] == "differs from the stored result" for row in rows) else 0


def run_folders(path: Path) -> list[Path]:
    """The folder itself, where it is a run, or those one level below that are."""
    if (path / WEIGHTS).exists():
        return [path]
    folders = sorted(file.parent for file in path.glob(f"*/{WEIGHTS}"))
    if not folders:
        raise RunError(f"{path}: no {WEIGHTS} there or one level below; give a folder that prorec-fast train wrote")
    return folders


def _evaluate_one(folder: Path, data_override: str | None, device: torch.device) -> dict[str, Any]:
    run = load_run(folder, data=data_override, device=device)
    test = evaluate(run.ranker, run.data, "test")
    if run.result is None:
        verdict = "the run is not finished, nothing to compare with"
    else:
        same_device = run.config["training"]["device"] == str(device)
        tolerance = _SAME_DEVICE_TOLERANCE if same_device else _OTHER_DEVICE_TOLERANCE
        same = all(abs(test[name] - value) <= tolerance for name, value in run.result["test"].items())
        verdict = "equal to the stored result" if same else "differs from the stored result"
    return {"run": str(folder), "data": run.data.name, "notes": run.config["notes"], "test": test, "verdict": verdict}
