"""`prorec-fast evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prorec_fast import frameworks
from prorec_fast.data import load
from prorec_fast.frameworks import OWN_STATE
from prorec_fast.models import build
from prorec_fast.train import RunError, evaluate, read_weights
from prorec_fast.train.run_folder import CONFIG, HISTORY, WEIGHTS, read_json

from .report import merged_notes
from .settings import pick_device

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.frameworks import Objective
    from prorec_fast.models import Recommender

# the same weights on the same device rank alike; another device may order near-equal scores otherwise
_SAME_DEVICE_TOLERANCE = 1e-6
_OTHER_DEVICE_TOLERANCE = 1e-3


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Recompute the test metrics of every run in the folder; 1 if any differs from what was stored."""
    device = pick_device(arguments.device)
    rows = [_evaluate_one(folder, arguments.data, device) for folder in _run_folders(Path(arguments.run))]
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


def _run_folders(path: Path) -> list[Path]:
    if (path / WEIGHTS).exists():
        return [path]
    folders = sorted(file.parent for file in path.glob(f"*/{WEIGHTS}"))
    if not folders:
        raise RunError(f"{path}: no {WEIGHTS} there or one level below; give a folder that prorec-fast train wrote")
    return folders


def _evaluate_one(folder: Path, data_override: str | None, device: Any) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    try:
        source, fingerprint = config["data"]["source"], config["data"]["fingerprint"]
        model_config, trained_on = dict(config["model"]), config["training"]["device"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / CONFIG}: not written by a training run") from error
    data = load(data_override or source)
    if data.fingerprint != fingerprint:
        raise RunError(f"{folder}: trained on other data than {data.source} now holds; give the original with --data")
    model = build(model_config.pop("name"), data, **model_config)
    ranker = _with_weights(model.to(device), data, config["framework"], folder)
    test = evaluate(ranker, data, "test")
    result = read_json(folder / HISTORY)["result"] if (folder / HISTORY).exists() else None
    if result is None:
        verdict = "the run is not finished, nothing to compare with"
    else:
        tolerance = _SAME_DEVICE_TOLERANCE if trained_on == str(device) else _OTHER_DEVICE_TOLERANCE
        same = all(abs(test[name] - value) <= tolerance for name, value in result["test"].items())
        verdict = "equal to the stored result" if same else "differs from the stored result"
    return {"run": str(folder), "data": data.name, "notes": config["notes"], "test": test, "verdict": verdict}


def _with_weights(
    model: Recommender, data: Dataset, framework: dict[str, Any], folder: Path
) -> Recommender | Objective:
    """What the run's weights belong to: the model, or where the framework has weights of its own, its objective."""
    weights = read_weights(folder)
    try:
        if not any(name.startswith(OWN_STATE) for name in weights):
            model.load_state_dict(weights)
            return model
        objective = frameworks.build(**framework).bind(model, data)
        objective.load_all_state(weights)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{folder / WEIGHTS}: does not fit the model in {CONFIG}") from error
    return objective
