"""`prorec-fast doctor`: what it says of a machine that is well, and of kernels that are not."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_python

import prorec_fast
from prorec_fast import _native, backends, ranking
from prorec_fast.cli import main
from prorec_fast.doctor import checks, diagnosis, levels
from prorec_fast.doctor.accuracy import ERROR_FLOOR, accuracy
from prorec_fast.ops import bpr

CPU = torch.device("cpu")


@pytest.fixture
def alone(monkeypatch):
    """Only this process is looked at, not the other instruction sets'."""
    monkeypatch.setattr(levels, "check_others", lambda used: [])


@pytest.fixture
def only(monkeypatch, alone):
    """A function that leaves the checks of one operation."""
    cases = checks.cases
    return lambda name: monkeypatch.setattr(
        checks, "cases", lambda device: (case for case in cases(device) if case.operation == name)
    )


def test_doctor_of_a_machine_that_is_well(capsys, monkeypatch):
    monkeypatch.setattr(levels, "LEVELS", ("baseline", "avx512"))  # two are enough here
    assert main(["doctor", "--json", "--device", "cpu"]) == 0
    out, _ = capsys.readouterr()
    found = json.loads(out)
    assert found["ok"] and found["verdict"].startswith("all well: ") and not found["problems"]
    assert found["versions"]["torch"] == torch.__version__ and found["kernels"]["CPU instruction set"]
    places = {check["where"] for check in found["checks"]}
    assert levels.where(_native.extension().isa()) in places and levels.where("baseline") in places
    for where in places:
        checked = [check for check in found["checks"] if check["where"] == where]
        assert {check["operation"] for check in checked} == set(backends.CUDA_LANGUAGE)
        assert all(check["ok"] and check["error"] <= check["allowed"] for check in checked)
    assert found["seconds"] > 0


class _Recorder:
    """The extension, and which of its kernels were called."""

    def __init__(self, module):
        self.module, self.called = module, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.module, name)


def test_doctor_calls_every_kernel(monkeypatch):
    recorder = _Recorder(_native.extension())
    monkeypatch.setattr(_native, "extension", lambda: recorder)
    found = list(checks.check_device(CPU, "cpu", backends.CUDA_LANGUAGE))
    assert all(check.ok for check in found), [str(check) for check in found if not check.ok]
    assert {check.dtype for check in found} == {"float32", "bfloat16", "float16"}
    kernels = {name for name in dir(recorder.module) if not name.startswith("_")}
    no_kernels = {"cuda", "isa", "parallel_backend"}  # cuda: where it was built, the launchers of another device
    assert kernels - recorder.called <= no_kernels


def test_doctor_of_a_cuda_device(device):
    simulated = {"bpr", "candidate_items", "gaussian_kl", "topk"}  # the others take long without a device
    operations = set(backends.CUDA_LANGUAGE) if device.type == "cuda" else simulated
    found = list(checks.check_device(device, str(device), operations))
    assert {check.operation for check in found} == operations
    assert all(check.ok for check in found), [str(check) for check in found if not check.ok]


def _with_launch(op, change):
    """The operation `op`, its launch's losses and gradients changed."""

    def launch(*arguments, **options):
        loss, grads = op.launch(*arguments, **options)
        change(loss, grads)
        return loss, grads

    return replace(op, launch=launch)


def _value_is_off(loss, grads):
    loss.mul_(1 + 1e-4)


def _last_gradient_is_off(loss, grads):
    for grad in grads[-1:]:
        grad[-1, -1] += 1e-3 * grad.abs().max()


def _nan(loss, grads):
    loss[-1] = torch.nan


def _raises(loss, grads):
    raise RuntimeError("out of\nresources")


