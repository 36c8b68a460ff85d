"""What the CUDA compiler made of the kernels, and that a machine without a driver is none the worse for them. No device
is needed: the tools that come with the compiler look into the extension."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import run_python

from prorec_fast import _native

CMAKE = Path(__file__).parents[1] / "CMakeLists.txt"

# The most registers a thread may take on any architecture. At 256 threads a block, 64 let four blocks share an SM, 48
# five: enough warps to hide the latency of the loads that these kernels wait for.
REGISTERS = {
    "candidate_items_kernel": 48,
    "environment_bpr_bwd_kernel": 128,  # for more than 8 profiles; 80 for more than 4, else 64
    "environment_bpr_finish_kernel": 48,
    "environment_bpr_kernel": 80,  # for more than 4 environments, else 64
    "pair_scores_kernel": 48,
    "probe_kernel": 16,
    "propagate_layer_kernel": 64,
    "propagate_noise_kernel": 64,
    "propagate_pack_kernel": 48,
    "ranking_metrics_rows_kernel": 64,
    "ranking_metrics_table_kernel": 48,
    "sample_negatives_kernel": 48,
    "topk_merge_kernel": 48,
    "topk_select_kernel": 64,
}

# The bytes that a build for some architecture keeps in memory because those registers are taken; others keep none.
STACK = {
    "environment_bpr_kernel": 24,
    "propagate_layer_kernel": 24,
    "propagate_pack_kernel": 16,
    "ranking_metrics_rows_kernel": 8,
}


@pytest.fixture(scope="module")
def cuda_extension():
    extension = _native.extension()
    if not hasattr(extension, "cuda"):
        pytest.skip("the extension was built without a CUDA compiler")
    return extension


@pytest.fixture(scope="module")
def look_into(cuda_extension):
    """Runs cuobjdump on the extension."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    triton = find_spec("triton")
    bundled = [Path(triton.origin).parent / "backends" / "nvidia" / "bin"] if triton else []
    tool = next(filter(None, (shutil.which("cuobjdump", path=p) for p in (*folders, None, *bundled))), None)
    if tool is None:
        pytest.skip("there is no cuobjdump in CUDA_HOME, on the path or in Triton")

    def run(option: str) -> str:
        done = subprocess.run([tool, option, cuda_extension.__file__], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_kernels_keep_to_their_registers(look_into):
    found = {}
    for part in look_into("--dump-resource-usage").split("Fatbin elf code:")[1:]:
        architecture = re.search(r"^arch = (\S+)", part, re.MULTILINE)[1]
        for function, usage in re.findall(r"^ Function (\S+):\n(.*)", part, re.MULTILINE):
            used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
            kernel = re.search(r"[a-z][a-z_]*_kernel", function)[0]
            found.setdefault(kernel, {})[architecture, function] = used
    assert set(found) == set(REGISTERS)
    for kernel, uses in found.items():
        for where, used in uses.items():
            assert used["REG"] <= REGISTERS[kernel], where
            assert used["STACK"] <= STACK.get(kernel, 0) and used["LOCAL"] == 0, where


def test_every_kernel_is_built_for_every_architecture(look_into, cuda_extension):
    asked = [re.fullmatch(r"(\d+\w?)(?:-(real|virtual))?", name) for name in cuda_extension.cuda.architectures.split()]
    if not all(asked):
        pytest.skip(f"built for {cuda_extension.cuda.architectures}, which does not name every architecture")
    for option, pattern, left_out in (
        ("--list-elf", r"sm_(\w+)\.cubin", "virtual"),
        ("--list-ptx", r"_(\w+)\.ptx", "real"),
    ):
        built = re.findall(pattern, look_into(option))
        wanted = sorted(match[1] for match in asked if match[2] != left_out)
        assert sorted(set(built)) == wanted and all(built.count(name) == built.count(built[0]) for name in wanted)


def test_architectures_are_those_we_say():
    """From the A100 on, one binary for each; PTX of the newest serves those to come."""
    if not CMAKE.exists():
        pytest.skip("the sources are not here")
    listed = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", CMAKE.read_text())[1].split()
    assert listed == ["80-real", "86-real", "89-real", "90-real", "100-real", "120-real", "120-virtual"]


def test_extension_needs_no_driver(cuda_extension):
    """It serves the CPU where the driver is missing or has no device, and says why it serves nothing else there."""
    said = run_python(
        """
        import torch
        from prorec_fast import _native, losses
        print(float(losses.bpr(*torch.ones(3, 5, 8))))
        print(_native.device_problem("cuda", 0))
        """,
        CUDA_VISIBLE_DEVICES="",
    ).splitlines()
    assert float(said[0]) == pytest.approx(0.6931472)
    assert said[1] not in ("None", "")


def test_extension_links_to_no_cuda_library(cuda_extension):
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    linked = subprocess.run(["ldd", cuda_extension.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in linked and not re.search(r"libcud|libnv", linked)
