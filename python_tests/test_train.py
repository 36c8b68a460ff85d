"""Training: reproducible, resumable after a kill, stopped early with the best weights restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import HERE
from training_data import tiny, write_tiny

from prorec_fast.data import Interactions, load
from prorec_fast.frameworks import Framework, Objective, Plain, ProEx, ProMax
from prorec_fast.models import CVGA, MF, Discriminative, LightGCN
from prorec_fast.train import RunError, TrainingError, evaluate, fit, read_weights

QUICK = {"epochs": 6, "batch_size": 128, "lr": 0.01, "eval_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("train") / "tiny")


def without_seconds(history):
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in history]


def same(a, b) -> bool:
    return without_seconds(a.history) == without_seconds(b.history) and a.test == b.test


def test_train_learns(data):
    model = LightGCN(data, dim=8)
    before = evaluate(model, data)
    run = fit(model, data, epochs=40, batch_size=128, lr=0.02)
    assert run.test["recall@20"] > 1.1 * before["recall@20"]
    losses = [record["loss"] for record in run.history]
    assert losses[-1] < 0.9 * losses[0]
    record = run.history[2]
    assert record["epoch"] == 3 and set(record["terms"]) == {"bpr", "reg"}
    assert record["loss"] == pytest.approx(sum(record["terms"].values()))
    assert "valid" in record and "valid" not in run.history[0]
    assert run.seconds_per_epoch == pytest.approx(np.mean([r["seconds"] for r in run.history]))


@pytest.mark.parametrize("framework", [Plain(), ProMax(warmup_epochs=3)], ids=["none", "promax"])
def test_train_same_seed_same_result(data, framework):
    torch.manual_seed(1)
    first = fit(LightGCN(data, dim=8), data, framework, seed=5, **QUICK)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = fit(LightGCN(data, dim=8), data, framework, seed=5, **QUICK)
    assert torch.equal(before, torch.get_rng_state())
    other = fit(LightGCN(data, dim=8), data, framework, seed=6, **QUICK)
    assert same(first, again)
    assert without_seconds(first.history) != without_seconds(other.history)


@pytest.mark.parametrize("change", ["dtype", "device"])
@pytest.mark.parametrize("framework", [Plain(), ProMax(), ProEx()], ids=["none", "promax", "proex"])
def test_train_does_not_depend_on_torch_defaults(tmp_path, framework, change):
    settings = {**QUICK, "epochs": 1}
    folder = write_tiny(tmp_path / "plain", profiles=False)  # so that they are derived under the changed default too
    data = load(folder)
    usual = fit(LightGCN(data, dim=8), data, framework, **settings)
    try:
        if change == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        data = load(folder)
        model = LightGCN(data, dim=8)
        changed = fit(model, data, framework, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for parameter in changed.objective.all_parameters():
        assert parameter.dtype == torch.float32 and parameter.device.type == "cpu"
    assert same(usual, changed)


def test_train_test_metrics_are_the_plain_definition(data):
    model = MF(data, dim=8)
    run = fit(model, data, **QUICK)
    user, item = (table.detach().double() for table in model.representation())
    scores = user @ item.T
    scores[data.train.edges()] = -torch.inf  # validation items still compete, as documented
    ranked = scores.argsort(1, descending=True)[:, :20]
    recalls = []
    for row in range(data.num_users):
        truth = data.test.indices[data.test.indptr[row] : data.test.indptr[row + 1]]
        if truth.size:
            recalls.append(np.isin(ranked[row].numpy(), truth).sum() / truth.size)
    assert run.test["recall@20"] == pytest.approx(np.mean(recalls), abs=1e-6)


def test_train_takes_what_is_usual_for_the_model(data):
    for make, size in ((MF, 4096), (CVGA, 1024)):
        run = fit(make(data, dim=4), data, epochs=1)
        assert run.config["training"]["batch_size"] == size
    with pytest.raises(TypeError, match=r"framework: want an instance such as frameworks.ProEx\(\), got 'proex'"):
        fit(MF(data, dim=4), data, "proex")


def test_train_needs_no_more_than_a_representation(data, tmp_path):
    class Mine(Discriminative):
        def representation(self, graph=None):
            return self.user_embedding, self.item_embedding

    run = fit(Mine(data, dim=4), data, ProMax(), epochs=1, out=tmp_path / "run")
    assert run.config["model"]["name"] == "mine"
    assert set(read_weights(str(tmp_path / "run"))) == {"user_embedding", "item_embedding"}


class Worsening(Objective):
    """Improves for a while, then turns the weights round: what early stopping must undo."""

    def __init__(self, model, turn: int) -> None:
        super().__init__(model)
        self.inner, self.turn, self.sign = Plain().bind(model, None), turn, 1.0

    def start_epoch(self, epoch: int) -> None:
        self.sign = 1.0 if epoch < self.turn else -5.0

    def terms(self, users, positives, negatives):
        return {"bpr": self.sign * self.inner.terms(users, positives, negatives)["bpr"]}


@dataclass(frozen=True)
class WorseningFramework(Framework):
    name = "worsening"
    turn: int = 12

    def bind(self, model, data) -> Objective:
        return Worsening(model, self.turn)


def test_train_stops_early_and_restores_the_best(data):
    model = MF(data, dim=8)
    run = fit(model, data, WorseningFramework(), epochs=200, batch_size=64, lr=0.05, eval_every=2, patience=3)
    curve = {record["epoch"]: record["valid"]["recall@20"] for record in run.history if "valid" in record}
    assert run.stopped == "patience" and run.epochs < 200
    assert run.epochs == run.best_epoch + 2 * 3
    assert curve[run.best_epoch] == max(curve.values()) > curve[run.epochs]
    assert evaluate(model, data, "valid") == run.valid == run.history[run.best_epoch - 1]["valid"]
    assert evaluate(model, data) == run.test


def test_train_last_epoch_is_validated(data):
    run = fit(MF(data, dim=4), data, epochs=5, eval_every=3, batch_size=512)
    assert [r["epoch"] for r in run.history if "valid" in r] == [3, 5] and run.stopped == "epochs"


def test_train_run_folder(data, tmp_path):
    model = LightGCN(data, dim=8)
    run = fit(model, data, ProMax(), out=tmp_path / "run", seed=3, **QUICK)
    assert run.checkpoint == tmp_path / "run" / "weights.safetensors"
    stored = read_weights(tmp_path / "run")
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["framework"]["name"] == "promax" and config["training"]["seed"] == 3
    assert config["data"]["fingerprint"] == data.fingerprint and "profiles_tiny.npz" in config["notes"]["profiles"]
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history["epochs"] == run.history and history["result"]["test"] == run.test
    assert not list((tmp_path / "run").glob(".*"))
    with pytest.raises(RunError, match="already holds a run"):
        fit(LightGCN(data, dim=8), data, ProMax(), out=tmp_path / "run", **QUICK)


class Stop(Exception):
    pass


@pytest.mark.parametrize("framework", [Plain(), ProMax(warmup_epochs=4)], ids=["none", "promax"])
def test_train_resume_equals_uninterrupted(data, tmp_path, framework):
    settings = {**QUICK, "epochs": 11, "seed": 2}
    whole = fit(LightGCN(data, dim=8), data, framework, **settings)

    def interrupt(record):
        if record["epoch"] == 5:
            raise Stop

    with pytest.raises(Stop):
        fit(LightGCN(data, dim=8), data, framework, out=tmp_path / "r", on_epoch=interrupt, **settings)
    epochs = []
    resumed = fit(
        LightGCN(data, dim=8, seed=0), data, framework, out=tmp_path / "r", resume=True,
        on_epoch=lambda record: epochs.append(record["epoch"]), **settings,
    )  # fmt: skip
    assert epochs[0] == 5, "it continues after the last validation, not from the start"
    assert same(whole, resumed) and resumed.best_epoch == whole.best_epoch
    # a finished run resumed is the finished run
    again = fit(LightGCN(data, dim=8), data, framework, out=tmp_path / "r", resume=True, **settings)
    assert again.history == resumed.history and again.test == resumed.test


def test_train_resume_can_go_on_for_longer(data, tmp_path):
    settings = {**QUICK, "seed": 2}
    whole = fit(MF(data, dim=8), data, **{**settings, "epochs": 8})
    fit(MF(data, dim=8), data, out=tmp_path / "r", **{**settings, "epochs": 4})
    assert same(whole, fit(MF(data, dim=8), data, out=tmp_path / "r", resume=True, **{**settings, "epochs": 8}))


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[3])
from training_data import tiny
from prorec_fast.data import load
from prorec_fast.models import LightGCN
from prorec_fast.train import fit
data = load(sys.argv[1])
fit(LightGCN(data, dim=8), data, epochs=100000, batch_size=128, lr=0.01, eval_every=1, patience=100000, seed=2,
    out=sys.argv[2], resume=True, on_epoch=lambda record: print(record["epoch"], flush=True))
"""


