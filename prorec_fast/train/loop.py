"""The training loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prorec_fast.frameworks import RELEASED, Framework, Objective, Plain

from .evaluation import Evaluator
from .run_folder import WEIGHTS, Progress, RunFolder
from .step import TrainingStep, graphs_for

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.models import Recommender

MONITOR = "recall@20"


class TrainingError(RuntimeError):
    """Training that went wrong; the message says where and what to try."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        test, valid: metrics of the best weights, {"recall@20": ..., "ndcg@20": ..., ...}.
        history: one record per epoch: "epoch" (from 1), "seconds" (training alone), "loss" (their sum), "terms" (each
            weighted term's mean over the steps) and, where evaluated, "valid" and "valid_seconds".
        best_epoch: whose weights the model now has, counted from 1.
        epochs: how many were trained.
        seconds_per_epoch: mean training time of an epoch, evaluation not included.
        stopped: "patience" or "epochs".
        notes: what the result rests on beside the settings, in words.
        checkpoint: the file with the best weights; None for a run without a folder.
        config: every setting, as written to the run folder.
        objective: the trained model with what the framework adds to it, in evaluation mode; it ranks by
            `objective.representation()`.
    """

    test: dict[str, float]
    valid: dict[str, float]
    history: list[dict[str, Any]]
    best_epoch: int
    epochs: int
    seconds_per_epoch: float
    stopped: str
    notes: dict[str, str]
    checkpoint: Path | None
    config: dict[str, Any]
    objective: Objective

    def summary(self) -> dict[str, Any]:
        """The result as plain values."""
        fields = ("test", "valid", "best_epoch", "epochs", "seconds_per_epoch", "stopped")
        return {field: getattr(self, field) for field in fields}


def fit(
    model: Recommender,
    data: Dataset,
    framework: Framework | None = None,
    *,
    epochs: int = 1000,
    batch_size: int | None = None,
    lr: float = 1e-3,
    patience: int = 20,
    eval_every: int = 3,
    seed: int = 0,
    device: torch.device | str | None = None,
    cuda_graph: bool = True,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Run:
    """Train `model` in place with Adam, stop early on validation recall@20, and test the best weights.

    An epoch visits every training interaction once in random order, each with one fresh uniform negative, or, for a
    generative model, every user with training interactions. All its randomness comes from (`seed`, epoch): the same
    seed gives the same result, also across an interruption, and the caller's generators are left as they were. (The
    initial weights are the model's own `seed`.) The model is left in evaluation mode: nothing is dropped out any more.

    Args:
        model, data: of the same users and items.
        framework: the objective; None means the model's own loss.
        epochs: at most so many.
        batch_size: interactions a step, or users where the model trains on users; None means 4096 or 1024.
        lr: Adam's learning rate.
        patience: stop after this many evaluations without a better validation recall@20.
        eval_every: epochs from one validation to the next; the last epoch is always validated.
        device: where to train; None means where the model is.
        cuda_graph: on a CUDA device, capture the training step in a CUDA graph and replay it, where the model is
            `capturable` and the objective has a `phase`. If a capture fails, a warning is logged and training goes on
            without. Elsewhere it has no effect.
        out: a folder for the settings, the history, the weights and what resuming needs; nothing is written without.
        resume: continue the run in `out` from its last validation, if it got that far; `epochs`, `patience`,
            `device` and `cuda_graph` may differ from before, nothing else may.
        on_epoch: called after every epoch with its record (see `Run.history`).

    Raises:
        TypeError: framework is not an instance of one.
        ValueError: a setting out of range, a model of other sizes than the data, a split that is empty.
        RunError: a run folder that cannot be used.
        TrainingError: the loss is not finite.
    """
    batch_size = RELEASED.batch_size_for(model.trains_on) if batch_size is None else batch_size
    _check(model, data, epochs=epochs, batch_size=batch_size, lr=lr, patience=patience, eval_every=eval_every)
    if resume and out is None:
        raise ValueError("resume: needs out, the folder of the run to continue")
    framework = Plain() if framework is None else framework
    if not isinstance(framework, Framework):
        raise TypeError(f"framework: want an instance such as frameworks.ProEx(), got {framework!r}")
    if device is not None:
        model.to(device)
    target = model.device
    objective = framework.bind(model, data)
    config = {
        "data": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "split": data.split_hash,
            "profiles": data.profiles_hash,
        },
        "model": model.config(),
        "framework": framework.config(),
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "patience": patience,
            "eval_every": eval_every,
            "seed": seed,
            "device": str(target),
            "cuda_graph": cuda_graph,
        },
        "notes": dict(objective.notes),
        "versions": _versions(),
    }
    folder = None if out is None else RunFolder(out)
    trainer = _Trainer(objective, data, batch_size=batch_size, lr=lr, seed=seed, cuda_graph=cuda_graph)
    if folder is not None and folder.start(config, resume=resume):
        trainer.restore(folder)

    progress, validate = trainer.progress, Evaluator(data, "valid", target)
    cuda = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        while progress.epoch < epochs and progress.since_best < patience:
            record = trainer.train_epoch()
            if progress.epoch % eval_every == 0 or progress.epoch == epochs:
                start = time.perf_counter()
                record["valid"] = validate(objective)
                record["valid_seconds"] = time.perf_counter() - start
                trainer.note_validation(record["valid"])
                if folder is not None:
                    trainer.store(folder)
            if on_epoch is not None:
                on_epoch(record)

    objective.load_all_state(trainer.best)
    objective.eval()
    run = Run(
        test=Evaluator(data, "test", target)(objective),
        valid=progress.history[progress.best_epoch - 1]["valid"],
        history=progress.history,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        seconds_per_epoch=float(np.mean([record["seconds"] for record in progress.history])),
        stopped="patience" if progress.since_best >= patience else "epochs",
        notes=dict(objective.notes),
        checkpoint=None if folder is None else folder.path / WEIGHTS,
        config=config,
        objective=objective,
    )
    if folder is not None:
        folder.save_weights(trainer.best)
        folder.save_history(progress, run.summary())
    return run


def _check(model: Recommender, data: Dataset, **settings: float) -> None:
    for name, value in settings.items():
        integer = name != "lr"
        if isinstance(value, bool) or not isinstance(value, int if integer else int | float) or not value > 0:
            raise ValueError(f"{name}: want a positive {'integer' if integer else 'number'}, got {value!r}")
    if (model.num_users, model.num_items) != (data.num_users, data.num_items):
        raise ValueError(
            f"model: made for {model.num_users} users and {model.num_items} items, "
            f"but {data.name} has {data.num_users} and {data.num_items}"
        )
    for split in ("valid", "test"):
        if getattr(data, split).num_edges == 0:
            raise ValueError(f"{data.name}: the {split} split is empty")


def _versions() -> dict[str, str]:
    import prorec_fast

    return {"prorec_fast": prorec_fast.__version__, "torch": torch.__version__, "numpy": np.__version__}


def _epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """A 63-bit seed for one epoch and one use of it; distinct inputs give unrelated streams."""
    state = np.random.SeedSequence([abs(seed), int(seed < 0), epoch, stream]).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # NumPy 1 cannot shift its own uint64 by a Python integer


class _Trainer:
    """One model's training state: its progress, its best weights and its optimiser."""

    def __init__(
        self,
        objective: Objective,
        data: Dataset,
        *,
        batch_size: int,
        lr: float,
        seed: int,
        cuda_graph: bool,
    ) -> None:
        self.objective, self.batch_size, self.lr, self.seed = objective, batch_size, lr, seed
        model = objective.model
        self.device = model.device
        edges = data.train.edges()
        visited = edges if model.trains_on == "interactions" else (edges[0].unique(),)
        self.visited = torch.stack(visited).to(self.device)
        fused, capturable = self.device.type in ("cpu", "cuda"), self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(objective.all_parameters(), lr=lr, fused=fused, capturable=capturable)
        graphs = graphs_for(self.device) if cuda_graph and model.capturable else None
        self.step = TrainingStep(objective, self.optimizer, graphs)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def train_epoch(self) -> dict[str, Any]:
        """One pass over what the model trains on; returns the epoch's record, already part of the history."""
        start, epoch = time.perf_counter(), self.progress.epoch
        self.visit_all(epoch)
        means = self.step.means()
        for name, value in means.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"epoch {epoch + 1}: the loss term '{name}' is {value}; try a lower lr (now {self.lr}) or weight"
                )
        self.progress.epoch += 1
        record = {
            "epoch": self.progress.epoch,
            "seconds": time.perf_counter() - start,
            "loss": sum(means.values()),
            "terms": means,
        }
        self.progress.history.append(record)
        return record

    def visit_all(self, epoch: int) -> None:
        """The steps of `epoch`. The host only hands out work: nothing here waits for the device."""
        seed = _epoch_seed(self.seed, epoch, 0)
        torch.manual_seed(seed)
        # A generator of its own: a capture that failed leaves CUDA's default one unusable.
        generator = torch.Generator(self.device).manual_seed(seed) if self.device.type == "cuda" else None
        order = torch.randperm(self.visited.shape[1], device=self.device, generator=generator)
        visited = self.visited[:, order]
        if self.objective.model.trains_on == "interactions":
            visited = torch.cat([visited, self._negatives(visited[0], epoch)])
        self.objective.train()
        self.step.start_epoch(epoch)
        for batch in visited.split(self.batch_size, dim=1):
            self.step.run(batch)

    def _negatives(self, users: Tensor, epoch: int) -> Tensor:
        """[1, E]: an item for each of `users` that is not theirs."""
        from prorec_fast.sampling import sample_negatives

        negatives = sample_negatives(self.objective.train_graph, users, seed=_epoch_seed(self.seed, epoch, 1))
        return negatives.reshape(1, -1)

    def note_validation(self, metrics: Mapping[str, float]) -> None:
        progress = self.progress
        if metrics[MONITOR] > progress.best_value:
            progress.best_value, progress.best_epoch, progress.since_best = metrics[MONITOR], progress.epoch, 0
            self.best = {name: value.detach().clone() for name, value in self.objective.all_state().items()}
        else:
            progress.since_best += 1

    def store(self, folder: RunFolder) -> None:
        folder.save_state(self.progress, self.objective.all_state(), self.best, self.optimizer.state_dict()["state"])
        if self.progress.since_best == 0:
            folder.save_weights(self.best)
        folder.save_history(self.progress, None)

    def restore(self, folder: RunFolder) -> None:
        """Continue from what `store` wrote."""
        self.progress, weights, best, adam = folder.load_state()
        self.objective.load_all_state(weights)
        self.best = {name: value.to(self.device) for name, value in best.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": adam, "param_groups": groups})
