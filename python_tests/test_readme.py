"""The README's way from raw data to recommendations, run as it stands there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="profiles need openai")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib")

ROOT = Path(__file__).parent.parent


def test_the_way_from_raw_data_to_recommendations(tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### Profiles from a language model")[1]
    script = re.search(r"```\n(.*?)```", section, re.DOTALL)[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace("8089", str(free.getsockname()[1]))
    for name in ("benchmarks", "python_tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, command in (("python", ""), ("prorec-fast", "-m prorec_fast")):
        shim = tmp_path / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", "-mec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "users: 200 of 200 have profiles" in run.stdout
    assert "lightgcn + proex" in run.stdout and "profiles_llm.safetensors (4 profiles of each" in run.stdout
    assert len(re.findall(r"^reader-007\t\d\tB\d{4}\t", run.stdout, re.MULTILINE)) == 3
    assert (tmp_path / "shop" / "diversity.png").exists() and (tmp_path / "shop" / "data" / "enriched.npz").exists()
