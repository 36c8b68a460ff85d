"""The four trainings, ours and the baseline's: what they are, their data, and one run of each."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baseline.evaluation import Evaluation
from baseline.lightgcn import LightGCN, ProExLightGCN, ProMaxLightGCN
from baseline.loop import train
from baseline.mult_vae import MultVAE
from sizes import AMAZON_BOOK, TINY
from torch import nn

import prorec_fast
from prorec_fast.data import Dataset
from prorec_fast.data.dataset import Interactions
from prorec_fast.data.synthetic import SyntheticConfig, make_synthetic
from prorec_fast.frameworks import PUBLISHED_SETTINGS, RELEASED, Framework, Plain, ProEx, ProMax
from prorec_fast.models import Recommender

LAYERS = 3
TIMED = 3  # epochs of a baseline that is only timed


class TimeIsUp(Exception):
    """The training ran out of the time that it was given."""


@dataclass(frozen=True)
class Training:
    """One of them.

    Attributes:
        model, framework: ours.
        baseline: the same training in plain PyTorch.
        prepare: the data set with what is made once for it and not for a training, as its own, and nothing else.
    """

    model: Callable[[Dataset], Recommender]
    framework: Callable[[Dataset], Framework]
    baseline: Callable[[Dataset, Recommender, Framework], nn.Module]
    prepare: Callable[[Dataset], Dataset]

    def warmup_epochs(self, data: Dataset) -> int:
        """How many epochs leave a loss out at first."""
        return getattr(self.framework(data), "warmup_epochs", 0)


def _lightgcn(data: Dataset) -> Recommender:
    return prorec_fast.models.LightGCN(data, dim=AMAZON_BOOK.dim, num_layers=LAYERS)


def _mult_vae(data: Dataset, model: Recommender, framework: Framework) -> nn.Module:
    names = ("dim", "hidden_dim", "dropout", "anneal_cap", "anneal_steps")
    return MultVAE(data, **{name: model.config()[name] for name in names})


def _promax(data: Dataset) -> Framework:
    # The contrast from the start swamps BPR: see ProMax.warmup_epochs.
    return ProMax(whitening="joint", warmup_epochs=40, **PUBLISHED_SETTINGS["promax"].get(data.name, {}))


def _without_profiles(data: Dataset) -> Dataset:
    return replace(data, user_profiles=None, item_profiles=None, further_profiles=(), provenance="not used")


def _with_enriched_graph(data: Dataset) -> Dataset:
    data = data if data.has_profiles else data.with_cooccurrence_profiles()
    indptr, indices = (part.numpy() for part in data.enriched_graph.csr())
    return replace(data, train_enriched=Interactions(indptr, indices))


def _with_profiles(data: Dataset) -> Dataset:
    users, items, provenance = data.profiles_for(ProEx().num_profiles)
    (user, item), *further = zip(users, items, strict=True)
    return replace(data, user_profiles=user, item_profiles=item, further_profiles=tuple(further), provenance=provenance)


TRAININGS = {
    "lightgcn": Training(
        _lightgcn, lambda data: Plain(), lambda data, model, _: LightGCN(data, model.dim, LAYERS), _without_profiles
    ),
    "promax": Training(
        _lightgcn, _promax, lambda data, model, f: ProMaxLightGCN(data, model.dim, LAYERS, f), _with_enriched_graph
    ),
    "proex": Training(
        _lightgcn, lambda data: ProEx(**PUBLISHED_SETTINGS["proex"].get(data.name, {})),
        lambda data, model, f: ProExLightGCN(data, model.dim, LAYERS, f), _with_profiles,
    ),
    "mult_vae": Training(prorec_fast.models.MultVAE, lambda data: Plain(), _mult_vae, _without_profiles),
}  # fmt: skip


def dataset(name: str, tiny: bool) -> Dataset:
    """For the training `name`: the folder PROREC_FAST_BENCH_DATA, or where there are several sets in it its
    amazon_book; else synthetic of Amazon-Book's size."""
    folder = os.environ.get("PROREC_FAST_BENCH_DATA")
    if tiny or not folder:
        return TRAININGS[name].prepare(_synthetic(tiny))
    one_of_several = Path(folder, "amazon_book")
    return TRAININGS[name].prepare(prorec_fast.data.load(one_of_several if one_of_several.is_dir() else folder))


