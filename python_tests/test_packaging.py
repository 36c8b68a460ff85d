"""The scripts and settings that build and test wheels can be read and agree; tests of a wheel refuse the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HERE

ROOT = HERE.parent
SCRIPTS = [*sorted((ROOT / ".ci").glob("*")), ROOT / "benchmarks" / "gpu.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash_and_executable(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n") and os.access(script, os.X_OK)
    subprocess.run([shutil.which("bash") or pytest.skip("there is no bash"), "-n", script], check=True)


def test_wheels_are_built_from_the_oldest_python_on():
    settings = (ROOT / "pyproject.toml").read_text()
    oldest = int(re.search(r'^requires-python = ">=3\.(\d+)"$', settings, re.MULTILINE)[1])
    built = [int(minor) for minor in re.search(r'^build = "cp3\{([\d,]+)\}-', settings, re.MULTILINE)[1].split(",")]
    assert built == list(range(oldest, 15))


def test_what_tests_a_wheel_is_there():
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.cibuildwheel]")[2].partition("\n[")[0]
    files = re.findall(r"python_tests/\w+\.py", settings)
    assert len(files) > 5 and all((ROOT / file).is_file() for file in files)
    workflow = ROOT / ".github" / "workflows" / "wheels.yml"
    if not workflow.exists():
        pytest.skip("the workflow is not here")
    jobs = pytest.importorskip("yaml").safe_load(workflow.read_text())["jobs"]
    architectures = {entry["architecture"] for entry in jobs["wheels"]["strategy"]["matrix"]["include"]}
    images = set(re.findall(r"^manylinux-(\w+)-image", settings, re.MULTILINE))
    assert images == architectures == {"x86_64", "aarch64"}
    oldest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert jobs["suite"]["strategy"]["matrix"]["torch"] == [f"torch=={oldest}.*", "torch"]


def test_suite_refuses_the_sources_in_place_of_a_wheel():
    if not (ROOT / "prorec_fast").is_dir():
        pytest.skip("the sources are not here")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", Path(__file__)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROREC_FAST_TEST_INSTALLED": "1"},
        capture_output=True, text=True, cwd=HERE,
    )  # fmt: skip
    assert done.returncode == 4 and "prorec_fast comes from the sources" in done.stderr, done.stdout + done.stderr
