"""From a command line, and what a folder remembers of an earlier one, to the settings of a training."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from prorec_fast.data import Dataset
from prorec_fast.data.loading import SYNTHETIC
from prorec_fast.frameworks import PUBLISHED_WEIGHTS, Framework, Plain, get_preset
from prorec_fast.models import MODELS, Recommender, build
from prorec_fast.train import RunError
from prorec_fast.train.run_folder import CONFIG, read_json

# the presets' 4096 would leave the built-in set 5 steps an epoch, too few for a patience counted in epochs
SYNTHETIC_BATCH = 512
# what a resumed run may be given anew; the place of the data only as long as its content is the same
MAY_CHANGE = ("data", "epochs", "patience", "device", "cuda_graph")
_PROMAX_OPTIONS = ("sdr_weight", "s2dr_weight", "temperature", "teacher_temperature", "whitening", "warmup_epochs")


@dataclass(frozen=True)
class Settings:
    """Everything `prorec-fast train` was asked for; None is left to the preset."""

    data: str = SYNTHETIC
    model: str = "lightgcn"
    framework: str = "both"
    preset: str = "released"
    seeds: list[int] = field(default_factory=lambda: [0])
    device: str | None = None
    cuda_graph: bool | None = None
    epochs: int | None = None
    patience: int | None = None
    eval_every: int | None = None
    batch_size: int | None = None
    dim: int | None = None
    layers: int | None = None
    lr: float | None = None
    init_scale: float | None = None
    promax: dict[str, Any] = field(default_factory=dict)

    @property
    def frameworks(self) -> tuple[str, ...]:
        return ("none", "promax") if self.framework == "both" else (self.framework,)

    def chosen(self, name: str) -> Any:
        """The option called `name`, from the preset where it was not given."""
        value = getattr(self, name)
        if name == "batch_size" and value is None and self.data == SYNTHETIC:
            return SYNTHETIC_BATCH
        return getattr(get_preset(self.preset), name) if value is None else value

    def build_model(self, data: Dataset, seed: int) -> Recommender:
        preset = get_preset(self.preset)
        options: dict[str, Any] = {"dim": self.chosen("dim"), "init_scale": self.init_scale or 1.0}
        options |= {"num_layers": self.layers or preset.num_layers, "combine": preset.combine}
        taken = signature(MODELS[self.model]).parameters
        return build(self.model, data, seed=seed, **{name: options[name] for name in options if name in taken})

    def build_framework(self, name: str, data: Dataset) -> Framework:
        promax = replace(get_preset(self.preset).promax, **{**PUBLISHED_WEIGHTS.get(data.name, {}), **self.promax})
        return promax if name == "promax" else Plain()

    def training(self) -> dict[str, Any]:
        """The keyword arguments of `fit` that do not depend on the seed."""
        chosen = {name: self.chosen(name) for name in ("epochs", "patience", "eval_every", "batch_size", "lr")}
        return chosen if self.cuda_graph is None else {**chosen, "cuda_graph": self.cuda_graph}


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The settings for a command line; with --resume, those stored in --out, with `MAY_CHANGE` from the command line.

    Raises:
        ValueError: options that contradict each other.
        RunError: nothing to resume, or another setting than it has.
    """
    settings = Settings()
    if arguments.resume:
        if arguments.out is None:
            raise ValueError("--resume: say which run with --out DIR")
        if not (Path(arguments.out) / CONFIG).exists():
            raise RunError(f"{arguments.out}: no {CONFIG} there to resume from; leave --resume out to start a run")
        stored = read_json(Path(arguments.out) / CONFIG)
        try:
            settings = Settings(**stored["settings"])
        except (KeyError, TypeError) as error:
            raise RunError(f"{Path(arguments.out) / CONFIG}: not written by prorec-fast train") from error
    given = {
        option.name: getattr(arguments, option.name)
        for option in fields(Settings)
        if option.name != "promax" and getattr(arguments, option.name) is not None
    }
    promax = {name: getattr(arguments, name) for name in _PROMAX_OPTIONS if getattr(arguments, name) is not None}
    if arguments.resume:
        own = {**asdict(settings), **settings.promax}
        for name, value in (given | promax).items():
            if name not in MAY_CHANGE and value != own.get(name):
                option = "--" + {"seeds": "seed"}.get(name, name).replace("_", "-")
                raise RunError(f"{option}: differs from the run in {arguments.out}; leave it out to resume that run")
    settings = replace(settings, **given, promax={**settings.promax, **promax})
    taken = signature(MODELS[settings.model]).parameters
    if settings.layers is not None and "num_layers" not in taken:
        raise ValueError(f"--layers: {settings.model} has no layers")
    if settings.init_scale is not None and "init_scale" not in taken:
        raise ValueError(f"--init-scale: {settings.model} has no embedding tables")
    if settings.promax and settings.framework == "none":
        name = next(iter(settings.promax)).replace("_", "-")
        raise ValueError(f"--{name}: has no effect with --framework none")
    if len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"--seed: {settings.seeds} repeats a seed")
    return settings


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name, CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: no device is called {name!r}; try cpu or cuda") from error
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # which kind depends on what the build of PyTorch lacks
        raise ValueError(f"--device: {name} is not available here; try cpu") from error
    return device
