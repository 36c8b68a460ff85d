"""The command line: what it prints where, its exit codes, its one-line errors, and resuming."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import HERE
from training_data import write_tiny

from prorec_fast.cli import main, parser

COMMAND = [sys.executable, "-c", "import sys; from prorec_fast.cli import main; sys.exit(main())"]
QUICK = ["--epochs", "4", "--eval-every", "2", "--dim", "8", "--batch-size", "128", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--data", str(folder), *QUICK, "--out", str(out), "--seed", "1"]) == 0
    return out


def error_of(capsys, *arguments) -> str:
    """Runs a command that must fail with exit code 2 and a single line about it; returns that line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "", (code, out)
    lines = [line for line in err.splitlines() if not line.startswith("data ")]
    assert len(lines) == 1 and lines[0].startswith("prorec-fast"), err
    return lines[0]


def test_cli_train_prints_a_table_and_leaves_runs(folder, tmp_path, capsys):
    assert main(["train", "--data", str(folder), *QUICK, "--out", str(tmp_path / "r")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["recall@10", "recall@20", "ndcg@10", "ndcg@20", "s/epoch", "best", "epoch"]
    assert lines[1].startswith("lightgcn  ") and lines[2].startswith("lightgcn + promax") and "%" in lines[3]
    assert "profiles: profiles_tiny.npz" in out
    assert "epoch 2," in err and "epoch 4," in err and "epoch 3," not in err and "\r" not in err
    for framework in ("none", "promax"):
        names = {path.name for path in (tmp_path / "r" / framework).iterdir()}
        assert {"config.json", "history.json", "weights.safetensors"} <= names


def test_cli_train_json_is_all_there_is_on_stdout(folder, tmp_path, capsys):
    out = tmp_path / "r"
    assert main(["train", "--data", str(folder), *QUICK, "--out", str(out), "--json", "--seeds", "3", "4"]) == 0
    printed, _ = capsys.readouterr()
    result = json.loads(printed)
    assert [(row["framework"], row["seed"]) for row in result["results"]] == [
        ("none", 3), ("promax", 3), ("none", 4), ("promax", 4),
    ]  # fmt: skip
    for row in result["results"]:
        stored = json.loads((Path(row["run"]) / "history.json").read_text())["result"]
        assert {name: row[name] for name in stored["test"]} == stored["test"]
        assert row["seconds_per_epoch"] > 0
    assert result == json.loads((out / "results.json").read_text())


def test_cli_train_spread_over_seeds(folder, tmp_path, capsys):
    arguments = ["--framework", "none", "--model", "mf", "--out", tmp_path / "r", "--seed", 1, 2]
    assert main(["train", "--data", str(folder), *QUICK, *map(str, arguments)]) == 0
    out, _ = capsys.readouterr()
    assert out.count("±") == 4 and "change" not in out and "promax" not in out


def test_cli_train_settings_reach_the_run(folder, tmp_path):
    options = [
        "--preset", "paper", "--framework", "promax", "--layers", "2", "--lr", "0.02", "--patience", "7",
        "--sdr-weight", "0.3", "--s2dr-weight", "0", "--warmup-epochs", "5", "--init-scale", "2.5",
        "--temperature", "0.4", "--teacher-temperature", "0.3", "--whitening", "joint", "--seed", "11",
    ]  # fmt: skip
    assert main(["train", "--data", str(folder), *QUICK, *options, "--out", str(tmp_path / "r")]) == 0
    config = json.loads((tmp_path / "r" / "promax" / "config.json").read_text())
    assert config["model"] == {
        "name": "lightgcn", "dim": 8, "init_scale": 2.5, "seed": 11, "num_layers": 2, "combine": "mean",
    }  # fmt: skip
    framework = config["framework"]
    assert (framework["sdr_weight"], framework["s2dr_weight"], framework["warmup_epochs"]) == (0.3, 0, 5)
    assert (framework["temperature"], framework["teacher_temperature"]) == (0.4, 0.3)
    assert (framework["whitening"], framework["sdr_eps"], framework["weight_range"]) == ("joint", 0.0, [0.0, 1.0])
    training = config["training"]
    assert (training["lr"], training["patience"], training["seed"], training["batch_size"]) == (0.02, 7, 11, 128)


def test_cli_train_uses_the_published_weights(folder, tmp_path):
    book = write_tiny(tmp_path / "amazon_book")
    assert main(["train", "--data", str(book), *QUICK, "--framework", "promax", "--out", str(tmp_path / "r")]) == 0
    framework = json.loads((tmp_path / "r" / "promax" / "config.json").read_text())["framework"]
    assert (framework["sdr_weight"], framework["s2dr_weight"]) == (1.5, 0.05)


def test_cli_train_default_folder_is_new_each_time(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "--data", str(folder), *QUICK, "--framework", "none"]) == 0
    assert len(list((tmp_path / "runs").glob("tiny-*"))) == 2


def test_cli_train_names_derived_profiles(tmp_path, capsys):
    plain = write_tiny(tmp_path / "plain", profiles=False)
    assert main(["train", "--data", str(plain), *QUICK, "--framework", "promax", "--out", str(tmp_path / "r")]) == 0
    assert "derived from the training matrix" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "absent"], "no such folder"),
        (["train", "--model", "bert"], "invalid choice"),
        (["train", "--epochs", "0"], "--epochs: want a positive integer"),
        (["train", "--lr", "nan"], "--lr: want a finite number above 0"),
        (["train", "--lr", "x"], "--lr: want a finite number above 0"),
        (["train", "--sdr-weight", "-1"], "want a finite number of at least 0"),
        (["train", "--model", "mf", "--layers", "2"], "--layers: has no effect with --model mf"),
        (["train", "--framework", "none", "--s2dr-weight", "1"], "--s2dr-weight: has no effect"),
        (
            ["train", "--framework", "none", "promax", "--alpha", "1"],
            "--alpha: has no effect",
        ),
        (
            ["train", "--framework", "proex", "--whitening", "joint"],
            "--whitening: has no effect",
        ),
        (["train", "--contrast-weight", "1"], "--contrast-weight: has no effect with --model lightgcn"),
        (["train", "--framework", "proex", "--no-mixing", "--alpha", "1"], "--alpha: has no effect with --no-mixing"),
        (
            ["train", "--framework", "proex", "--regularization-weight", "0", "--regularization", "contrast"],
            "--regularization: has no effect with --regularization-weight 0",
        ),
        (["train", "--model", "cvga", "--init-scale", "2"], "--init-scale: has no effect with --model cvga"),
        (["train", "--model", "mult_vae", "--framework", "both"], "mult_vae generates, and ProMax is not for such"),
        (["train", "--seed", "1", "1"], "repeats a seed"),
        (["train", "--device", "abacus"], "no device is called"),
        (["train", "--device", "xpu:9"], "--device: xpu:9 is not available here; try cpu"),
        (["train", "--device", "meta"], "--device: meta is not available here; try cpu"),
        (["train", "--resume"], "--resume: say which run"),
        (["train", "--resume", "--out", "absent"], "leave --resume out"),
        (["evaluate", "absent"], "no weights.safetensors there"),
        (["data", "absent"], "no such folder"),
        (["bake"], "invalid choice"),
        ([], "required"),
    ],
)
def test_cli_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *arguments)
    assert not list(tmp_path.iterdir()), "a command that is refused leaves nothing behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is what is tested")
