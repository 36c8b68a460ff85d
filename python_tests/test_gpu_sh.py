"""benchmarks/gpu.sh: its stages, and what they are called with."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def gpu_sh(benchmarks):
    """Runs it to write into a folder, with variables of the environment that are others."""

    def run(folder: Path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "gpu.sh", str(folder)], env={**os.environ, **environment},
            capture_output=True, text=True, cwd=benchmarks,
        )  # fmt: skip

    return run


def test_gpu_sh_without_a_gpu_says_so(gpu_sh, benchmarks, tmp_path):
    assert subprocess.run(["bash", "-n", benchmarks / "gpu.sh"]).returncode == 0
    for python, reason in ((sys.executable, "torch finds no CUDA device"), ("no-such-python", "no no-such-python")):
        done = gpu_sh(tmp_path / "out", PYTHON=python, CUDA_VISIBLE_DEVICES="")
        assert (done.returncode, done.stderr.strip()) == (2, f"gpu.sh: {reason}")
    assert not (tmp_path / "out").exists()


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_gpu_sh_goes_on_after_a_stage_that_failed(gpu_sh, tmp_path):
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
    done = gpu_sh(tmp_path / "out", PATH=path, PYTHON="python3")
    assert done.returncode == 1, done.stdout + done.stderr
    ends = [line.split()[:2] for line in done.stdout.splitlines()[-7:]]
    assert [name for name, _ in ends] == ["build", "tests", "doctor", "memcheck", "racecheck", "kernels", "training"]
    assert [name for name, verdict in ends if verdict != "passed"] == ["tests"] and ends[1][1] == "FAILED"
    assert "the table" in done.stdout and (tmp_path / "out" / "logs" / "tests.log").read_text() == "1 failed\n"
    calls = log.read_text()
    assert "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=90-real" in calls
    assert f"{HERE}: -m pytest -q" in calls and "-m prorec_fast doctor" in calls
    for tool in ("memcheck", "racecheck"):
        assert f"sanitizer: --tool {tool} --error-exitcode 99" in calls
    assert f"benchmarks/bench.py --device cuda --save {tmp_path / 'out' / 'fake.json'} --seconds" in calls


def test_gpu_sh_checks_every_device_kernel_with_compute_sanitizer(benchmarks):
    few = re.search(r"^few='(.*)'$", (benchmarks / "gpu.sh").read_text(), re.M)[1].split(" or ")
    for file in HERE.glob("test_device_*.py"):
        tests = re.findall(r"^def (test_\w+)\(device\b", file.read_text(), re.M)
        assert not tests or any(word in file.name + test for word in few for test in tests), file.name
