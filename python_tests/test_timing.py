"""The benchmarks' clocks, and what they make of times, memory and captured graphs."""

from __future__ import annotations

import time
from functools import cache
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmarks", "compiles_nothing")


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
    times, _ = timing.time_providers(runs, Counted(), "default", 10)
    assert {name: len(values) for name, values in times.items()} == {"short": 10, "long": timing.MIN_ROUNDS}
    times, _ = timing.time_providers({"short": runs["short"]}, Counted(), "default", 10, tiny=True)
    assert len(times["short"]) == 10
    times, _ = timing.time_providers({"short": runs["short"]}, Counted(), "default", 10)
    assert len(times["short"]) == 1e3 * timing.WINDOW_S / 2  # as many as a window takes, with a call before each
    spread = {"median_ms": 3.0, "q1_ms": 2.0, "q3_ms": 4.0, "min_ms": 1.0, "max_ms": 9.0, "rounds": 5}
    assert timing.summary([3.0, 1.0, 9.0, 2.0, 4.0]) == spread
    assert timing.summary([3.0]) == {**dict.fromkeys(spread, 3.0), "rounds": 1}


@pytest.fixture
def alone(monkeypatch):
    """Tells timing.py what others had of the processors in each window, which is one round."""
    import timing

    told = []

    class Told(timing.OtherWork):
        def seconds(self):
            return timing.WINDOW_S

        def share(self):
            return told.pop(0)

    monkeypatch.setattr(timing, "OtherWork", Told)
    return told


def test_what_others_disturb_is_measured_anew(alone):
    import timing

    given = iter(range(300, 400))

    class Counted(timing.WallClock):
        def prepare(self, mode, run):
            pass

        def timed(self, run):
            return float(next(given))

    alone += [0.5, 0.05, 0.2, 0.01]
    # The first call, 300, tells how long one takes; rounds 1 and 3 are disturbed.
    assert timing.time_providers({"": None}, Counted(), "default", 2) == ({"": [302.0, 304.0]}, 0.05)
    # Where it never becomes quiet, what there is is taken, and how disturbed it was.
    lost = int(timing.PATIENCE_S / timing.WINDOW_S)
    given, alone[:] = iter(range(300, 400)), [0.5] * (lost + 2)
    times, share = timing.time_providers({"": None}, Counted(), "default", 2)
    assert len(times[""]) == 2 and times[""][0] == 300 + lost + 1 and share == 0.5 and not alone


def test_a_disturbed_first_call_is_made_anew(alone):
    import timing

    given = iter((3000.0, 2999.0, 2000.0, 2001.0, 2002.0))

    class Counted(timing.WallClock):
        def timed(self, run):
            return next(given)

    alone += [0.5, 0.0, 0.0, 0.0]
    times, _ = timing.time_providers({"": None}, Counted(), "default", 9)
    assert times == {"": [2000.0, 2001.0, 2002.0]}


def test_others_work_is_what_is_not_ours(tmp_path, monkeypatch):
    import other_work

    stat, clock = tmp_path / "stat", SimpleNamespace(perf_counter=lambda: now, process_time=lambda: own)
    monkeypatch.setattr(other_work, "STAT", stat)
    monkeypatch.setattr(other_work, "time", clock)
    monkeypatch.setattr(other_work.os, "sched_getaffinity", lambda process: {0, 2})
    monkeypatch.setattr(other_work.os, "sysconf", lambda name: 100)
    now = own = 0.0
    elsewhere = "cpu1 {0} {0} {0} {0} {0} {0} {0} {0} {0} {0}"  # where this process may not run
    stat.write_text(f"cpu  1 2\ncpu0 1 2 3 4 5 6 7 8 9 10\n{elsewhere.format(0)}\ncpu2 0 0 0 0 0 0 0 0 0 0\nintr 1\n")
    found = other_work.OtherWork()
    now, own = 2.0, 1.5
    # 150 ticks of ours and 42 of others among user, nice, system, interrupts and stolen; idle and waiting are none.
    busy = "cpu0 101 12 13 999 999 16 9 18 999 999"
    stat.write_text(f"cpu  1 2\n{busy}\n{elsewhere.format(777)}\ncpu2 50 0 0 0 0 0 0 0 0 0\nintr 1\n")
    assert found.seconds() == 2.0 and found.share() == pytest.approx((42 - 2) / 100 / (2 * 2.0))
    own = 3.0
    assert found.share() == 0.0
    now, own = 0.1, 0.0
    assert found.share() == 1.0
    stat.unlink()
    found.restart()
    assert found.share() == 0.0


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


def test_ceilings_are_positive():
    from ceilings import ceilings
    from timing import WallClock

    found, disturbed = ceilings("cpu", WallClock(), True)
    assert 0 <= disturbed <= 1
    assert found.keys() == {"copy_gb_per_s", "mm_gflop_per_s"} and all(value > 0 for value in found.values())
