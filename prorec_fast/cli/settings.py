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
from prorec_fast.frameworks import PUBLISHED_SETTINGS, Framework, Plain, get_preset
from prorec_fast.models import MODELS, Discriminative, Recommender, build
from prorec_fast.train import RunError
from prorec_fast.train.run_folder import CONFIG, read_json

# the presets' batches would leave the built-in set few steps an epoch, too few for a patience counted in epochs
SYNTHETIC_BATCH = {"interactions": 512, "users": 128}
# what a resumed run may be given anew; the place of the data only as long as its content is the same
MAY_CHANGE = ("data", "epochs", "patience", "device", "cuda_graph")
# a framework's own options; `temperature` is one of two
FRAMEWORK_OPTIONS = {
    "promax": ("sdr_weight", "s2dr_weight", "temperature", "teacher_temperature", "whitening", "warmup_epochs"),
    "proex": (
        "num_profiles", "num_environments", "alpha", "variance_weight", "align_weight", "regularization_weight",
        "regularization", "mixing", "temperature",
    ),
}  # fmt: skip
# an option that switches something off, how that is written, and the options that then have no effect
IDLE_OPTIONS = {
    ("mixing", False): ("--no-mixing", ("num_environments", "alpha", "variance_weight")),
    ("regularization_weight", 0): ("--regularization-weight 0", ("regularization",)),
}
_OPTIONS_OF_FRAMEWORKS = tuple(dict.fromkeys(name for names in FRAMEWORK_OPTIONS.values() for name in names))
# a command line's name of an argument that some models take
MODEL_OPTIONS = {
    "dim": "dim", "layers": "num_layers", "init_scale": "init_scale", "contrast_weight": "contrast_weight",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Everything `prorec-fast train` was asked for; None is left to the preset, or to the model."""

    data: str = SYNTHETIC
    model: str = "lightgcn"
    framework: list[str] | None = None
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
    contrast_weight: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def frameworks(self) -> tuple[str, ...]:
        """In the order given, each once; "both" is the base and ProMax."""
        chosen = self.framework
        if chosen is None:
            chosen = ["both"] if issubclass(MODELS[self.model], Discriminative) else ["none", "proex"]
        names = (name for one in chosen for name in (("none", "promax") if one == "both" else (one,)))
        return tuple(dict.fromkeys(names))

    def chosen(self, name: str) -> Any:
        """The option called `name`, from the preset where it was not given."""
        value, preset = getattr(self, name), get_preset(self.preset)
        if value is not None:
            return value
        if name == "batch_size":
            trains_on = MODELS[self.model].trains_on
            if self.data == SYNTHETIC:
                return SYNTHETIC_BATCH[trains_on]
            return preset.batch_size_for(trains_on)
        return getattr(preset, name)

    def build_model(self, data: Dataset, seed: int) -> Recommender:
        given = {argument: getattr(self, option) for option, argument in MODEL_OPTIONS.items()}
        options = {argument: value for argument, value in given.items() if value is not None}
        if self.model == "lightgcn":
            options["combine"] = get_preset(self.preset).combine
        return build(self.model, data, seed=seed, **options)

    def build_framework(self, name: str, data: Dataset) -> Framework:
        if name == "none":
            return Plain()
        own = {option: value for option, value in self.options.items() if option in FRAMEWORK_OPTIONS[name]}
        return replace(getattr(get_preset(self.preset), name), **PUBLISHED_SETTINGS[name].get(data.name, {}), **own)

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
        if option.name != "options" and getattr(arguments, option.name) is not None
    }
    options = {
        name: getattr(arguments, name) for name in _OPTIONS_OF_FRAMEWORKS if getattr(arguments, name) is not None
    }
    if arguments.resume:
        own = {**asdict(settings), **settings.options}
        for name, value in (given | options).items():
            if name not in MAY_CHANGE and value != own.get(name):
                raise RunError(
                    f"{_option(name)}: differs from the run in {arguments.out}; leave it out to resume that run"
                )
    settings = replace(settings, **given, options={**settings.options, **options})
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """Refuse options that would have no effect, and what does not fit together."""
    model = MODELS[settings.model]
    taken = signature(model).parameters
    for option, argument in MODEL_OPTIONS.items():
        if getattr(settings, option) is not None and argument not in taken:
            raise ValueError(f"{_option(option)}: has no effect with --model {settings.model}")
    if "promax" in settings.frameworks and not issubclass(model, Discriminative):
        advice = "try --framework none proex"
        raise ValueError(f"--framework: {settings.model} generates, and ProMax is not for such; {advice}")
    for option in settings.options:
        if not any(option in FRAMEWORK_OPTIONS.get(name, ()) for name in settings.frameworks):
            raise ValueError(f"{_option(option)}: has no effect with --framework {' '.join(settings.frameworks)}")
    for (switch, value), (off, idle) in IDLE_OPTIONS.items():
        if settings.options.get(switch) == value:
            for option in idle:
                if option in settings.options:
                    raise ValueError(f"{_option(option)}: has no effect with {off}")
    if len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"--seed: {settings.seeds} repeats a seed")


def _option(name: str) -> str:
    return "--" + {"seeds": "seed"}.get(name, name).replace("_", "-")


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