def test_cli_missing_device(capsys):
    assert "cuda is not available here; try cpu" in error_of(capsys, "train", "--device", "cuda")


def test_cli_bad_data_names_the_file(folder, tmp_path, capsys):
    bad = write_tiny(tmp_path / "bad")
    with np.load(bad / "interactions.npz") as archive:
        arrays = dict(archive)
    arrays["train_indices"][0] = 999
    np.savez(bad / "interactions.npz", **arrays)
    line = error_of(capsys, "train", "--data", bad, "--out", tmp_path / "r")
    assert "interactions.npz" in line and "999" in line
    assert not (tmp_path / "r").exists()


def test_cli_refuses_to_overwrite_a_run(trained, folder, capsys):
    line = error_of(capsys, "train", "--data", folder, *QUICK, "--out", trained)
    assert "already holds a run" in line and "--resume" in line


def test_cli_a_start_that_fails_leaves_no_folder(tmp_path, capsys):
    """Equal profiles have no rank to whiten, which shows only when ProMax is set up, after the plain run."""
    flat = write_tiny(tmp_path / "flat", profiles=False)
    np.savez(flat / "profiles_flat.npz", users=np.ones((60, 12), np.float32), items=np.ones((50, 12), np.float32))
    error_of(capsys, "train", "--data", flat, *QUICK, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "option", [("--dim", 16), ("--framework", "none"), ("--seed", 2), ("--sdr-weight", 2)], ids=lambda option: option[0]
)
def test_cli_resume_refuses_other_settings_and_forgets_them(trained, capsys, option):
    before = (trained / "config.json").read_text()
    line = error_of(capsys, "train", "--resume", "--out", trained, *option, "--epochs", 50)
    assert f"{option[0]}: differs from the run" in line
    assert (trained / "config.json").read_text() == before
    assert main(["train", "--resume", "--out", str(trained), *QUICK]) == 0, "its own settings may be repeated"