def _synthetic(tiny: bool) -> Dataset:
    at = TINY if tiny else AMAZON_BOOK
    config = SyntheticConfig(num_users=at.num_users, num_items=at.num_items)
    interactions, profiles = make_synthetic(config)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "synthetic")
        place.mkdir()
        np.savez(place / "interactions.npz", **interactions)
        np.savez(place / "profiles_synthetic.npz", **profiles)
        return prorec_fast.data.load(place)


def save(data: Dataset, folder: Path) -> Path:
    """Writes a data set into `folder`, for `prorec_fast.data.load`; what it was named after is a folder in there."""
    place = folder / data.name
    place.mkdir()
    splits = {name: getattr(data, name) for name in ("train", "valid", "test", "train_enriched")}
    arrays = {
        f"{name}_{key}": getattr(rows, key)
        for name, rows in splits.items()
        if rows is not None
        for key in ("indptr", "indices")
    }
    np.savez(place / "interactions.npz", shape=np.array([data.num_users, data.num_items]), **arrays)
    for number, (users, items) in enumerate(data.profile_pairs):
        np.savez(place / f"profiles_{number:02d}.npz", users=users.numpy(), items=items.numpy())
    return place


_KEPT = ("epoch", "seconds", "valid_seconds")


class _Watch:
    """Collects the records of epochs, until the time is up."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds, self.before_mib = time.perf_counter(), seconds, peak_mib()
        self.records: list[dict[str, Any]] = []

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        self.records.append({key: value for key, value in record.items() if key in _KEPT})
        if time.perf_counter() - self.start > self.seconds:
            raise TimeIsUp

    def found(self, device: str, **result: Any) -> dict[str, Any]:
        """One run: its records, what came of it, and how much memory it took."""
        memory = {"before_mib": self.before_mib, "peak_mib": peak_mib()}
        if device == "cuda":
            memory["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
        nothing = {"stopped": "time", "best_epoch": None, "test": None, "start_to_test_s": None}
        return {"records": self.records, **nothing, **result, **memory}

    def result(self, stopped: str, best_epoch: int, test: dict[str, float]) -> dict[str, Any]:
        whole = time.perf_counter() - self.start
        return {"stopped": stopped, "best_epoch": best_epoch, "test": test, "start_to_test_s": whole}


def peak_mib() -> float | None:
    """The most memory that this process has had; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)


def train_ours(name: str, data: Dataset, *, device: str, seconds: float, epochs: int) -> dict[str, Any]:
    training, watch = TRAININGS[name], _Watch(seconds)
    model, framework = training.model(data), training.framework(data)
    try:
        run = prorec_fast.fit(model, data, framework, epochs=epochs, device=device, on_epoch=watch.on_epoch)
    except TimeIsUp:
        return watch.found(device)
    return watch.found(device, **watch.result(run.stopped, run.best_epoch, run.test))


def train_baseline(
    name: str, data: Dataset, *, device: str, seconds: float, epochs: int, timed: bool
) -> dict[str, Any]:
    """With `timed`, the epochs need not make a training: behind `epochs` of warm-up come as many with every loss, and
    no test unless validation ended it."""
    training, watch = TRAININGS[name], _Watch(seconds)
    torch.manual_seed(0)
    np.random.seed(0)
    ours = training.model(data)
    model = training.baseline(data, ours, training.framework(data))
    warm_up, numbers = training.warmup_epochs(data), range(epochs)
    if timed and epochs <= warm_up:
        numbers = itertools.chain(numbers, range(warm_up, warm_up + epochs))
    try:
        end = train(
            model, data, epochs=numbers, batch_size=RELEASED.batch_size_for(ours.trains_on),
            lr=RELEASED.lr, eval_every=RELEASED.eval_every, patience=RELEASED.patience, device=device,
            on_epoch=watch.on_epoch,
        )  # fmt: skip
    except TimeIsUp:
        return watch.found(device)
    if timed and end["stopped"] != "patience":
        return watch.found(device, stopped="timed")
    test = Evaluation(data, "test", torch.device(device))(model)
    return watch.found(device, **watch.result(**end, test=test))
