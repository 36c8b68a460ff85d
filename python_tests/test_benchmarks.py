"""The benchmarks' own code: everything that times, tunes and writes down, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not in this copy")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Their modules can be imported, and torch.compile compiles nothing: its forms are looked at as they are."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.delenv("PROREC_FAST_BENCH_DATA", raising=False)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, cwd=BENCHMARKS
    )


@pytest.mark.filterwarnings("ignore:Sparse")
def test_every_provider_of_every_case_agrees():
    """In every pass and precision; cases that differ by their sizes alone are one here."""
    from cases import PASSES, cells
    from measure import measure, work
    from sizes import EAGER, OURS
    from timing import WallClock

    from prorec_fast.costs import FORMULAS

    once = {}
    for cell in cells(sizes=["tiny"], passes=list(PASSES)):
        of = cell.case
        once.setdefault((of.file, of.function, str(of.arguments), cell.passing, cell.precision), cell)
    absent = ("not importable", "need a CUDA device", "timed on a CPU", "has none", "nothing to fuse", "not compiled")
    for cell in once.values():
        result = measure(cell, WallClock(), 1)
        (mode,) = result["modes"].values()
        assert OURS in mode and len(mode) + len(result["skipped"]) > 1, cell
        assert cell.case.operation not in FORMULAS or not cell.case.agree or EAGER in mode, cell
        for provider, why in result["skipped"].items():
            unfit = "CSR" in provider and "not implemented for 'BFloat16'" in why
            assert unfit or any(reason in why for reason in absent), (cell, provider, why)
        assert bool(work(cell)) == (cell.calls is not None)


def test_every_operation_is_timed_and_every_size_is():
    from cases import CASES, FORWARD, cells
    from sizes import SIZES

    from prorec_fast.costs import FORMULAS

    operations = {case.operation for case in CASES.values()}
    assert set(FORMULAS) <= operations
    for operation in operations:
        found = {(cell.size, cell.passing) for cell in cells([operation], list(SIZES))}
        assert {size for size, _ in found} >= {"amazon_book"} and len({p for _, p in found}) == 1
    assert {cell.case.name for cell in cells(["distribution_kl, eps 1e-8"])} == {"distribution_kl, eps 1e-8"}
    forward = cells(["distribution_kl", "promax_step"], ["large"], [FORWARD])
    assert [cell.label for cell in forward] == ["distribution_kl, large, forward"]
    assert len(cells(["distribution_kl"], device="cuda")) > len(cells(["distribution_kl"]))


def test_graphs_have_the_size_that_is_asked_for(tmp_path, monkeypatch):
    import numpy as np
    import sizes

    monkeypatch.setattr(sizes, "DATA", tmp_path)
    at = replace(sizes.TINY, num_items=49)
    synthetic = at.graph()
    assert (synthetic.num_users, synthetic.num_items, synthetic.num_edges) == (60, 49, 300) and at.data == "synthetic"
    sizes._stored_file.cache_clear()
    (tmp_path / "one").mkdir()
    indptr, indices = np.minimum(np.arange(61) * 5, 300), np.tile(np.arange(5), 60)
    np.savez(tmp_path / "one" / "interactions.npz", shape=[60, 49], train_indptr=indptr, train_indices=indices)
    assert at.graph().user_degree.tolist() == [5] * 60 and at.data == "one"
    assert replace(at, train_edges=301).graph().num_edges == 301
    sizes._stored_file.cache_clear()


def test_what_is_wrong_is_never_timed(monkeypatch):
    import bench_bpr
    from cases import Cell
    from measure import measure
    from sizes import OURS
    from timing import WallClock

    build, cell = bench_bpr.providers, Cell("bpr", "tiny", "forward")

    def spoiled(which):
        def providers(at, **arguments):
            found = build(at, **arguments)
            if not at.exact:
                right = found[which]
                found[which] = lambda: [1.01 * t for t in right()]
            return found

        return providers

    for which in ("torch.compile", OURS):
        monkeypatch.setattr(bench_bpr, "providers", spoiled(which))
        if which == OURS:
            with pytest.raises(AssertionError, match="ours: differs from the definition in float64 by"):
                measure(cell, WallClock(), 1)
        else:
            result = measure(cell, WallClock(), 1)
            assert set(result["modes"]["default"]) == {"eager reference", OURS}
            assert "differs" in result["skipped"][which]

    def nan(at, **arguments):
        found = build(at, **arguments)
        found[OURS] = lambda: [torch.full_like(t, torch.nan) for t in build(at, **arguments)[OURS]()]
        return found

    monkeypatch.setattr(bench_bpr, "providers", nan)
    with pytest.raises(AssertionError, match="by nan"):
        measure(cell, WallClock(), 1)


def test_eager_is_left_out_where_it_would_not_fit(monkeypatch):
    """And the definition gives way to what holds less."""
    import measure
    from bench_distribution_kl import CHUNKED
    from cases import Cell
    from sizes import EAGER, OURS
    from timing import WallClock

    cell = Cell("distribution_kl", "tiny", "forward+backward")
    needed = measure.eager_memory(cell.calls, cell.at, True, torch.float32)
    exact, built, called = cell.build(replace(cell.at, exact=True)), cell.build(cell.at), []
    truth = {name: lambda name=name, run=run: called.append(name) or run() for name, run in exact.items()}
    monkeypatch.setattr(Cell, "build", lambda self, at: truth if at.exact else built)
    for free, defines, fits in ((2.6, EAGER, True), (1.3, CHUNKED, True), (1.2, CHUNKED, False)):
        monkeypatch.setattr(measure, "free_memory", lambda device, free=free: int(free * needed))
        result = measure.measure(cell, WallClock(), 1)
        timed = set(result["modes"]["default"])
        assert {OURS, CHUNKED} <= timed and (EAGER in timed) == fits
        assert called.pop() == defines and not called  # in float64 it holds twice as much
        assert fits or "GiB are free" in result["skipped"][EAGER]


def test_what_hides_beside_larger_numbers_is_seen(monkeypatch):
    """A recall that is off beside a coverage that is right; a wrong item, and one that is to be left out, beside right
    scores."""
    import bench_ranking_metrics
    import bench_retrieval
    import bench_topk
    from cases import Cell
    from measure import prepare
    from sizes import OURS

    def spoil(patch, module, function, change):
        build = getattr(module, function)

        def providers(at, **arguments):
            found = build(at, **arguments)
            if not at.exact:
                right = found[OURS]
                found[OURS] = lambda: change(at, [t.clone() for t in right()])
            return found

        patch.setattr(module, function, providers)

    def lower_recall(_, results):
        results[0][0, 0] *= 0.99
        return results

    def wrong_item(_, results):
        results[1][3, 2] = (results[1][3, 2] + 1) % 50
        return results

    def own_item(at, results):
        indptr, indices = at.graph().csr()
        user = int(indptr.diff().argmax())
        row = int((at.distinct(at.num_users, at.test_users) >= user).nonzero()[0])
        user = int(at.distinct(at.num_users, at.test_users)[row])
        results[1][row, 0] = indices[indptr[user]]
        return results

    def self(_, results):
        results[0][4, 1] = 4
        return results

    for module, function, name, change in (
        (bench_ranking_metrics, "providers", "ranking_metrics", lower_recall),
        (bench_ranking_metrics, "evaluation_providers", "evaluation", lower_recall),
        (bench_topk, "providers", "topk", wrong_item),
        (bench_topk, "providers", "topk", own_item),
        (bench_retrieval, "similar_users_providers", "similar_users", self),
    ):
        cell = Cell(name, "tiny", "forward")
        prepare(cell)
        with monkeypatch.context() as patch:
            spoil(patch, module, function, change)
            with pytest.raises(AssertionError, match="ours: differs"):
                prepare(cell)


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, **_) -> None:
        self.when = 0.0

    def record(self) -> None:
        self.when = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.when - self.when)


class Graphs:
    """Stands for CudaGraphs: what was captured can be replayed, without doing the work again."""

    def __init__(self, device) -> None:
        self.replays = 0

    def warm_up(self, work) -> None:
        work()

    def capture(self, work, sharing):
        work()
        return SimpleNamespace(replay=lambda: None)


@pytest.fixture
def device_clock(monkeypatch):
    """A DeviceClock where there is no device, and what it was asked to write over L2."""
    import timing

    mode = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1024))
    monkeypatch.setattr(timing, "CudaGraphs", Graphs)
    clock = timing.DeviceClock(torch.device("cpu"))
    assert clock.larger_than_l2.numel() > 1024
    clock.sync_modes = mode
    return clock


def test_device_clock_times_every_mode(device_clock):
    from cases import Cell
    from measure import measure
    from sizes import OURS

    result = measure(Cell("bpr", "tiny", "forward"), device_clock, 2)
    assert list(result["modes"]) == list(device_clock.modes) and len(device_clock.modes) == 4
    for found in result["modes"].values():
        assert set(found) == {"eager reference", "torch.compile", OURS}
        assert all(0 < f["min_ms"] <= f["median_ms"] <= f["max_ms"] for f in found.values())
    assert result["extra_mib"] == dict.fromkeys(("eager reference", OURS, "torch.compile"), 2.0)
    assert device_clock.sync_modes == ["error", "default"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_clock_on_a_device():
    from cases import Cell
    from measure import measure
    from sizes import OURS
    from timing import DeviceClock

    clock = DeviceClock(torch.device("cuda"))
    for name in ("bpr", "distribution_kl", "promax_step"):
        result = measure(Cell(name, "tiny", "forward+backward", device="cuda"), clock, 2)
        assert all(found[OURS]["min_ms"] > 0 for found in result["modes"].values()), result["skipped"]
        assert result["extra_mib"][OURS] > 0
        clock.graphs = None


def test_memory_of_ours_is_that_of_a_first_call(monkeypatch):
    """Of other providers, too, but for what is compiled."""
    from cases import Cell
    from measure import measure_memory

    def keeps(mib):
        return cache(lambda: torch.ones(mib << 18))

    def build(self, at):
        return {name: keeps(32 if at == self.at else 0) for name in ("eager reference", "ours")}

    monkeypatch.setattr(Cell, "build", build)
    for name, first_of_eager in (("bpr", 0), ("propagate, d 64", 32)):
        found = measure_memory(Cell(name, "amazon_book", "forward"), ["eager reference", "ours"])["extra_mib"]
        if not found:
            pytest.skip("reads a process's peak memory where Linux tells it")
        assert list(found) == ["ours", "eager reference"]  # before what another call could leave behind
        assert abs(found["ours"] - 32) < 2 and abs(found["eager reference"] - first_of_eager) < 2


def test_what_takes_long_is_left_out(monkeypatch):
    import measure
    from sizes import COMPILED, OURS

    monkeypatch.setattr(measure, "SLOW_S", 0.0)
    runs = dict.fromkeys((OURS, COMPILED, "faiss"), lambda: [])
    found, skipped = measure.those_that_work(runs, lambda results: "")
    assert list(found) == [OURS, COMPILED] and skipped == {"faiss": "takes 0 s"}


def test_what_waits_for_the_device_is_not_captured(device_clock):
    def waits():
        if device_clock.sync_modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation\nand more")
        return [torch.ones(1)]

    runs, unfit = device_clock.runs("captured, L2 warm", {"waits": waits, "does not": lambda: [torch.ones(1)]})
    assert list(runs) == ["does not"]
    assert unfit == {"waits": "not captured: RuntimeError: called a synchronizing CUDA operation"}
    assert device_clock.sync_modes == ["error", "default"] * 2


def test_rounds_are_fewer_where_they_are_long(monkeypatch):
    import timing

    class Counted(timing.WallClock):
        def timed(self, run):
            return run()

    calls = dict.fromkeys(("short", "long"), 0)

    def take(name, milliseconds):
        calls[name] += 1
        return milliseconds

    runs = {"short": lambda: take("short", 1.0), "long": lambda: take("long", 3000.0)}
    times = timing.time_providers(runs, Counted(), "default", 10)
    assert {name: len(values) for name, values in times.items()} == {"short": 10, "long": timing.MIN_ROUNDS}
    spread = {"median_ms": 3.0, "q1_ms": 2.0, "q3_ms": 4.0, "min_ms": 1.0, "max_ms": 9.0, "rounds": 5}
    assert timing.summary([3.0, 1.0, 9.0, 2.0, 4.0]) == spread
    assert timing.summary([3.0]) == {**dict.fromkeys(spread, 3.0), "rounds": 1}


def test_extra_memory_of_a_cpu_is_what_a_call_holds_at_once():
    from timing import extra_memory

    def one_after_another():
        for _ in range(3):
            held = torch.ones(2**23)  # 32 MiB
        return held

    if extra_memory(one_after_another) is None:
        pytest.skip("reads a process's peak memory where Linux tells it")
    kept = torch.ones(2**23)
    for mib, call in ((64, one_after_another), (32, lambda: torch.ones(2**23)), (0, lambda: kept)):
        assert abs(extra_memory(call) / 2**20 - mib) < 2

    def in_the_heap():
        return [torch.ones(2**13) for _ in range(1024)]

    freed, above = in_the_heap(), in_the_heap()
    del freed
    assert abs(extra_memory(in_the_heap) / 2**20 - 32) < 3  # though there was room
    del above


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
    assert content["ceilings"].keys() == {"copy_gb_per_s", "mm_gflop_per_s"}
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
    for of in (of for found in case["modes"].values() for of in found.values()):
        least = case["work"]["gb"] / content["ceilings"]["copy_gb_per_s"]
        assert of["rounds"] == 2 and of["min_ms"] <= of["q1_ms"] <= of["median_ms"] <= of["q3_ms"] <= of["max_ms"]
        assert of["share_of_ceiling"] == pytest.approx(1e3 * least / of["median_ms"])
        assert of["gb_per_s"] == pytest.approx(1e3 * case["work"]["gb"] / of["median_ms"])
    lines = done.stdout.splitlines()
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
            yield cell, found.get(cell.label, {"extra_mib": {"ours": 3.0}} if mode == bench.MEMORY else default)

    monkeypatch.setattr(bench, "results_of", results_of)
    monkeypatch.setattr(bench, "ceilings", lambda *_: {"copy_gb_per_s": 10.0, "mm_gflop_per_s": 100.0})
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
    other = json.dumps({**content, "machine": {"processor": "another"}})
    file.write_text(other)
    assert "cases" not in record.Record(file, "cpu").content
    assert (tmp_path / "cpu.earlier.json").read_text() == other and "moved to" in capsys.readouterr().err


def test_bench_in_json_and_what_has_failed(measured, capsys):
    import bench

    assert bench.main(["gaussian_kl", "--tiny"]) == 0  # in bfloat16, too, for whose products a CPU has no ceiling
    assert "gaussian_kl, tiny, forward+backward, bfloat16" in capsys.readouterr().out
    assert bench.main(["bpr", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
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
    for words, message in (
        (["nonsense"], "OP: want some of distribution_kl; .*; got 'nonsense'"),
        (["promax_step", "--size", "large"], "none of these is timed"),
        (["--against", str(tmp_path / "none.json")], "No such file"),
        (["--against", str(tmp_path / "text.json")], "--against: .*text.json is no results file"),
        (["--against", str(tmp_path / "other.json")], "--against: .* has nothing of what is to be timed: "),
        (["--save", "bpr"], "--save: 'bpr' is an operation"),
        (["--against", str(tmp_path / "old.json")], "processor: another in the old file, .* in the new one"),
    ):
        assert bench.main(words) == 2
        captured = capsys.readouterr()
        assert re.search(message, captured.err) and len(captured.err.splitlines()) == 1 and not captured.out


def test_bench_against_an_older_file(measured, tmp_path, capsys):
    import bench

    file, label = tmp_path / "old.json", "bpr, amazon_book, forward+backward"
    assert bench.main(["bpr", "--save", str(file)]) == 0
    assert bench.main(["bpr", "--against", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 got worse"
    measured[label] = {"modes": {"tuned": {"ours": bench_times(2.3)}}}
    assert bench.main(["bpr", "--against", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"{label} [tuned] ours: 2 (1.9 .. 2.1) -> 2.3 (2.2 .. 2.4) ms, x 1.15", "1 got worse"]


def test_regressions_are_beyond_the_spread(tmp_path):
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


def test_a_cell_that_ends_its_process_does_not_end_the_others(tmp_path, monkeypatch):
    import bench
    from cases import Cell

    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "job = json.loads(sys.argv[2])\n"
        "for cell in job['cells']:\n"
        "    if cell['name'] == 'topk': os.abort()\n"
        "    print('a library says something')\n"
        "    print(json.dumps({'mode': job['mode'], 'malloc': os.environ['MALLOC_MMAP_MAX_'], **cell}), flush=True)\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    todo = [Cell(name, "tiny", "forward") for name in ("bpr", "topk", "propagate")]
    found = list(bench.results_of(todo, "tuned", 1, time.monotonic() + 60))
    assert [cell for cell, _ in found] == todo
    assert "the process ended with" in found[1][1]["failed"]
    assert found[2][1] == {"mode": "tuned", "malloc": "0", **vars(todo[2])}
    late = list(bench.results_of(todo[:1], "default", 1, time.monotonic() - 1))
    assert late == [(todo[0], {"left out": "no time was left"})]


def test_pytest_times_the_same(tmp_path):
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", BENCHMARKS, "--size", "tiny", "-k", "ranking_metrics"]
    done = run(sys.executable, *command, "--benchmark-disable")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_ceilings_are_positive():
    from ceilings import ceilings
    from timing import WallClock

    found = ceilings("cpu", WallClock(), True)
    assert found.keys() == {"copy_gb_per_s", "mm_gflop_per_s"} and all(value > 0 for value in found.values())


def test_tune_finds_a_better_tile(simulated_device, monkeypatch, capsys):
    import tune
    from sizes import TINY
    from timing import WallClock

    from prorec_fast.triton_kernels import tuning

    monkeypatch.setattr(tuning, "TILES", {})
    first = tuning.Tile(64, 32, 4, 2)
    monkeypatch.setitem(tuning.DEFAULT, "distribution_kl_user", {4: {32: first, 64: first}})
    tried, run = [], [torch.ones(3)]

    def median(replay, clock, rounds):
        tile = tuning.TILES["distribution_kl_user", 90][4][32]
        tried.append(tile)
        replay()
        if tile.num_stages == 4:
            raise RuntimeError("out of resource: shared memory")
        return 10.0 - tile.num_stages + tile.num_warps

    monkeypatch.setattr(tune, "median_ms", median)
    monkeypatch.setitem(tune.WORKLOADS, "distribution_kl", lambda at: lambda: run)
    tune.tune(["distribution_kl_user"], [32], replace(TINY, dim=32), WallClock(), 60)
    best = tuning.TILES["distribution_kl_user", 90][4][32]
    assert best == first._replace(num_stages=3, num_warps=2)
    assert tried[0] == first and len(set(tried)) == len(tried)
    assert "out of resource" in capsys.readouterr().err
    rows = eval("{" + tune.table(["distribution_kl_user"], 90) + "}", {"Tile": tuning.Tile})
    assert rows == tuning.TILES


@pytest.mark.parametrize("prefix", ["softmax_sweep", "distribution_kl", "info_nce"])
def test_tune_uses_the_tiles_of_the_kernels(simulated_device, monkeypatch, prefix):
    """A tile that cannot be compiled is noticed: the workload of every operation runs its kernels."""
    import tune
    from sizes import TINY

    from prorec_fast.triton_kernels import tuning

    class Unusable(dict):
        def __getitem__(self, band):
            raise LookupError("this tile")

    for name in [name for name in tuning.DEFAULT if name.startswith(prefix)]:
        for size, precision in ((4, "float32"), (2, "bfloat16")):
            if size not in tuning.DEFAULT[name]:
                continue
            work = tune.WORKLOADS[prefix](replace(TINY, precision=precision))
            with monkeypatch.context() as patch:
                tiles = {**tuning.DEFAULT[name], size: Unusable(tuning.DEFAULT[name][size])}
                patch.setattr(tuning, "TILES", {(name, 90): tiles})
                with pytest.raises(LookupError, match="this tile"):
                    work()
                    pytest.fail(f"{name} is not part of its workload in {precision}")


def test_every_tuned_operation_has_a_workload():
    pytest.importorskip("triton")
    import tune

    from prorec_fast.triton_kernels import tuning

    tables = [*tuning.DEFAULT.items(), *((name, by_size) for (name, _), by_size in tuning.TILES.items())]
    for name, by_size in tables:
        assert sum(name.startswith(prefix) for prefix in tune.WORKLOADS) == 1
        for tile in (tile for tiles in by_size.values() for tile in tiles.values()):
            assert all(value in tune.GRID[field] for field, value in tile._asdict().items()), name


def test_gpu_sh_without_a_gpu_says_so(tmp_path):
    assert run("bash", "-n", "gpu.sh").returncode == 0
    for python, reason in ((sys.executable, "torch finds no CUDA device"), ("no-such-python", "no no-such-python")):
        done = run("bash", "gpu.sh", tmp_path / "out", PYTHON=python, CUDA_VISIBLE_DEVICES="")
        assert (done.returncode, done.stderr.strip()) == (2, f"gpu.sh: {reason}")
    assert not (tmp_path / "out").exists()


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_gpu_sh_goes_on_after_a_stage_that_failed(tmp_path):
    """Its stages with programs that do nothing in place of Python, nvcc and compute-sanitizer."""
    log = tmp_path / "log"
    _program(
        tmp_path / "bin" / "python3",
        f'echo "$PWD: $*" >> {log}\n'
        'case "$*" in *get_device_capability*) echo 90 ;; *--name) echo fake.json ;; *xdist*) exit 1 ;;\n'
        '  *"pytest -q -p no:cacheprovider -m gpu") echo "1 failed"; exit 1 ;; *record.py*) echo "the table" ;; esac\n',
    )
    _program(tmp_path / "bin" / "nvcc", "exit 0\n")
    _program(
        tmp_path / "bin" / "compute-sanitizer",
        'echo "sanitizer: $*" >> ' + str(log) + '\nwhile [[ $1 != *python3 ]]; do shift; done; exec "$@"\n',
    )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = run("bash", "gpu.sh", tmp_path / "out", PATH=path)
    assert done.returncode == 1, done.stdout + done.stderr
    ends = [line.split()[:2] for line in done.stdout.splitlines()[-6:]]
    assert [name for name, _ in ends] == ["build", "tests", "memcheck", "racecheck", "kernels", "training"]
    assert [verdict for _, verdict in ends] == ["passed", "FAILED", "passed", "passed", "passed", "passed"]
    assert "the table" in done.stdout and (tmp_path / "out" / "logs" / "tests.log").read_text() == "1 failed\n"
    calls = log.read_text()
    assert "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=90-real" in calls
    assert f"{ROOT / 'python_tests'}: -m pytest -q" in calls
    for tool in ("memcheck", "racecheck"):
        assert f"sanitizer: --tool {tool} --error-exitcode 99" in calls
    assert f"benchmarks/bench.py --device cuda --save {tmp_path / 'out' / 'fake.json'} --seconds" in calls


def test_gpu_sh_checks_every_device_kernel_with_compute_sanitizer():
    few = re.search(r"^few='(.*)'$", (BENCHMARKS / "gpu.sh").read_text(), re.M)[1].split(" or ")
    for file in Path(__file__).parent.glob("test_device_*.py"):
        tests = re.findall(r"^def (test_\w+)\(device\b", file.read_text(), re.M)
        assert not tests or any(word in file.name + test for word in few for test in tests), file.name
