"""Whole trainings beside a baseline in plain PyTorch: both train the same, and the program says what that took."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmarks")
NAMES = ("lightgcn", "promax", "proex", "mult_vae")


@cache
def tiny(name):
    """The tiny data of a training."""
    from trainings import dataset

    return dataset(name, True)


@pytest.mark.parametrize("name", NAMES)
def test_baseline_and_ours_train_the_same(name):
    from baseline.evaluation import Evaluation
    from same_training import first_steps, same_weights
    from sizes import difference

    from prorec_fast.train import evaluate

    data = tiny(name)
    theirs, ours = same_weights(name, data, "cpu")
    first, second = (run() for run in first_steps(theirs, ours, data, batch_size=24).values())
    for a, b in zip(first, second, strict=True):
        assert difference([a], [b]) < 1e-5  # weight decay is more than that
    for split in ("valid", "test"):
        found = Evaluation(data, split, torch.device("cpu"))(theirs)
        expected = evaluate(ours, data, split)
        assert found == pytest.approx({metric: expected[metric] for metric in found}, rel=1e-5)


def test_both_descend_alike():
    """With one step an epoch, what differs is which negatives were drawn: a tenth of a learning rate shows."""
    from same_training import same_weights
    from trainings import train

    import prorec_fast

    torch.manual_seed(0)
    np.random.seed(0)
    data, epochs, losses = tiny("lightgcn"), 60, []
    theirs, ours = same_weights("lightgcn", data, "cpu")
    train(
        theirs, data, epochs=range(epochs), batch_size=4096, lr=1e-3, eval_every=100, patience=1, device="cpu",
        on_epoch=lambda record: losses.append(record["loss"]),
    )  # fmt: skip
    history = prorec_fast.fit(ours.model, data, epochs=epochs, eval_every=100).history
    mine = [record["loss"] for record in history]
    assert mine[0] - mine[-1] > 0.04
    assert np.mean(losses) == pytest.approx(np.mean(mine), abs=0.002)


def test_what_differs_is_noticed_before_it_is_timed(monkeypatch):
    import baseline.evaluation
    import baseline.lightgcn
    from same_training import assert_same_training

    assert_same_training("promax", tiny("promax"), "cpu")
    with monkeypatch.context() as patch:
        right = baseline.lightgcn.reshaping
        patch.setattr(baseline.lightgcn, "reshaping", lambda *arguments: 1.01 * right(*arguments))
        with pytest.raises(AssertionError, match="ours: differs by"):
            assert_same_training("promax", tiny("promax"), "cpu")
    monkeypatch.setattr(baseline.evaluation, "OUT_OF_THE_RANKING", -1e8)
    with pytest.raises(AssertionError, match="promax: recall@10 is"):
        assert_same_training("promax", tiny("promax"), "cpu")


def test_data_of_a_training(tmp_path, monkeypatch):
    from training_data import write_tiny
    from trainings import dataset

    write_tiny(tmp_path / "shop")
    monkeypatch.setenv("PROREC_FAST_BENCH_DATA", str(tmp_path / "shop"))
    assert dataset("promax", False).name == "shop" and dataset("promax", True).name == "synthetic"
    assert dataset("promax", False).has_profiles and not dataset("mult_vae", False).has_profiles
    write_tiny(tmp_path / "amazon_book", profiles=False)
    monkeypatch.setenv("PROREC_FAST_BENCH_DATA", str(tmp_path))
    assert dataset("promax", False).name == "amazon_book" and dataset("promax", False).has_profiles


def test_batches_of_the_baseline():
    from baseline.batches import Rows, Triplets, users_with_edges

    graph = tiny("lightgcn").train_graph
    dense = graph.to_sparse_csr().to_dense()
    triplets = Triplets(graph)
    triplets.sample()
    first = triplets.negatives.copy()
    triplets.sample()
    users, positives, negatives = torch.tensor([triplets[edge] for edge in range(len(triplets))]).T
    assert (triplets.negatives != first).any()
    assert len(triplets) == graph.num_edges and dense[users, positives].all() and not dense[users, negatives].any()
    chosen = users_with_edges(graph)[::-3]
    rows = Rows(graph, chosen)
    assert len(rows) == len(chosen) and [rows[place][0] for place in range(len(rows))] == chosen.tolist()
    assert all(torch.equal(torch.from_numpy(row), dense[user]) for user, row in (rows[p] for p in range(len(rows))))


def test_baseline_stops_early_with_its_best_weights(monkeypatch):
    from baseline import loop
    from trainings import TRAININGS

    scores = iter([0.1, 0.3, 0.2, 0.3, 0.25])
    tables, records = [], []

    class Validation:
        def __init__(self, *_) -> None:
            pass

        def __call__(self, model):
            tables.append(model.user_embedding.detach().clone())
            return {"recall@20": next(scores)}

    monkeypatch.setattr(loop, "Evaluation", Validation)
    data, training = tiny("lightgcn"), TRAININGS["lightgcn"]
    model = training.baseline(data, training.model(data), training.framework(data))
    end = loop.train(
        model, data, epochs=range(100), batch_size=100, lr=1e-2, eval_every=2, patience=3, device="cpu",
        on_epoch=records.append,
    )  # fmt: skip
    assert end == {"best_epoch": 4, "stopped": "patience"}
    assert len(records) == 10 and [r["epoch"] for r in records if "valid" in r] == [2, 4, 6, 8, 10]
    assert torch.equal(model.user_embedding, tables[1]) and not torch.equal(tables[1], tables[2])


@pytest.fixture
def program(tmp_path, capsys, monkeypatch):
    """The program with its processes' work done in this one: (exit code, what it printed, its section of the file, the
    tasks of its processes)."""
    import end_to_end

    tasks: list[tuple[dict, dict]] = []

    def in_a_process(environment, **task):
        tasks.append((environment, task))
        return json.loads(json.dumps(end_to_end.work(**task)))

    def run(*arguments):
        tasks.clear()
        file = tmp_path / "cpu.json"
        monkeypatch.setattr(sys, "argv", ["end_to_end.py", *arguments, "--tiny", "--device", "cpu", "--out", str(file)])
        code = end_to_end.main()
        section = json.loads(file.read_text())["end_to_end"] if file.exists() else {}
        return code, capsys.readouterr().out, section, tasks

    monkeypatch.setattr(end_to_end, "in_a_process", in_a_process)
    return run


def test_program_times_a_baseline_around_ours(program, tmp_path):
    import record
    from timing import TUNED

    code, printed, section, tasks = program("promax", "mult_vae", "--epochs", "44", "--baseline-epochs", "2")
    assert code == 0 and list(section) == ["synthetic"] and list(section["synthetic"]) == ["promax", "mult_vae"]
    sides = [(task["side"], environment) for environment, task in tasks[: len(tasks) // 2]]
    around = [("baseline", {}), ("baseline", TUNED)]
    assert sides == [("prepare", {}), *around, ("ours", {}), *around]

    promax = section["synthetic"]["promax"]
    ours, baseline = promax["ours"], promax["baseline"]["tuned"]
    assert (ours["epochs"], ours["warm_up_epochs"], ours["validations"], ours["stopped"]) == (44, 40, 15, "epochs")
    assert ours["warm_up_epoch_s"]["count"] == 37 and ours["epoch_s"]["count"] == 4
    assert 0 < ours["best_epoch"] <= 44 and ours["start_to_test_s"] > 0 and 0 < ours["test"]["recall@20"] < 1
    assert ours["peak_mib"] >= ours["before_mib"] > 50
    # Two runs of two epochs of warm-up and two with every loss, the first epoch of each run left out.
    assert (baseline["epochs"], baseline["warm_up_epochs"], baseline["stopped"]) == (4, 2, "timed")
    assert baseline["warm_up_epoch_s"]["count"] == 2 and baseline["epoch_s"]["count"] == 4
    assert baseline["test"] is None and baseline["start_to_test_s"] is None
    per = {key: baseline[key]["median"] for key in ("warm_up_epoch_s", "epoch_s", "validation_s")}
    expected = 40 * per["warm_up_epoch_s"] + 4 * per["epoch_s"] + 16 * per["validation_s"]
    assert baseline["converged_at_our_epochs_s"] == pytest.approx(expected)

    assert section["synthetic"]["mult_vae"]["ours"]["warm_up_epoch_s"] is None
    lines = printed.splitlines()
    assert record.table({"machine": {}, "end_to_end": section})[1:] == lines and len(lines) == 8
    assert lines[1].startswith("synthetic, promax: ours: ") and "44 epochs, ended by the epochs given" in lines[1]
    assert lines[3].startswith("synthetic, promax: baseline [tuned]: an epoch ") and lines[3].count(" x)") == 4


def test_first_epochs_count_where_there_are_no_others():
    import end_to_end

    seconds = {1: 9.0, 2: 3.0, 41: 5.0, 42: 6.0}
    run = {key: None for key in ("stopped", "start_to_test_s", "best_epoch", "test")}

    def medians(*epochs):
        records = [{"epoch": epoch, "seconds": seconds[epoch]} for epoch in epochs]
        found = end_to_end.summary([{**run, "records": records}], 1, warmup_epochs=40)
        return [of and of["median"] for of in (found["warm_up_epoch_s"], found["epoch_s"])]

    assert medians(1) == [9.0, None] and medians(1, 41) == [9.0, 5.0]
    assert medians(1, 2, 41, 42) == [3.0, 5.5] and medians(41, 42) == [None, 6.0]


def test_baseline_that_trains_to_the_end_is_tested(program):
    code, printed, section, tasks = program("lightgcn", "--epochs", "4", "--baseline-epochs", "4")
    baseline = section["synthetic"]["lightgcn"]["baseline"]["default"]
    assert code == 0 and baseline["stopped"] == "epochs" and 0 < baseline["test"]["ndcg@20"] < 1
    assert [task["epochs"] for _, task in tasks if task["side"] == "baseline"] == [4, 4, 3, 3]
    assert printed.count("start to test") == 3


def test_program_stops_in_time_and_says_what_failed(program, monkeypatch):
    import end_to_end

    code, printed, section, _ = program("lightgcn", "--seconds", "0")
    assert (code, printed, section) == (0, "lightgcn: left out: no time was left\n", {})

    right = end_to_end.train_ours
    monkeypatch.setattr(end_to_end, "train_ours", lambda *_, seconds, **settings: right(*_, seconds=0.0, **settings))
    code, printed, section, _ = program("lightgcn")
    ours = section["synthetic"]["lightgcn"]["ours"]
    assert code == 0 and (ours["stopped"], ours["epochs"], ours["test"]) == ("time", 1, None)
    assert section["synthetic"]["lightgcn"]["baseline"]["default"]["converged_at_our_epochs_s"] is None
    assert "ours: not converged: the time was up after 1 epochs" in printed

    monkeypatch.setattr(end_to_end, "train_baseline", lambda *_, **settings: {"failed": "the process ended with -9"})
    code, printed, _, _ = program("lightgcn")
    assert (code, printed) == (1, "lightgcn: failed: baseline [default]: the process ended with -9\n")
    with pytest.raises(SystemExit, match="2"):
        program("lightgbm")
    with pytest.raises(SystemExit, match="2"):
        program("--epochs", "0")


def test_a_process_gives_what_it_found_or_that_it_failed(tmp_path, monkeypatch):
    import end_to_end

    task = {"side": "prepare", "name": "lightgcn", "data": str(tmp_path), "device": "cpu", "tiny": True}
    found = end_to_end.in_a_process({}, **task)
    assert found["data"] == "synthetic" and found["sizes"]["users"] == 60
    assert found["folder"] == str(tmp_path / "synthetic") and Path(found["folder"], "interactions.npz").exists()
    monkeypatch.setattr(sys, "executable", "false")
    assert end_to_end.in_a_process({}, **task) == {"failed": "the process ended with 1"}