def test_cli_resume_keeps_what_was_changed_and_the_best(folder, tmp_path, capsys):
    out = str(tmp_path / "r")
    assert main(["train", "--data", str(folder), *QUICK, "--lr", "1e-9", "--out", out]) == 0
    best = [line.split("(best ")[1] for line in capsys.readouterr().err.splitlines() if "epoch 4," in line]
    assert main(["train", "--resume", "--out", out, "--epochs", "6", "--patience", "9", "--no-cuda-graph"]) == 0
    resumed = [line.split("(best ")[1] for line in capsys.readouterr().err.splitlines() if "epoch 6," in line]
    assert len(best) == 2 and [text.split(")")[0] for text in resumed] == [text.split(")")[0] for text in best]
    assert main(["train", "--resume", "--out", out, "--json"]) == 0
    assert [row["epochs"] for row in json.loads(capsys.readouterr().out)["results"]] == [6, 6]
    settings = json.loads((tmp_path / "r" / "config.json").read_text())["settings"]
    assert (settings["epochs"], settings["patience"], settings["data"]) == (6, 9, str(folder))
    training = json.loads((tmp_path / "r" / "promax" / "config.json").read_text())["training"]
    assert settings["cuda_graph"] is training["cuda_graph"] is False


def test_cli_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "prorec_fast", "--help"], capture_output=True, timeout=300, cwd=HERE)
    assert run.returncode == 0 and b"usage: prorec-fast" in run.stdout


