"""The device that the kernels for CUDA tensors are tested on: a simulated one, and a real one where there is one."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when a kernel is defined


@pytest.fixture(scope="session")
def emulated_cuda(request):
    """The CUDA C++ launchers over an emulated grid."""
    from emulated_cuda import build

    return build(request.config.cache.mkdir("emulated_cuda"))


@pytest.fixture
def simulated_device(monkeypatch, request):
    """CPU tensors take the device path: Triton's kernels interpreted, the CUDA C++ ones emulated."""
    pytest.importorskip("triton", reason="the device path needs Triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's kernels are compiled here, not interpreted")
    from prorec_fast import _native

    def call(t, name, *arguments):
        getattr(request.getfixturevalue("emulated_cuda"), name)(*arguments, 0)

    monkeypatch.setattr(_native, "on_cuda", lambda t: t.device.type == "cpu")
    monkeypatch.setattr(_native, "device_problem", lambda language, device: None)
    monkeypatch.setattr(_native, "cuda_call", call)
    return torch.device("cpu")


_DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["simulated"]


@pytest.fixture(params=_DEVICES)
def device(request):
    """Where a test of the device path puts its tensors."""
    return torch.device("cuda") if request.param == "cuda" else request.getfixturevalue("simulated_device")
