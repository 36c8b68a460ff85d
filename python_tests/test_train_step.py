"""Training steps replayed as CUDA graphs: when they are captured, that nothing is trained on twice or left out, that
the host never waits for the device; and the same on a real device where there is one."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from training_data import tiny

from prorec_fast import _native
from prorec_fast.frameworks import Plain, ProMax
from prorec_fast.models import MF, LightGCN
from prorec_fast.sampling import sample_negatives
from prorec_fast.train import fit, loop
from prorec_fast.train.step import WARMUP_STEPS, CudaGraphs

EPOCHS, WARMUP_EPOCHS, BATCH = 6, 2, 128
SETTINGS = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.01, "eval_every": 3, "seed": 3}
FRAMEWORKS = pytest.mark.parametrize(
    "framework", [Plain(), ProMax(warmup_epochs=WARMUP_EPOCHS)], ids=["none", "promax"]
)
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("step") / "tiny")


class RecordedWork:
    """What a CUDA graph does, as Python: recording does nothing, replaying does the work."""

    def __init__(self, work, log) -> None:
        self.work, self.log = work, log

    def replay(self) -> None:
        self.log.append("replay")
        self.work()


class RecordingGraphs:
    """Stands for CudaGraphs; captures fail from number `failing` on."""

    def __init__(self, failing: int | None = None) -> None:
        self.log, self.shared, self.failing = [], [], failing

    def warm_up(self, work) -> None:
        self.log.append("warm up")
        work()

    def capture(self, work, sharing):
        if self.failing is not None and self.log.count("capture") >= self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more of it")
        self.log.append("capture")
        self.shared.append(sharing is not None)
        return RecordedWork(work, self.log)


def train(monkeypatch, data, framework, graphs=None, model=None, **settings):
    """(history without times, weights, graphs) of a run whose device captures with `graphs`."""
    monkeypatch.setattr(loop, "graphs_for", lambda device: graphs)
    model = LightGCN(data, dim=8) if model is None else model
    run = fit(model, data, framework, **{**SETTINGS, **settings})
    history = [{key: value for key, value in record.items() if "seconds" not in key} for record in run.history]
    return history, model.state_dict()


def assert_equal_runs(got, want) -> None:
    assert got[0] == want[0]
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])


def steps_of(data, epochs: int) -> tuple[int, int]:
    """(full, short) batches in so many epochs."""
    full, rest = divmod(data.train.num_edges, BATCH)
    assert rest > 0 and full > 1
    return full * epochs, epochs


@FRAMEWORKS
def test_captured_training_is_eager_training(data, monkeypatch, framework, caplog):
    graphs = RecordingGraphs()
    eager = train(monkeypatch, data, framework)
    captured = train(monkeypatch, data, framework, graphs)
    assert_equal_runs(captured, eager)

    phases = [EPOCHS] if framework == Plain() else [WARMUP_EPOCHS, EPOCHS - WARMUP_EPOCHS]
    counts = [count for epochs in phases for count in steps_of(data, epochs)]
    assert graphs.log.count("warm up") == sum(min(WARMUP_STEPS, count) for count in counts)
    assert graphs.log.count("capture") == sum(count > WARMUP_STEPS for count in counts)
    assert graphs.log.count("replay") == sum(max(count - WARMUP_STEPS, 0) for count in counts)
    # The graph of a phase's short batches shares the pool of that of its full ones; no pool outlives its phase.
    assert graphs.shared == ([False, True] if framework == Plain() else [False, False, True])
    assert not caplog.records


def test_a_step_reads_every_batch_from_one_place(data, monkeypatch):
    """The kernels that a capture holds are those that the warm-up compiled: the same addresses."""
    seen = {}

    def terms(self, users, positives, negatives):
        place = tuple(index.data_ptr() for index in (users, positives, negatives))
        seen.setdefault(users.numel(), set()).add(place)
        return original(self, users, positives, negatives)

    objective = type(Plain().bind(MF(data, dim=4), data))
    original = objective.terms
    monkeypatch.setattr(objective, "terms", terms)
    train(monkeypatch, data, Plain(), RecordingGraphs())
    assert len(seen) == 2 and all(len(places) == 1 for places in seen.values())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_capture_leaves_training_eager(data, monkeypatch, failing, caplog):
    framework, graphs = ProMax(warmup_epochs=WARMUP_EPOCHS), RecordingGraphs(failing=failing)
    with caplog.at_level(logging.WARNING, logger="prorec_fast"):
        captured = train(monkeypatch, data, framework, graphs)
    assert_equal_runs(captured, train(monkeypatch, data, framework))
    assert graphs.log.count("capture") == failing
    (record,) = caplog.records
    assert record.name == "prorec_fast.train.step"
    assert record.getMessage().endswith("RuntimeError: operation not permitted when stream is capturing")


def test_what_may_change_between_steps_is_not_captured(data, monkeypatch):
    class Drawing(LightGCN):
        capturable = False

    class Changing(type(ProMax().bind(MF(data, dim=4), data))):
        phase = None

    graphs = RecordingGraphs()
    train(monkeypatch, data, Plain(), graphs, model=Drawing(data, dim=8))
    train(monkeypatch, data, Plain(), graphs, cuda_graph=False)
    monkeypatch.setattr(ProMax, "bind", lambda self, model, data: Changing(self, model, data))
    train(monkeypatch, data, ProMax(), graphs)
    assert graphs.log == []


def test_a_captured_run_resumes(data, monkeypatch, tmp_path):
    framework = ProMax(warmup_epochs=WARMUP_EPOCHS)
    whole = train(monkeypatch, data, framework)
    train(monkeypatch, data, framework, RecordingGraphs(), out=tmp_path / "run", epochs=3)
    resumed = train(
        monkeypatch, data, framework, RecordingGraphs(), out=tmp_path / "run", resume=True, cuda_graph=False
    )
    assert_equal_runs(resumed, whole)


def test_cuda_graphs_leave_the_device_as_it_was(monkeypatch):
    """torch's own context manager, when ending a capture fails: an error over the first one, and its stream current."""
    current = ["the user's stream"]

    class Graph:
        def pool(self):
            return self

    @contextmanager
    def graph(graph, pool, stream):
        pools.append(pool)
        previous, current[0] = current[0], stream
        try:
            yield
        finally:
            if invalid[-1]:
                raise RuntimeError("operation failed due to a previous error during capture")
            current[0] = previous

    def stream(device):
        return SimpleNamespace(device=device)

    healed = []
    generator = SimpleNamespace(clone_state=lambda: "as it was", graphsafe_set_state=healed.append)
    for name, stand_in in {
        "Stream": stream, "CUDAGraph": Graph, "graph": graph, "device": lambda device: nullcontext(),
        "current_stream": lambda device: current[0], "set_stream": lambda stream: current.__setitem__(0, stream),
        "default_generators": [generator],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    pools, invalid, graphs = [], [False], CudaGraphs(torch.device("cuda", 0))
    first = graphs.capture(lambda: None, None)
    second = graphs.capture(lambda: None, first)
    assert pools == [None, first] and second is not first
    for found_invalid, error in ((True, RuntimeError), (False, ZeroDivisionError), (True, ZeroDivisionError)):
        invalid.append(found_invalid)
        with pytest.raises(error):
            graphs.capture(lambda error=error: 1 / 0 if error is ZeroDivisionError else None, None)
        assert current == ["the user's stream"] and healed.pop() == "as it was" and not healed


@pytest.mark.parametrize("operation", [
    lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: x.unique(),
    lambda x: torch.repeat_interleave(x.long()), lambda x: torch.tensor([1, 2]), lambda x: x.nonzero(),
])  # fmt: skip
def test_never_waits_finds_what_waits(never_waits, operation):
    with pytest.raises(AssertionError, match="waits for the device"), never_waits:
        operation(torch.ones(3))


def trainer_of(model, data, framework, batch_size=BATCH, cuda_graph=True):
    objective = framework.bind(model, data)
    return loop._Trainer(objective, data, batch_size=batch_size, lr=0.01, seed=3, cuda_graph=cuda_graph)


def test_a_step_without_kernels_never_waits_for_the_device(data, monkeypatch, never_waits):
    """Plain PyTorch serves, on a device for which no kernel is built: such a step can be captured too."""
    monkeypatch.setattr(_native, "on_cuda", lambda t: True)
    monkeypatch.setattr(_native, "_usable", lambda language, device: False)
    trainer = trainer_of(LightGCN(data, dim=8), data, ProMax())
    batch = torch.stack([*(index[:100] for index in data.train.edges()), torch.arange(100) % data.num_items])
    trainer.step.start_epoch(0)
    with never_waits:
        trainer.step.run(batch)
    assert never_waits.calls > 100


def test_an_epoch_on_the_device_never_waits_and_is_that_of_the_cpu(data, simulated_device, never_waits, monkeypatch):
    def trainer():
        return trainer_of(LightGCN(data, dim=8, init_scale=5.0), data, ProMax(), batch_size=512)

    device = trainer()
    data.train_graph.negative_weights.clear()  # what it keeps for the device, where it is not the CPU
    sample_negatives(data.train_graph, device.visited[0, :1], seed=0)  # looks, once, whether every user has negatives
    with never_waits:
        device.visit_all(0)
    assert never_waits.calls > 100
    monkeypatch.setattr(_native, "on_cuda", lambda t: False)
    cpu = trainer()
    cpu.visit_all(0)
    assert device.step.means() == pytest.approx(cpu.step.means(), rel=1e-5)
    for name, want in cpu.objective.model.state_dict().items():
        torch.testing.assert_close(device.objective.model.state_dict()[name], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("framework", [pytest.param(f, marks=needs_gpu) for f in (Plain(), ProMax())])
def test_gpu_epochs_do_not_wait(data, framework, cuda_graph, caplog):
    trainer = trainer_of(LightGCN(data, dim=8).to("cuda"), data, framework, cuda_graph=cuda_graph)
    for _ in range(WARMUP_STEPS + 1):
        trainer.train_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.visit_all(trainer.progress.epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value > 0 for value in trainer.step.means().values()) and not caplog.records
    graphs = [batches.graph for batches in trainer.step._lengths.values()]
    assert len(graphs) == 2 * cuda_graph and None not in graphs


@pytest.mark.parametrize("framework", [pytest.param(ProMax(warmup_epochs=WARMUP_EPOCHS), marks=needs_gpu)])
def test_gpu_captured_training_is_eager_training(data, framework, caplog):
    def run(cuda_graph, device="cuda"):
        model = LightGCN(data, dim=8, init_scale=5.0)
        found = fit(model, data, framework, device=device, cuda_graph=cuda_graph, **{**SETTINGS, "epochs": 9})
        return [record["terms"] for record in found.history], {k: v.cpu() for k, v in model.state_dict().items()}

    terms, weights = run(True)
    again, weights_again = run(True)
    eager_terms, eager_weights = run(False)
    assert terms == again and all(torch.equal(weights[name], weights_again[name]) for name in weights)
    for got, want in zip(terms, eager_terms, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    for name, value in eager_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    assert not caplog.records


@pytest.mark.parametrize("framework", [pytest.param(Plain(), marks=needs_gpu)])
def test_gpu_failed_capture_leaves_training_eager(data, framework, caplog, monkeypatch):
    """A model that waits for the device cannot be captured; the device is as good as before."""

    class Waiting(LightGCN):
        def representation(self, graph=None):
            assert self.user_embedding.sum().item() < float("inf")
            return super().representation(graph)

    runs = []
    for model in (Waiting(data, dim=8), LightGCN(data, dim=8)):
        run = fit(model, data, framework, device="cuda", **SETTINGS)
        runs.append([record["terms"] for record in run.history])
        assert torch.rand(3, device="cuda").shape == (3,)
    (record,) = caplog.records
    assert "training goes on without CUDA graphs" in record.getMessage()
    for got, want in zip(*runs, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
