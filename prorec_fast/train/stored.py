"""A run folder's best weights, ready to rank with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .run_folder import CONFIG, HISTORY, WEIGHTS, RunError, read_json, read_weights

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.frameworks import Objective
    from prorec_fast.models import Recommender


@dataclass(frozen=True)
class StoredRun:
    """What `fit` left in a folder.

    Attributes:
        ranker: the model with the run's best weights, or where the framework has weights of its own, what it made of
            the model; in evaluation mode.
        data: the data set it was trained on.
        config: the settings.
        result: what `Run.summary` gave; None for a run that is not finished.
    """

    ranker: Recommender | Objective
    data: Dataset
    config: dict[str, Any]
    result: dict[str, Any] | None


def load_run(
    folder: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> StoredRun:
    """Reads a run folder that `fit(out=...)` or `prorec-fast train` wrote.

    Args:
        data: where the data set is now; None: where it was.

    Raises:
        RunError: the folder is not one, is damaged, or was trained on another split than the data's; or its framework
            ranks by profile vectors, and the data's are others.
        DataError: the data set cannot be loaded.
    """
    from prorec_fast import frameworks
    from prorec_fast.data import load
    from prorec_fast.frameworks import OWN_STATE
    from prorec_fast.models import build

    folder = Path(folder)
    config = read_json(folder / CONFIG)
    try:
        source, split, profiles = (config["data"][name] for name in ("source", "split", "profiles"))
        model_config = dict(config["model"])
        framework = config["framework"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / CONFIG}: not written by a training run") from error
    found = load(data or source)
    if found.split_hash != split:
        raise RunError(f"{folder}: trained on another split than {found.source} now holds; give its own with --data")
    weights = read_weights(folder)
    of_framework = any(name.startswith(OWN_STATE) for name in weights)
    if of_framework and found.profiles_hash != profiles:  # other frameworks rank by the model alone
        raise RunError(
            f"{folder}: ranks by other profile vectors than {found.source} now holds; give its own with --data"
        )
    model = build(model_config.pop("name"), found, **model_config).to(device)
    try:
        if of_framework:
            ranker = frameworks.build(**framework).bind(model, found)
            ranker.load_all_state(weights)
        else:
            ranker = model
            ranker.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{folder / WEIGHTS}: does not fit the model in {CONFIG}") from error
    result = read_json(folder / HISTORY)["result"] if (folder / HISTORY).exists() else None
    return StoredRun(ranker.eval(), found, config, result)
