"""The CUDA C++ kernels compiled by the host compiler over an emulated grid of threads (emulation/cuda_emulation.h), so
that their code runs, and is tested, without a device."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"


def build(run: Callable, folder: Path) -> ModuleType:
    """The launchers as a module, built in `folder` by commands that `run` runs, unless it has them; skips where that
    cannot be done."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    pybind11 = pytest.importorskip("pybind11", reason="the emulated kernels' bindings need pybind11")
    if compiler is None or not CSRC.is_dir():
        pytest.skip("needs a C++ compiler and csrc/")
    sources = [*sorted(CSRC.glob("cuda/*.cu")), CSRC / "cuda" / "bindings.cpp"]
    headers = sorted([*CSRC.rglob("*.h"), *HERE.glob("emulation/*.h")])
    content = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, *headers])).hexdigest()[:16]
    target = folder / content / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [CSRC, HERE / "emulation", pybind11.get_include(), sysconfig.get_paths()["include"]]
        flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-DPRF_EMULATION"]
        flags += [f"-I{path}" for path in includes]

        with tempfile.TemporaryDirectory(dir=target.parent) as objects, ThreadPoolExecutor(2) as pool:

            def compile_one(source: Path) -> Path:
                out = Path(objects) / f"{source.name}.o"
                run([compiler, "-x", "c++", *flags, "-c", source, "-o", out])
                return out

            linked = Path(objects) / target.name
            run([compiler, "-shared", *pool.map(compile_one, sources), "-o", linked])
            linked.replace(target)
    spec = importlib.util.spec_from_file_location("emulated", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