def test_train_survives_sigkill_at_any_moment(tmp_path):
    folder, out = write_tiny(tmp_path / "tiny"), tmp_path / "run"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(folder), str(out), str(Path(__file__).parent)]
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=HERE)
        first = int(process.stdout.readline())
        assert reached <= first - 1 <= reached + 1 or reached == 0, "it went on from what was stored"
        time.sleep(0.3 + float(rng.random()) * 0.2)  # state is being written nearly all of the time
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
        process.wait(timeout=30)
        process.stdout.close()
        reached = int(printed[-1]) if printed else first
        assert read_weights(out)
        stored = len(json.loads((out / "history.json").read_text())["epochs"])
        assert stored in (reached - 1, reached, reached + 1)
    data = tiny(tmp_path / "tiny")
    settings = {"batch_size": 128, "lr": 0.01, "eval_every": 1, "patience": 100000, "seed": 2, "epochs": reached + 3}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = fit(LightGCN(data, dim=8), data, out=out, resume=True, **settings)
        assert same(resumed, fit(LightGCN(data, dim=8), data, **settings))
    finally:
        torch.set_num_threads(threads)


def test_train_resume_refuses_other_settings(data, tmp_path):
    fit(MF(data, dim=8), data, out=tmp_path / "r", **QUICK)
    for model, framework, changed, message in (
        (MF(data, dim=4), Plain(), {}, "model dim 8, not 4"),
        (MF(data, dim=8), Plain(reg=0.5), {}, "framework reg None, not 0.5"),
        (MF(data, dim=8), ProMax(), {}, "framework .*"),
        (MF(data, dim=8), Plain(), {"lr": 0.5}, "training lr 0.01, not 0.5"),
        (MF(data, dim=8), Plain(), {"seed": 9}, "training seed 0, not 9"),
    ):
        with pytest.raises(RunError, match=message):
            fit(model, data, framework, out=tmp_path / "r", resume=True, **{**QUICK, **changed})
    other = replace(data, test=data.valid)
    with pytest.raises(RunError, match="data fingerprint"):
        fit(MF(other, dim=8), other, out=tmp_path / "r", resume=True, **QUICK)


