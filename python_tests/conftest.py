"""The device that the kernels for CUDA tensors are tested on: a simulated one, and a real one where there is one. And
what begins ahead of the tests that look at it."""

from __future__ import annotations

import os
import ssl
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: a thread that waits leaves its core to others

import torch
from ahead import Ahead
from emulated_cuda import build

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when a kernel is defined


def pytest_configure(config):
    """Where a wheel is to be tested, sources that come first on the path are not tested in its place."""
    if os.environ.get("PROREC_FAST_TEST_INSTALLED"):
        folder = Path(find_spec("prorec_fast").origin).parents[1]
        if (folder / "CMakeLists.txt").exists():
            raise pytest.UsageError(f"PROREC_FAST_TEST_INSTALLED: prorec_fast comes from the sources in {folder}")


def _work(item: pytest.Item) -> tuple:
    """What a test is marked to look at: the work and its arguments, the test's parameters; () for other tests."""
    mark = item.get_closest_marker("ahead")
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (mark.kwargs["work"], *parameters.values()) if mark else ()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: bool(_work(item)))  # who looks at such work comes last


@pytest.fixture(scope="session")
def emulation(request, tmp_path_factory):
    """The work that builds the emulation, and its folder: one that outlives the run where pytest has a cache."""
    cache = getattr(request.config, "cache", None)
    return build, cache.mkdir("emulated_cuda") if cache else tmp_path_factory.mktemp("emulated_cuda")


@pytest.fixture(scope="session", autouse=True)
def ahead(request, emulation):
    """Begins what the selected tests will look at; the emulation is asked for first."""
    ahead, items = Ahead(), request.session.items
    if any({"emulated_cuda", "simulated_device", *_SIMULATED} & {*item.fixturenames} for item in items):
        ahead.begin(*emulation)
    for item in filter(_work, items):
        ahead.begin(*_work(item))
    yield ahead
    ahead.end()


@pytest.fixture
def done_ahead(ahead, request):
    """What the work that the test is marked with has returned."""
    return ahead.begin(*_work(request.node)).result()


@pytest.fixture(scope="session")
def emulated_cuda(ahead, emulation):
    """The CUDA C++ launchers over an emulated grid."""
    return ahead.begin(*emulation).result()


def _patch_language_once(monkeypatch):
    """Triton's interpreter patches its language for a launch and again for every call of a function in a kernel, which
    takes nearly half of its time: once a launch for each module is enough."""
    from triton.runtime import interpreter

    patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, {}

    def launch_anew(self, *arguments, **options):
        patched.clear()
        return launch(self, *arguments, **options)

    def patch_once(function):
        module = id(function.__globals__)
        if module not in patched:
            patched[module] = patch(function)
        return patched[module]

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)


@pytest.fixture
def triton():
    """There is one that is not too old: torch 2.6 and 2.7 come with one that is. A broken one is no reason to skip."""
    from prorec_fast import _native

    found = pytest.importorskip("triton", reason="the device path needs Triton")
    if "older than" in (problem := _native.triton_problem() or ""):
        pytest.skip(problem)
    return found


@pytest.fixture
def simulated_device(triton, monkeypatch, request):
    """CPU tensors take the device path: Triton's kernels interpreted, the CUDA C++ ones emulated."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's kernels are compiled here, not interpreted")
    from prorec_fast import _native

    def call(t, name, *arguments):
        getattr(request.getfixturevalue("emulated_cuda"), name)(*arguments, 0)

    monkeypatch.setattr(_native, "on_cuda", lambda t: t.device.type == "cpu")
    monkeypatch.setattr(_native, "device_problem", lambda language, device: None)
    monkeypatch.setattr(_native, "cuda_call", call)
    _patch_language_once(monkeypatch)
    return torch.device("cpu")


_DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["simulated"]
_SIMULATED = () if torch.cuda.is_available() else ("device",)


@pytest.fixture(params=_DEVICES)
def device(request):
    """Where a test of the device path puts its tensors."""
    return torch.device("cuda") if request.param == "cuda" else request.getfixturevalue("simulated_device")


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of the benchmarks: its modules can be imported, and draw their data."""
    folder = Path(__file__).parents[1] / "benchmarks"
    if not folder.is_dir():
        pytest.skip("not in this copy")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("PROREC_FAST_BENCH_DATA", raising=False)
    return folder


@pytest.fixture
def compiles_nothing(monkeypatch):
    """torch.compile returns what it gets: compiled forms are looked at as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def store(tmp_path):
    """A file of paid answers that holds none."""
    from prorec_fast.profiles.store import Store

    with Store(tmp_path / "answers.sqlite") as opened:
        yield opened


@pytest.fixture
def no_certificates(monkeypatch):
    """Reading them takes a client longer than most runs over the loopback service, and nothing there is https."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


@pytest.fixture(scope="session")
def truth(tmp_path_factory):
    """What the chains of a batch's twelve rows come to where nothing goes wrong."""
    from batch_runs import walk
    from llm_server import LLMServer

    with LLMServer() as server:
        return walk(server.base_url, tmp_path_factory.mktemp("truth") / "store", 12)


@pytest.fixture
def never_waits(monkeypatch):
    """NeverWaits, and no way around the dispatcher: methods that hand a tensor's content to Python."""
    from waiting import NeverWaits

    from prorec_fast import _checks, _native
    from prorec_fast.ops import environment_bpr

    mode = NeverWaits()

    def guarded(name):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            assert not (mode.active and caller.startswith("prorec_fast")), f"{caller} calls {name}()"
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, method)

    for name in ("tolist", "cpu", "numpy", "item"):
        guarded(name)
    # On the CPU, where waiting costs nothing, entries are looked at; on CUDA they are not.
    for module in (_checks, _native, environment_bpr):
        monkeypatch.setattr(module, "index_range", lambda *_, **__: None)
    return mode
