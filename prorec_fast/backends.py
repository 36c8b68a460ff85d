"""What runs where: the devices, the kernels that are built, and what each operation will use."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

# What serves each operation's tensors on a CUDA device.
CUDA_LANGUAGE = {
    "bpr": "triton",
    "candidate_items": "cuda",
    "cross_view_info_nce": "triton",
    "distribution_kl": "triton",
    "environment_bpr": "cuda",
    "gaussian_kl": "triton",
    "info_nce": "triton",
    "mix_environments": "triton",
    "multinomial_nll": "triton",
    "profile_contrast": "triton",
    "propagate": "cuda",
    "ranking_metrics": "cuda",
    "sample_negatives": "cuda",
    "topk": "cuda",
}
_REFERENCE = "reference (plain PyTorch)"
_LANGUAGE_NAMES = {"cuda": "CUDA C++ kernel", "triton": "Triton kernel"}


def backends() -> dict[str, Any]:
    """Versions, the devices, the kernels that are built and, for each operation, what serves float32, bfloat16 and
    float16 tensors on each device. float64 is always the reference's."""
    from prorec_fast import __version__

    devices = {"cpu": platform.processor() or platform.machine()}
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        devices[f"cuda:{number}"] = f"{torch.cuda.get_device_name(number)} (sm_{major}{minor})"
    kernels, cpu = _cpu_kernels()
    problems = _device_problems()
    for language, problem in problems.items():
        in_use = f"not in use: {problem}" if problem else "in use"
        kernels[_LANGUAGE_NAMES[language] + "s"] = f"{_built(language)}; {in_use}"
    on_cuda = {
        language: f"{_REFERENCE}: {problem}" if problem else _LANGUAGE_NAMES[language]
        for language, problem in problems.items()
    }
    return {
        "versions": {
            "prorec_fast": __version__,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
        },
        "devices": devices,
        "kernels": kernels,
        "operations": {name: {"cpu": cpu, "cuda": on_cuda[language]} for name, language in CUDA_LANGUAGE.items()},
    }


def show_backends() -> None:
    """Prints `backends()` as text, operations that are served alike on one line."""
    found = backends()
    for title in ("versions", "devices", "kernels"):
        print(f"{title}:")
        for name, value in found[title].items():
            print(f"  {name}: {value}")
    print("operations (float32, bfloat16, float16; float64 always runs the reference):")
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, served in found["operations"].items():
        alike.setdefault(tuple(f"{device}: {what}" for device, what in served.items()), []).append(name)
    for served, names in alike.items():
        print(f"  {', '.join(names)}")
        for line in served:
            print(f"    {line}")


def _cpu_kernels() -> tuple[dict[str, Any], str]:
    """What is known of the extension, and what serves CPU tensors."""
    from prorec_fast import _native

    try:
        extension = _native.extension()
    except ImportError as error:
        return {"missing": str(error)}, "none: the extension is missing"
    pools = {"gomp": "torch's OpenMP", "std": "threads started per call"}
    kernels = {
        "CPU instruction set": extension.isa(),
        "CPU threads": f"{_native.threads()}, {pools[extension.parallel_backend()]}",
    }
    return kernels, f"compiled kernel ({extension.isa()})"


def _device_problems() -> dict[str, str | None]:
    """Why the kernels of each language do not serve CUDA tensors here; None where they do."""
    from prorec_fast import _native

    if not torch.cuda.is_available():
        why = "no CUDA device" if torch.version.cuda else "this build of torch has no CUDA"
        return dict.fromkeys(("cuda", "triton"), why)
    return {language: _native.device_problem(language, torch.cuda.current_device()) for language in ("cuda", "triton")}


def _built(language: str) -> str:
    from prorec_fast import _native

    if language == "triton":
        return f"compiled on first use by Triton ({_version('triton')})"
    try:
        return f"built for {_native.cuda_extension().architectures}"
    except ImportError as error:
        return str(error)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
