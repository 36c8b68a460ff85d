"""The bench program: what it runs and refuses, its results file, and what it says of an older one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_bench_as_it_is_run(tmp_path):
    """Every process of it, from elsewhere."""
    import record

    file = tmp_path / "deep" / "cpu.json"
    command = ["bench", "ranking_metrics", "--tiny", "--rounds", "2", "--save", str(file)]
    program = [sys.executable, "-m", "prorec_fast", *command]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert {"processor", "threads", "torch", "prorec_fast", "python", "numpy", "scipy"} <= set(content["machine"])
    (case,) = content["cases"].values()
    assert list(content["cases"]) == ["ranking_metrics, tiny, forward"] and os.listdir(file.parent) == ["cpu.json"]
    identity = {
        "operation": "ranking_metrics",
        "variant": "",
        "size": "tiny",
        "pass": "forward",
        "precision": "float32",
    }
    assert identity.items() <= case.items() and set(case["modes"]) == {"default", "tuned"}
    assert set(case["extra_mib"]) == {"eager reference", "ours"} and list(case["skipped"]) == ["torch.compile"]
    assert case["others_share"].keys() == case["ceilings"].keys() == {"default", "tuned"}
    for mode, of in ((mode, of) for mode, found in case["modes"].items() for of in found.values()):
        assert case["ceilings"][mode].keys() == {"copy_gb_per_s", "mm_gflop_per_s"}
        least = case["work"]["gb"] / case["ceilings"][mode]["copy_gb_per_s"]
        assert of["rounds"] == 2 and of["min_ms"] <= of["q1_ms"] <= of["median_ms"] <= of["q3_ms"] <= of["max_ms"]
        assert of["share_of_ceiling"] == pytest.approx(1e3 * least / of["median_ms"])
        assert of["gb_per_s"] == pytest.approx(1e3 * case["work"]["gb"] / of["median_ms"])
    lines = [line for line in done.stdout.splitlines() if not line.startswith("  disturbed: ")]
    assert lines[0].startswith("ranking_metrics, tiny, forward, 0 GFLOP, ") and len(lines) == 8
    assert lines[4].split()[:3] == ["[tuned]", "median", "ms"] and lines[6].split()[0] == "ours"
    assert sum(line.startswith("ranking_metrics, tiny, forward [tuned]: ") for line in record.table(content)) == 1


@pytest.fixture
def measured(monkeypatch):
    """bench.main with processes that find what they are told: {cell's label: result}."""
    import bench

    found = {}

    def results_of(todo, mode, rounds, deadline, names):
        for cell in todo:
            assert list(names) == (["ours"] if mode == bench.MEMORY else [])
            default = {"modes": {mode: {"ours": bench_times(2.0)}}, "skipped": {"faiss": "not importable"}}
            result = found.get(cell.label, {"extra_mib": {"ours": 3.0}} if mode == bench.MEMORY else default)
            reached = {"copy_gb_per_s": 10.0, "mm_gflop_per_s": 100.0}
            yield cell, {"ceilings": reached, "data": "synthetic", "work": {}, **result}

    monkeypatch.setattr(bench, "results_of", results_of)
    return found


def bench_times(median, spread=0.1):
    return {"median_ms": median, "q1_ms": median - spread, "q3_ms": median + spread, "min_ms": 0.0, "max_ms": 9.0}


def test_a_results_file_grows(measured, tmp_path, capsys):
    import bench
    import record

    file = tmp_path / "cpu.json"
    assert bench.main(["bpr", "--size", "yelp", "steam", "--save", str(file)]) == 0
    assert bench.main(["topk", "--save", str(file)]) == 0
    content = json.loads(file.read_text())
    labels = ["bpr, yelp, forward+backward", "bpr, steam, forward+backward", "topk, amazon_book, forward"]
    assert list(content["cases"]) == labels and content == record.Record(file, "cpu").content
    assert content["cases"][labels[2]]["extra_mib"] == {"ours": 3.0}
    assert "without faiss: not importable" in capsys.readouterr().out
    assert all(case["commit"] and case["data"] == "synthetic" for case in content["cases"].values())
    # What another machine measured is not mixed with it, and not lost.
    for name in ("cpu.earlier.json", "cpu.earlier-2.json"):
        other = json.dumps({**content, "machine": {"processor": name}})
        file.write_text(other)
        assert "cases" not in record.Record(file, "cpu").content
        assert (tmp_path / name).read_text() == other and f"moved to {name}" in capsys.readouterr().err
    assert "cpu.earlier.json" in (tmp_path / "cpu.earlier.json").read_text()


def test_a_cell_says_whose_its_graph_is(monkeypatch, capsys):
    import bench
    from cases import Cell

    monkeypatch.setattr(bench, "_refuse_more_than_there_is", lambda: None)
    cells = [asdict(Cell(name, "tiny", "forward")) for name in ("epoch_batches", "bpr", "candidate_items")]
    bench.work_through({"device": "cpu", "mode": "default", "rounds": 1, "names": [], "cells": cells})
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [result["data"] for result in results] == ["synthetic", "", "synthetic"]


def test_bench_in_json_and_what_has_failed(measured, capsys):
    import bench

    assert bench.main(["gaussian_kl", "--tiny"]) == 0  # in bfloat16, too, for whose products a CPU has no ceiling
    assert "gaussian_kl, tiny, forward+backward, bfloat16" in capsys.readouterr().out
    assert bench.main(["bpr", "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert captured.err.startswith("bpr, amazon_book, forward+backward ...\n")
    assert list(content["cases"]) == ["bpr, amazon_book, forward+backward"]
    measured["bpr, yelp, forward+backward"] = {"failed": "AssertionError: ours: differs"}
    measured["bpr, steam, forward+backward"] = {"left out": "no time was left"}
    assert bench.main(["bpr", "--size", "yelp", "steam", "--json"]) == 1
    captured = capsys.readouterr()
    (case,) = json.loads(captured.out)["cases"].values()
    assert case["failed"] == "AssertionError: ours: differs" and "modes" not in case
    assert captured.err.count("steam, forward+backward: left out: no time was left") == 1


def test_bench_refuses_what_it_cannot_do(measured, capsys, tmp_path):
    import bench
    import record

    (tmp_path / "old.json").write_text(json.dumps({"machine": {"processor": "another"}}))
    (tmp_path / "other.json").write_text(json.dumps({"machine": record.machine("cpu"), "cases": {}}))
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "package.json").write_text('{"name": "another"}')
    for words, message in (
        (["nonsense"], "OP: want an operation .* such as distribution_kl, .*; got 'nonsense'"),
        (["topk", "gaussian"], "such as 'gaussian_kl'; got 'gaussian'"),
        (["promax_step", "--size", "large"], "none of these is timed"),
        (["--against", str(tmp_path / "none.json")], "--against: .*No such file"),
        (["--against", str(tmp_path / "text.json")], "--against: .*text.json is no results file"),
        (["--against", str(tmp_path / "list.json")], "--against: .*list.json is no results file: it names no machine"),
        (["--save", str(tmp_path / "text.json")], "--save: .*text.json is no results file"),
        (["--save", str(tmp_path / "package.json")], "--save: .*package.json is no results file: it names no machine"),
        (["--against", str(tmp_path / "other.json")], "--against: .* has nothing of what is to be timed: "),
        (["--save", "bpr"], "--save: 'bpr' is an operation"),
        (["--against", str(tmp_path / "old.json")], "processor: another in the old file, .* in the new one"),
    ):
        assert bench.main(words) == 2
        captured = capsys.readouterr()
        assert re.search(message, captured.err) and len(captured.err.splitlines()) == 1 and not captured.out
    assert (tmp_path / "package.json").exists() and (tmp_path / "text.json").read_text() == "no JSON"


def test_bench_against_an_older_file(measured, tmp_path, capsys, monkeypatch):
    import bench

    file, label = tmp_path / "old.json", "bpr, amazon_book, forward+backward"

    def until_time_is_up(todo, mode, *_):
        reached = {"copy_gb_per_s": 10.0, "mm_gflop_per_s": 100.0}
        first = {"ceilings": reached, "modes": {"default": {"ours": bench_times(2.0)}}}
        yield todo[0], first if mode == "default" else {"left out": "no time was left"}

    assert bench.main(["bpr", "--save", str(file)]) == 0
    assert bench.main(["bpr", "--against", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 got worse"
    measured[label] = {"modes": {"tuned": {"ours": bench_times(2.3)}}, "others_share": {"tuned": 0.2}}
    assert bench.main(["bpr", "--against", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  disturbed: others had 20% of the processors in places" in lines
    assert lines[-3:] == [
        f"{label} [tuned]: disturbed by other processes, not compared",
        f"{label} [default] ours: not timed any more",
        "1 got worse",
    ]
    measured[label] = {"modes": {mode: {"ours": bench_times(2.3)} for mode in ("default", "tuned")}}
    assert bench.main(["bpr", "--against", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"{label} [tuned] ours: 2 (1.9 .. 2.1) -> 2.3 (2.2 .. 2.4) ms, x 1.15", "2 got worse"]
    measured[label] |= {"data": "amazon_book"}
    assert bench.main(["bpr", "--against", str(file), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    data = "of the data synthetic in the old file, amazon_book in the new one, not compared"
    assert content["worse"] == [] and content["not_compared"] == [f"{label}: {data}"]
    # Time was up after the first mode: that says nothing of the second.
    monkeypatch.setattr(bench, "results_of", until_time_is_up)
    assert bench.main(["bpr", "--against", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{label}: in the new file something is left out: no time was left", "0 got worse"
    ]  # fmt: skip


def test_regressions_are_beyond_the_spread(tmp_path, capsys):
    import regressions

    machine = {"processor": "P", "threads": 2}

    def content(median=2.0, spread=0.1, mib=10.0, machine=machine, **fields):
        times = {"ours": bench_times(median, spread), "faiss": bench_times(median * median, 0.0)}
        return {"machine": machine, "cases": {"bpr": {"modes": {"tuned": times}, "extra_mib": {"ours": mib}, **fields}}}

    old = content()
    for new, worse in (
        (content(2.0), 0), (content(1.0), 0), (content(2.19), 0), (content(2.3), 1), (content(2.3, 0.3), 0),
        (content(mib=11.1), 1), (content(mib=10.9), 0), (content(2.3, mib=20.0), 2), (content(failed="why"), 1),
    ):  # fmt: skip
        assert len(regressions.compare(old, new)) == worse, new
    assert not regressions.compare(content(spread=0.0), content(2.09, 0.0))  # within a twentieth
    for other in (content(machine={**machine, "threads": 1}), {"machine": machine, "cases": {}}):
        with pytest.raises(regressions.Incomparable, match=r"threads: 2|none in common"):
            regressions.compare(old, other)
    files = {name: tmp_path / f"{name}.json" for name in ("old", "new", "other")}
    for file, found in zip(files.values(), (old, content(3.0), {"machine": {}}), strict=True):
        file.write_text(json.dumps(found))

    def code(*names):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["regressions.py", *(str(files[name]) for name in names)])
            return regressions.main()

    assert [code("old", "old"), code("old", "new"), code("new", "old"), code("old", "other"), code("old")] == [
        0, 1, 0, 2, 2
    ]  # fmt: skip
    capsys.readouterr()
    files["new"].write_text(json.dumps(old | {"cases": {**old["cases"], "topk": {}}}))
    assert code("new", "old") == 0 and capsys.readouterr().out == "topk: not in the new file\n0 got worse\n"
    gone = content(modes={"default": {"ours": bench_times(1.0)}})
    assert regressions.compare(old, gone) == ["bpr [tuned] ours: not timed any more"]
    # What other processes have disturbed is not compared, on either side.
    busy = content(3.0, others_share={"tuned": 0.09})
    assert not regressions.compare(old, busy) and not regressions.compare(busy, content(9.0))
    assert len(regressions.compare(old, content(3.0, others_share={"tuned": 0.08}))) == 1
    assert regressions.not_compared(busy, old, ["bpr"]) == ["bpr [tuned]: disturbed by other processes, not compared"]


def test_regressions_of_whole_trainings(tmp_path, capsys, monkeypatch):
    import regressions

    def training(epoch=2.0, validation=0.5, sizes=(10, 20)):
        spreads = {
            key: {"q1": 0.9 * of, "median": of, "q3": 1.1 * of} if of else None
            for key, of in (("epoch_s", epoch), ("validation_s", validation))
        }
        found = {"sizes": sizes, "framework": {"name": "promax"}, "ours": spreads}
        return {"machine": {}, "end_to_end": {"amazon_book": {"promax": found}}, "scaling": {}}

    for new, worse in (
        (training(), []), (training(1.0), []), (training(2.3), []), (training(validation=None), []),
        (training(2.6), ["amazon_book, promax: an epoch 2 (1.8 .. 2.2) -> 2.6 (2.34 .. 2.86) s, x 1.30"]),
        (training(9.0, sizes=(10, 21)), []),
    ):  # fmt: skip
        assert regressions.compare(training(), new) == worse
    files = tmp_path / "old.json", tmp_path / "new.json"
    for file, content in zip(files, (training(), training(validation=9.0, sizes=(9, 9))), strict=True):
        file.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["regressions.py", *map(str, files)])
    assert regressions.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "amazon_book, promax: of other settings in the new file, not compared",
        "scaling: without a spread, not compared", "0 got worse",
    ]  # fmt: skip


def test_a_cell_that_ends_its_process_does_not_end_the_others(tmp_path, monkeypatch):
    import bench
    from cases import Cell

    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "job = json.loads(sys.argv[2])\n"
        "for cell in job['cells']:\n"
        "    if cell['name'] == 'topk': os.abort()\n"
        "    if cell['name'] == 'gaussian_kl':\n"
        "        print(json.dumps({'failed': 'the device'}), flush=True)\n"
        f"        os._exit({bench.LOST})\n"
        "    print('a library says something')\n"
        "    print(json.dumps({'mode': job['mode'], 'malloc': os.environ['MALLOC_MMAP_MAX_'], **cell}), flush=True)\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    todo = [Cell(name, "tiny", "forward") for name in ("bpr", "topk", "gaussian_kl", "propagate")]
    found = list(bench.results_of(todo, "tuned", 1, time.monotonic() + 60))
    assert [cell for cell, _ in found] == todo
    assert "the process ended with" in found[1][1]["failed"]
    assert found[2][1] == {"failed": "the device"}
    assert found[3][1] == {"mode": "tuned", "malloc": "0", **vars(todo[3])}
    late = list(bench.results_of(todo[:1], "default", 1, time.monotonic() - 1))
    assert late == [(todo[0], {"left out": "no time was left"})]