@pytest.mark.parametrize(
    "module, name, change, result, problem",
    [
        ("bpr", "BPR", _value_is_off, "value", r"error 0\.0001, allowed 4\.\de-06"),
        ("info_nce", "INFO_NCE", _last_gradient_is_off, "gradient of positive", r"error \S+, allowed \S+"),
        ("gaussian_kl", "PRIOR_GAUSSIAN_KL", _nan, "value", "not finite"),
        ("multinomial_nll", "MULTINOMIAL_NLL", _raises, "call", "RuntimeError: out of resources"),
    ],
)
def test_doctor_says_which_kernel_is_off(module, name, change, result, problem, monkeypatch, capsys, only):
    file = importlib.import_module(f"prorec_fast.ops.{module}")
    monkeypatch.setattr(file, name, _with_launch(getattr(file, name), change))
    only(module)
    assert main(["doctor", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    level = _native.extension().isa()
    assert lines[-1].startswith(f"off: {module} on cpu ({level}). To do: install prorec_fast again")
    assert re.fullmatch(rf"  {module} +OFF", next(line for line in lines if line.startswith(f"  {module} ")))
    float32 = next(line for line in lines if line.startswith("  off: ") and "float32" in line)
    assert re.search(rf"^  off: {module} on cpu \({level}\), .*, float32, {result}: {problem}$", float32), float32


def test_doctor_finds_wrong_items_among_all_that_is_well(monkeypatch, capsys, alone):
    def swapped(*arguments, **options):
        scores, items = topk(*arguments, **options)
        items[0, :2] = items[0, :2].flip(0)
        return scores, items

    topk = ranking.topk
    monkeypatch.setattr(ranking, "topk", swapped)
    monkeypatch.setitem(prorec_fast.__dict__, "topk", swapped)
    assert main(["doctor", "--json", "--device", "cpu"]) == 1
    found = json.loads(capsys.readouterr().out)
    off = [check for check in found["checks"] if not check["ok"]]
    assert {(check["operation"], check["form"]) for check in off} == {("topk", "order, with ties")}
    assert off[0]["problem"] == "2 of 3500 entries are wrong" and "off: topk on cpu" in found["verdict"]


def test_doctor_names_an_instruction_set_that_is_well(monkeypatch, only):
    monkeypatch.setattr(bpr, "BPR", _with_launch(bpr.BPR, _value_is_off))
    only("bpr")
    found = diagnosis.diagnose([CPU])
    used = _native.extension().isa()
    other = next(level for level in levels.LEVELS if level != used)
    well = checks.Check(levels.where(other), "bpr", "rows", "float32", "value", 0.0, 1.0, None)
    found = diagnosis.Diagnosis(found.facts, (*found.checks, well), (), (), 1.0)
    assert f"To do: set PROREC_FAST_ISA={other}, whose kernels are well; install" in found.verdict


@pytest.mark.parametrize("spoiled", [float("inf"), float("nan")])
def test_what_eager_overflows_in_allows_a_kernel_nothing(spoiled):
    truth = torch.tensor([1.0, 2.0])
    eager = torch.tensor([1.0, spoiled])
    found = accuracy(truth.float() + 0.1, eager, truth.double())
    assert not found.ok and found.allowed == ERROR_FLOOR[torch.float32]
    assert accuracy(truth.float(), eager, truth.double()).ok


def _process(code):
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_doctor_of_an_instruction_set_that_brings_its_process_down(monkeypatch):
    first, second, *_ = [case.operation + case.form + str(dtype) for case, dtype in checks.calls(CPU, {"bpr"})]
    monkeypatch.setattr(levels, "CUDA_LANGUAGE", {"bpr": "triton"})
    line = json.dumps(dict(where="cpu (avx2)", operation="bpr", form="rows", dtype="float32", result="value", error=0.0,
                           allowed=1.0, problem=None))  # fmt: skip
    killed = levels.finish("avx2", _process(f"import os; print('''{line}''', flush=True); os.kill(os.getpid(), 4)"))
    assert len(killed) == 2 and killed[0].ok
    assert killed[1].problem == f"the process died of {signal.Signals(4).name}"
    assert killed[1].operation + killed[1].form + "torch." + killed[1].dtype == second != first
    lines = "\\n".join([line] * len(list(checks.calls(CPU, {"bpr"}))))
    late = levels.finish("avx2", _process(f"import os; print('{lines}', flush=True); os.kill(os.getpid(), 11)"))
    assert late[-1].problem == f"the process died of {signal.Signals(11).name}, after the last call"
    assert all(check.ok for check in late[:-1])
    monkeypatch.setattr(levels, "_SECONDS", 0.2)
    (hung,) = levels.finish("avx2", _process("import time; time.sleep(60)"))
    assert hung.problem == "no answer within 0.2 s"


def test_doctor_passes_over_an_instruction_set_that_the_processor_has_not_got():
    says = "ValueError: PROREC_FAST_ISA=avx512: want baseline, avx2 or avx512, and a processor with it"
    assert levels.finish("avx512", _process(f"raise SystemExit('{says}')")) == []


def test_doctor_where_no_process_can_be_started(monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("not here")

    cases = checks.cases
    monkeypatch.setattr(checks, "cases", lambda device: (case for case in cases(device) if case.operation == "bpr"))
    monkeypatch.setattr(levels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(levels.subprocess, "Popen", refuse)
    found = diagnosis.diagnose([CPU])
    assert found.ok and found.verdict.endswith("; other instruction sets were not checked: not here")


def test_doctor_without_the_extension_and_with_an_unknown_instruction_set(monkeypatch, capsys):
    def missing():
        raise ImportError("the compiled kernels are missing; run 'pip install .' again")

    monkeypatch.setattr(_native, "extension", missing)
    assert main(["doctor", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "off: the compiled kernels are missing; run 'pip install .' again"
    )

    class Refusing:
        def isa(self):
            raise ValueError("PROREC_FAST_ISA=sse9: want baseline")

    monkeypatch.setattr(_native, "extension", Refusing)
    assert main(["doctor", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "off: PROREC_FAST_ISA=sse9: want baseline; unset it"


def test_doctor_with_optional_packages_missing_or_broken(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('no such\\nlibrary')")
    out = run_python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("scipy", "openai", "pydantic", "matplotlib", "sentence_transformers"):
                    raise ImportError(f"doctor asked for {{name}}")
        sys.meta_path.insert(0, Refuse())
        from prorec_fast.doctor import checks, levels
        levels.check_others = lambda used: []
        cases = checks.cases
        checks.cases = lambda device: (case for case in cases(device) if case.operation == "topk")
        from prorec_fast.cli import main
        sys.exit(main(["doctor"]))
        """
    )
    assert "Triton cannot be used (OSError: no such library)" in out and "all well" in out


def test_optional_packages_are_those_of_the_extras(monkeypatch):
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    table = text.split("[project.optional-dependencies]")[1].split("\ntest = ")[0]
    declared = {
        package: (extra, least)
        for extra, packages in re.findall(r"^(\w+) = \[(.*)\]$", table, re.MULTILINE)
        for package, least in re.findall(r'"([\w-]+)>=([\d.]+)"', packages)
    }
    assert declared == {package: (extra.name, extra.least) for package, extra in backends.OPTIONAL.items()}
    versions = {"openai": "1.60.0", "pydantic": "2.0a1", "scipy": "1.10"}
    monkeypatch.setattr(backends, "_version", lambda package: versions.get(package, "not installed"))
    found = backends.backends()["optional"]
    assert found["scipy"] == "1.10" and found["pydantic"] == "2.0a1"
    assert found["openai"].startswith("1.60.0, 1.92 is needed: no profiles and embeddings from a service; pip install")
    assert found["matplotlib"].endswith('pip install "prorec-fast[plot]"')


def test_doctor_of_cuda_devices(monkeypatch, capsys, only):
    """As far as can be seen without one: what is said, and a device that does not answer."""
    only("bpr")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    problems = {"triton": None, "cuda": "the driver is for CUDA 11"}
    monkeypatch.setattr(_native, "device_problem", lambda language, number: problems[language])
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]["cuda:1"] == "Card 1 (sm_90)"
    assert found["operations"]["bpr"]["cuda"] == "Triton kernel"
    assert found["operations"]["topk"]["cuda"] == "reference (plain PyTorch): the driver is for CUDA 11"
    assert [problem.split(" does not answer: ")[0] for problem in found["problems"]] == ["cuda:0", "cuda:1"]
    assert {check["where"] for check in found["checks"]} == {f"cpu ({_native.extension().isa()})"}
    assert main(["doctor", "--device", "cuda:7"]) == 2
    assert "--device: cuda:7 is not available here" in capsys.readouterr().err


def test_doctor_notes_what_plain_pytorch_serves(only):
    only("bpr")
    found = diagnosis.diagnose([CPU, torch.device("meta")])
    assert found.ok and found.places == [levels.where(_native.extension().isa())]
    assert found.notes[0].startswith("on meta plain PyTorch serves bpr, candidate_items")
    assert found.notes[0].endswith("no kernel is for meta") and found.verdict.endswith(found.notes[0])
