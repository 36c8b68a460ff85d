"""What a run leaves on disk. Every file is replaced in one step, so a run killed at any moment can be continued.

config.json           settings, data fingerprint, versions
history.json          one record per epoch, and the result once there is one
weights.safetensors   the best weights so far
state.safetensors     all that continuing needs, in one file: weights, best weights, Adam's moments, progress
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from prorec_fast._files import write_atomically

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
CONFIG = "config.json"
HISTORY = "history.json"

_MAY_DIFFER = {"data": {"name", "source"}, "training": {"epochs", "patience", "device", "cuda_graph"}}


class RunError(ValueError):
    """A run folder that cannot be used; the message says why and what to do."""


@dataclass
class Progress:
    """Where a run stands; everything but tensors, and all of it plain values.

    Attributes:
        epoch: epochs done.
        best_epoch: the epoch, counted from 1, with the best validation value; 0 before the first evaluation.
        since_best: evaluations since then.
        history: one record per epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; is {path.parent} a run folder?") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; is {path.parent} a run folder?") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata))


def read_weights(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The best weights of a run, as a state dictionary on the CPU.

    Raises:
        RunError: missing or damaged.
    """
    return _read_tensors(Path(folder) / WEIGHTS)


class RunFolder:
    """Writes and reads the files of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, config: Mapping[str, Any], *, resume: bool) -> bool:
        """Make the folder and write the settings; True if a stored state is there to continue from.

        Raises:
            RunError: the folder holds a run and `resume` is false, or the stored run had other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made ({error.strerror})") from error
        if (self.path / STATE).exists():
            if not resume:
                raise RunError(f"{self.path}: already holds a run; resume it or choose another folder")
            _require_equal_settings(read_json(self.path / CONFIG), config, self.path / CONFIG)
            write_json(self.path / CONFIG, config)
            return True
        write_json(self.path / CONFIG, config)
        return False

    def save_state(
        self, progress: Progress, model: Mapping[str, Tensor], best: Mapping[str, Tensor], adam: Mapping[int, Any]
    ) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in model.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for index, moments in adam.items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        _write_tensors(self.path / STATE, tensors, {"progress": json.dumps(asdict(progress))})

    def load_progress(self) -> Progress:
        """How far the stored run came, without reading its tensors; a fresh one where nothing is stored."""
        if not (self.path / STATE).exists():
            return Progress()
        with _opened(self.path / STATE) as file:
            metadata = file.metadata() or {}
        try:
            return Progress(**json.loads(metadata["progress"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path / STATE}: holds no readable progress; start again elsewhere") from error

    def load_state(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """(progress, weights, best weights, Adam's state by parameter index), as `save_state` was given them."""
        progress, tensors = self.load_progress(), _read_tensors(self.path / STATE)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        adam: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["adam"].items():
            index, _, name = key.partition(".")
            adam.setdefault(int(index), {})[name] = tensor
        return progress, parts["model"], parts["best"], adam

    def save_weights(self, best: Mapping[str, Tensor]) -> None:
        _write_tensors(self.path / WEIGHTS, best, {"format": "pt"})

    def save_history(self, progress: Progress, result: Mapping[str, Any] | None) -> None:
        write_json(self.path / HISTORY, {"epochs": progress.history, "result": result})


def _require_equal_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue a run under settings that change what its epochs compute."""
    plain = json.loads(json.dumps(wanted))
    for section in ("data", "model", "framework", "training"):
        before, after = stored.get(section, {}), plain[section]
        for key in sorted((before.keys() | after.keys()) - _MAY_DIFFER.get(section, set())):
            if before.get(key) != after.get(key):
                raise RunError(
                    f"{path}: this run has {section} {key} {before.get(key)!r}, not {after.get(key)!r}; resume it with "
                    "its own settings or choose another folder"
                )
