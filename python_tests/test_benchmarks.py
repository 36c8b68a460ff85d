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
    from cases import CASES, measure, settings
    from sizes import OURS
    from timing import WallClock

    for name, case in CASES.items():
        found = settings(name, "cpu", True)
        assert len(found) == len(case.precisions)
        for label, at in found.items():
            result = measure(name, at, WallClock(), 1)
            (mode,) = result["modes"].values()
            assert OURS in mode and len(mode) + len(result["skipped"]) > 1, label
            for provider, why in result["skipped"].items():
                unfit = "not importable" in why or ("CSR" in provider and "not implemented for 'BFloat16'" in why)
                assert unfit, (label, provider, why)
            assert ("tflops" in mode[OURS]) == ("gb_per_s" in mode[OURS])


def test_what_is_wrong_is_never_timed(monkeypatch):
    import bench_bpr
    import cases
    from sizes import OURS, TINY
    from timing import WallClock

    build = bench_bpr.providers

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
                cases.measure("bpr", TINY, WallClock(), 1)
        else:
            result = cases.measure("bpr", TINY, WallClock(), 1)
            assert set(result["modes"]["default"]) == {"eager reference", OURS}
            assert "differs" in result["skipped"][which]

    def nan(at, **arguments):
        found = build(at, **arguments)
        found[OURS] = lambda: [torch.full_like(t, torch.nan) for t in build(at)[OURS]()]
        return found

    monkeypatch.setattr(bench_bpr, "providers", nan)
    with pytest.raises(AssertionError, match="by nan"):
        cases.measure("bpr", TINY, WallClock(), 1)


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
    from cases import measure
    from sizes import OURS, TINY

    result = measure("bpr", TINY, device_clock, 2)
    assert list(result["modes"]) == list(device_clock.modes) and len(device_clock.modes) == 4
    for found in result["modes"].values():
        assert set(found) == {"eager reference", "torch.compile", OURS}
        assert all(0 < f["min_ms"] <= f["median_ms"] <= f["max_ms"] for f in found.values())
    assert result["extra_mib"] == dict.fromkeys(("eager reference", OURS, "torch.compile"), 2.0)
    assert device_clock.sync_modes == ["error", "default"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_clock_on_a_device():
    from cases import measure
    from sizes import OURS, TINY
    from timing import DeviceClock

    clock = DeviceClock(torch.device("cuda"))
    for name in ("bpr", "distribution_kl", "ProMax step"):
        result = measure(name, replace(TINY, device="cuda"), clock, 2)
        assert all(found[OURS]["min_ms"] > 0 for found in result["modes"].values()), result["skipped"]
        assert result["extra_mib"][OURS] > 0
        clock.graphs = None


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


def test_compare_writes_a_file_that_grows(tmp_path, monkeypatch, capsys):
    import compare
    import record

    file = tmp_path / "deep" / "cpu.json"
    command = [str(BENCHMARKS / "compare.py"), "--tiny", "--rounds", "1", "--out", str(file), "--only"]
    done = run(sys.executable, *command, "ProMax step")
    assert done.returncode == 0, done.stderr
    assert "ProMax step, tf32 [tuned] ms: eager reference" in done.stdout
    content = json.loads(file.read_text())
    assert {"processor", "threads", "torch", "prorec_fast", "commit"} <= set(content["machine"])
    assert set(content["results"]) == {"ProMax step", "ProMax step, tf32"}
    assert all(set(modes) == {"default", "tuned"} for modes in content["results"].values())
    assert set(content) == {"machine", "results", "extra_mib", "skipped"} and os.listdir(file.parent) == ["cpu.json"]
    assert sum(line.startswith("ProMax step [tuned]: ") for line in record.table(content)) == 1
    # Without time nothing is measured; what another machine or commit measured does not stay.
    monkeypatch.setattr(sys, "argv", [*command, "topk", "--seconds", "0"])
    assert compare.main() == 0 and "topk: left out" in capsys.readouterr().out
    assert json.loads(file.read_text()) == content
    assert record.Record(file, "cpu").content["machine"] == record.machine("cpu")
    file.write_text(json.dumps({**content, "machine": {"processor": "another"}}))
    assert "results" not in record.Record(file, "cpu").content


def test_a_case_that_ends_its_process_does_not_end_the_others(tmp_path, monkeypatch):
    import compare
    from record import Record

    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "names = sys.argv[sys.argv.index('--only') + 1:]\n"
        "for name in names:\n"
        "    if name == 'topk': os.abort()\n"
        "    print('a library says something')\n"
        "    print(json.dumps({'case': name, 'modes': {}, 'extra_mib': {}, 'skipped': {}}), flush=True)\n"
        "    print(json.dumps({'done': name}), flush=True)\n"
    )
    monkeypatch.setattr(compare, "__file__", str(script))
    arguments = SimpleNamespace(device="cpu", rounds=1, tiny=False)
    lines = list(compare.results_of(["bpr", "topk", "propagate"], "default", arguments, time.monotonic() + 60))
    assert [line["case"] for line in lines] == ["bpr", "topk", "propagate"]
    assert "the process ended with" in lines[1]["failed"]
    record = Record(tmp_path / "r.json", "cpu")
    assert [compare.note(record, line) for line in lines] == [True, False, True]
    assert list(json.loads((tmp_path / "r.json").read_text())["failed"]) == ["topk"]
    late = list(compare.results_of(["bpr"], "default", arguments, time.monotonic() - 1))
    assert late == [{"case": "bpr", "left out": "no time was left"}]


def test_ceilings_are_positive():
    from ceilings import ceilings
    from timing import WallClock

    found = ceilings("cpu", WallClock(), True)
    assert len(found) == 5 and all(value > 0 for value in found.values())


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
    assert f"benchmarks/compare.py --device cuda --out {tmp_path / 'out' / 'fake.json'} --seconds" in calls


def test_gpu_sh_checks_every_device_kernel_with_compute_sanitizer():
    few = re.search(r"^few='(.*)'$", (BENCHMARKS / "gpu.sh").read_text(), re.M)[1].split(" or ")
    for file in Path(__file__).parent.glob("test_device_*.py"):
        tests = re.findall(r"^def (test_\w+)\(device\b", file.read_text(), re.M)
        assert not tests or any(word in file.name + test for word in few for test in tests), file.name
