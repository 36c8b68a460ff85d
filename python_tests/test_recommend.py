"""`prorec-fast recommend` and `load_run`: a stored run ranks as the trained one did, by the user's own ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from profile_data import make_folder

import prorec_fast
from prorec_fast.cli import main
from prorec_fast.train import RunError, load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("recommend") / "data", num_users=30, num_items=15)
    data = prorec_fast.data.load(folder)
    model = prorec_fast.models.LightGCN(data, dim=8)
    run = prorec_fast.fit(model, data, epochs=3, out=folder.parent / "run")
    return data, run, folder.parent / "run"


@pytest.mark.parametrize("framework", [None, prorec_fast.frameworks.ProEx(num_profiles=2, num_environments=2)])
def test_a_stored_run_is_the_trained_one(trained, tmp_path, framework):
    data, _, _ = trained
    model = prorec_fast.models.LightGCN(data, dim=8)
    run = prorec_fast.fit(model, data, framework=framework, epochs=2, out=tmp_path / "run")
    stored = load_run(tmp_path / "run")
    for ours, theirs in zip(stored.ranker.representation(), run.objective.representation(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert stored.result["test"] == run.test and stored.data.fingerprint == data.fingerprint
    assert not stored.ranker.training


def test_what_is_recommended_is_new_and_best(trained, capsys):
    data, run, folder = trained
    assert main(["recommend", str(folder), "-k", "4", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["user"] for one in found] == [f"u-{row}" for row in range(data.num_users)]
    user, item = (table.detach().double() for table in run.objective.representation())
    scores = user @ item.T
    for split in (data.train, data.valid, data.test):
        scores[split.edges()] = -torch.inf
    best = scores.topk(4)
    for row, one in enumerate(found):
        assert [entry["item"] for entry in one["items"]] == [f"i-{at}" for at in best.indices[row].tolist()]
        assert [entry["score"] for entry in one["items"]] == pytest.approx(best.values[row].tolist(), abs=1e-5)


def test_some_users_as_a_table_in_a_file(trained, tmp_path, capsys):
    _, _, folder = trained
    path = tmp_path / "best.tsv"
    assert main(["recommend", str(folder), "--users", "u-7", "u-2", "-k", "20", "--out", str(path)]) == 0
    head, *rows = (line.split("\t") for line in path.read_text().splitlines())
    assert head == ["user", "rank", "item", "score"]
    assert [row[0] for row in rows] == ["u-7"] * 10 + ["u-2"] * 10  # 15 items, 5 of them had already
    assert [row[1] for row in rows] == [str(rank) for rank in range(1, 11)] * 2
    assert list(tmp_path.iterdir()) == [path] and not capsys.readouterr().out


def test_what_comes_later_does_not_matter_but_the_profiles_that_rank(trained, tmp_path):
    data, _, folder = trained
    rng = np.random.default_rng(0)
    later = make_folder(tmp_path / "later", num_users=30, num_items=15)
    tables = {"users": rng.normal(size=(30, 6)), "items": rng.normal(size=(15, 6))}
    np.savez(later / "profiles_later.npz", **{name: table.astype(np.float32) for name, table in tables.items()})
    assert torch.equal(
        load_run(folder, data=later).ranker.representation()[0], load_run(folder).ranker.representation()[0]
    )
    model = prorec_fast.models.LightGCN(data, dim=8)
    framework = prorec_fast.frameworks.ProEx(num_profiles=2, num_environments=2)
    prorec_fast.fit(model, data, framework=framework, epochs=1, out=tmp_path / "run")
    with pytest.raises(RunError, match="ranks by other profile vectors"):
        load_run(tmp_path / "run", data=later)
    with pytest.raises(RunError, match="trained on another split"):
        load_run(folder, data="synthetic")


def test_a_folder_of_one_run_is_that_run(trained, tmp_path, capsys):
    _, _, folder = trained
    (tmp_path / "none").symlink_to(folder)
    assert main(["recommend", str(tmp_path), "--users", "u-7", "-k", "1"]) == 0
    (tmp_path / "proex").symlink_to(folder)
    capsys.readouterr()
    assert main(["recommend", str(tmp_path)]) == 2
    assert "holds the runs none, proex; name one of them" in capsys.readouterr().err


def test_what_cannot_be_served_is_refused(trained, tmp_path, capsys):
    _, _, folder = trained
    assert main(["recommend", str(folder), "--users", "u-7", "nobody"]) == 2
    assert "no user of the data set is called 'nobody'" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"config\.json: missing"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="not written by a training run"):
        load_run(tmp_path)
