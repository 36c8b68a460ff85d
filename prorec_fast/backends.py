"""What runs where: the device, the kernels that are built, and what each operation will use."""

from __future__ import annotations

import platform
from typing import Any

import torch

_OPERATIONS = (
    "bpr",
    "candidate_items",
    "cross_view_info_nce",
    "distribution_kl",
    "info_nce",
    "propagate",
    "ranking_metrics",
    "sample_negatives",
    "topk",
)


def backends() -> dict[str, Any]:
    """Versions, the devices, the compiled kernels and, for each operation, what serves which tensors."""
    from prorec_fast import __version__, _native

    try:
        extension = _native.extension()
        kernels: dict[str, Any] = {
            "instruction set": extension.isa(),
            "threads": _native.threads(),
            "thread pool": {"gomp": "torch's OpenMP", "std": "threads started per call"}[extension.parallel_backend()],
            "CUDA kernels": "not built",
        }
        cpu = f"compiled CPU kernel ({extension.isa()}) for float32, bfloat16 and float16; reference for float64"
    except ImportError as error:
        kernels, cpu = {"missing": str(error)}, "none: the extension is missing"
    device = f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
    return {
        "versions": {"prorec_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": device,
        "kernels": kernels,
        "operations": {name: {"cpu": cpu, "other devices": "reference (plain PyTorch)"} for name in _OPERATIONS},
    }


def show_backends() -> None:
    """Prints `backends()` as text."""
    for title, entries in backends().items():
        if isinstance(entries, str):
            print(f"{title}: {entries}")
            continue
        print(f"{title}:")
        for name, value in entries.items():
            if isinstance(value, dict):
                value = "; ".join(f"{device}: {what}" for device, what in value.items())
            print(f"  {name}: {value}")