def test_cli_traceback_only_with_debug(capsys):
    assert main(["train", "--data", "absent", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_cli_unexpected_errors_are_one_line_too(capsys, monkeypatch):
    import prorec_fast.cli.inspect as inspect

    def broken(arguments):
        raise KeyError("of all things")

    monkeypatch.setattr(inspect, "run_data", broken)
    line = error_of(capsys, "data")
    assert "KeyError" in line and "--debug" in line


def test_cli_says_which_extra_is_missing(capsys, monkeypatch):
    import prorec_fast.cli.inspect as inspect

    def without_pydantic(arguments):
        monkeypatch.setitem(sys.modules, "pydantic", None)
        import pydantic  # noqa: F401

    monkeypatch.setattr(inspect, "run_data", without_pydantic)
    assert error_of(capsys, "data").endswith('pydantic is not installed; pip install "prorec-fast[profiles]"')


def test_cli_evaluate_equals_the_stored_result(trained, capsys):
    assert main(["evaluate", str(trained), "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)
    stored = {row["run"]: row for row in json.loads((trained / "results.json").read_text())["results"]}
    assert {row["run"] for row in rows} == set(stored)
    for row in rows:
        assert row["verdict"] == "equal to the stored result"
        assert all(row["test"][name] == stored[row["run"]][name] for name in row["test"])
    assert main(["evaluate", str(trained / "promax"), "--device", "cpu"]) == 0
    assert "recall@20" in capsys.readouterr().out


def test_cli_results_of_every_framework_name_their_profiles(folder, tmp_path, capsys):
    out = tmp_path / "r"
    frameworks = ["--framework", "none", "promax", "proex", "--num-environments", "2"]
    assert main(["train", "--data", str(folder), *QUICK, *frameworks, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "lightgcn + proex" in printed and "profiles (promax): profiles_tiny.npz (12-d)\n" in printed
    assert "profiles (proex): 1 profile of the data set (profiles_tiny.npz (12-d)); 3 facet profiles" in printed
    notes = json.loads((out / "results.json").read_text())["notes"]
    assert notes.keys() == {"profiles (promax)", "profiles (proex)", "enriched graph"}
    assert main(["evaluate", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("equal to the stored result") == 3
    assert f"profiles ({out / 'proex'}): 1 profile of the data set" in printed
    assert main(["evaluate", str(out / "proex"), "--device", "cpu"]) == 0
    assert "\nprofiles: 1 profile of the data set" in capsys.readouterr().out


def test_cli_evaluate_notices_changes(folder, tmp_path, capsys):
    out = tmp_path / "r"
    assert main(["train", "--data", str(folder), *QUICK, "--framework", "none", "--out", str(out)]) == 0
    history = json.loads((out / "none" / "history.json").read_text())
    history["result"]["test"]["recall@20"] += 0.01
    (out / "none" / "history.json").write_text(json.dumps(history))
    capsys.readouterr()
    assert main(["evaluate", str(out), "--device", "cpu"]) == 1
    assert "differs" in capsys.readouterr().out
    bare = write_tiny(tmp_path / "bare", profiles=False)  # a base ranks by its embeddings, whatever profiles there are
    assert main(["evaluate", str(out), "--device", "cpu", "--data", str(bare)]) == 1
    capsys.readouterr()
    assert "trained on another split" in error_of(capsys, "evaluate", out, "--data", "synthetic")
    (out / "none" / "weights.safetensors").write_bytes(b"\0" * 64)
    assert "weights.safetensors: cannot be read" in error_of(capsys, "evaluate", out)


def test_cli_data(folder, capsys):
    assert main(["data", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["users"], facts["items"], facts["profile_width"]) == (60, 50, 12)
    assert main(["data", str(folder)]) == 0
    assert "profiles_tiny.npz" in capsys.readouterr().out


def test_cli_parser_knows_what_the_package_has():
    from prorec_fast.frameworks import FRAMEWORKS, PRESETS
    from prorec_fast.models import MODELS

    assert set(parser.MODELS) == set(MODELS) and set(parser.PRESETS) == set(PRESETS)
    assert set(parser.FRAMEWORKS) == {*FRAMEWORKS, "both"}


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["data"], ["retrieve"], ["info"]])
def test_cli_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0 and "usage: prorec-fast" in capsys.readouterr().out


def test_cli_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom prorec_fast.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'safetensors', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=300, cwd=HERE)


def test_cli_shows_a_bar_on_a_terminal(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments = ["train", "--data", str(folder), *QUICK, "--framework", "none", "--out", str(tmp_path / "r"), "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "4/4" in err and "best recall@20" in err


def test_cli_interrupt_leaves_a_run_that_resumes(folder, tmp_path):
    out = tmp_path / "r"
    settings = ["--framework", "none", "--dim", "8", "--batch-size", "64", "--eval-every", "1", "--device", "cpu"]
    command = [*COMMAND, "train", "--data", str(folder), *settings, "--epochs", "100000", "--patience", "100000"]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=HERE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    while "epoch 3," not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130 and stdout == ""
    last = stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr and "interrupted" in last and f"--resume --out {out}" in last
    done = len(json.loads((out / "none" / "history.json").read_text())["epochs"])
    assert done >= 3
    assert main(["train", "--resume", "--out", str(out), "--epochs", str(done + 2)]) == 0
    assert len(json.loads((out / "none" / "history.json").read_text())["epochs"]) == done + 2


def test_cli_help_names_the_real_defaults(capsys):
    from prorec_fast.cli.settings import SYNTHETIC_BATCH
    from prorec_fast.frameworks import RELEASED
    from prorec_fast.models import LightGCN, SimGCL

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    promax, proex = RELEASED.promax, RELEASED.proex
    interactions, users = (SYNTHETIC_BATCH[kind] for kind in ("interactions", "users"))
    assert f"default: {RELEASED.batch_size}; {interactions} for the built-in set" in text
    assert f"or users ({RELEASED.user_batch_size}; {users})" in text
    for option, value in (
        ("--epochs", RELEASED.epochs),
        ("--patience", RELEASED.patience),
        ("--eval-every", RELEASED.eval_every),
        ("--layers", inspect.signature(LightGCN).parameters["num_layers"].default),
        ("--lr", RELEASED.lr),
        ("--contrast-weight", inspect.signature(SimGCL).parameters["contrast_weight"].default),
        ("--temperature", promax.temperature),
        ("--teacher-temperature", promax.teacher_temperature),
        ("--whitening", promax.whitening),
        ("--warmup-epochs", promax.warmup_epochs),
        ("--num-profiles", proex.num_profiles),
        ("--num-environments", proex.num_environments),
        ("--alpha", proex.alpha),
        ("--variance-weight", f"{proex.variance_weight:g}"),
        ("--regularization-weight", proex.regularization_weight),
        ("--regularization", proex.regularization),
    ):
        described = text.rsplit(f"{option} ", 1)[1].split(")", 1)[0]
        assert f"(default: {value}" in described, (option, described)