def test_train_resume_refuses_a_damaged_state(data, tmp_path):
    fit(MF(data, dim=8), data, out=tmp_path / "r", **QUICK)
    state = tmp_path / "r" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(RunError, match=r"state\.safetensors: cannot be read"):
        fit(MF(data, dim=8), data, out=tmp_path / "r", resume=True, **QUICK)


def test_train_resume_without_a_state_starts(data, tmp_path):
    run = fit(MF(data, dim=8), data, out=tmp_path / "new", resume=True, **QUICK)
    assert run.epochs == QUICK["epochs"]
    with pytest.raises(ValueError, match="resume: needs out"):
        fit(MF(data, dim=8), data, resume=True, **QUICK)


def test_train_reports_a_loss_that_is_not_finite(data, tmp_path):
    class Broken(Worsening):
        def terms(self, users, positives, negatives):
            terms = self.inner.terms(users, positives, negatives)
            return {**terms, "reg": terms["reg"] * (float("nan") if self.sign < 0 else 1.0)}

    class BrokenFramework(WorseningFramework):
        def bind(self, model, data):
            return Broken(model, 2)

    with pytest.raises(TrainingError, match=r"epoch 3: the loss term '\w+' is nan.*lr"):
        fit(MF(data, dim=8), data, BrokenFramework(), out=tmp_path / "r", **QUICK)
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path / "r").values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs: want a positive integer"),
        ({"batch_size": 1.5}, "batch_size: want a positive integer"),
        ({"lr": -1.0}, "lr: want a positive number"),
        ({"patience": True}, "patience"),
        ({"eval_every": 0}, "eval_every"),
    ],
)
def test_train_rejects_settings(data, changed, message):
    with pytest.raises(ValueError, match=message):
        fit(MF(data, dim=8), data, **{**QUICK, **changed})


def test_train_rejects_data_that_cannot_be_trained_on(data):
    empty = Interactions(np.zeros(data.num_users + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    with pytest.raises(ValueError, match="the valid split is empty"):
        fit(MF(data, dim=8), replace(data, valid=empty), **QUICK)
    wider = replace(data, num_items=data.num_items + 1, user_profiles=None, item_profiles=None)
    with pytest.raises(ValueError, match="made for 60 users and 50 items"):
        fit(MF(data, dim=8), wider, **QUICK)
    with pytest.raises(ValueError, match="split: want valid or test"):
        evaluate(MF(data, dim=8), data, "train")
