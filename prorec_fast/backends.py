"""What runs where: versions, the devices, the kernels that are built, and what serves each operation."""

from __future__ import annotations

import ctypes
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prorec_fast import _native

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
    "pair_scores": "cuda",
    "profile_contrast": "triton",
    "propagate": "cuda",
    "ranking_metrics": "cuda",
    "sample_negatives": "cuda",
    "teacher_distribution": "triton",
    "topk": "cuda",
}
_REFERENCE = "reference (plain PyTorch)"
_LANGUAGE_NAMES = {"cuda": "CUDA C++ kernel", "triton": "Triton kernel"}
# Where the file has another name than the operation.
_FILES = {"cross_view_info_nce": "info_nce", "teacher_distribution": "distribution_kl"}
_TRITON_FILES = _FILES | {"teacher_distribution": "softmax_sweep"}


class Extra(NamedTuple):
    """A package that only a part of prorec_fast needs."""

    name: str  # of the extra that brings it: pip install "prorec-fast[name]"
    least: str  # version
    feature: str


OPTIONAL = {
    "matplotlib": Extra("plot", "3.7", "figures of benchmarks"),
    "openai": Extra("profiles", "1.92", "profiles and embeddings from a service"),
    "pydantic": Extra("profiles", "2", "profiles from a service"),
    "pyarrow": Extra("parquet", "14", "Parquet files"),
    "scipy": Extra("scipy", "1.10", "SciPy matrices, and the pickles of RLMRec and ProMax"),
    "sentence-transformers": Extra("embed", "3", "embeddings by a model that runs here"),
}


def missing_extra(error: ImportError) -> str | None:
    """What to install where it is an optional package that is missing; None where it is something else."""
    needed = OPTIONAL.get((error.name or "").partition(".")[0].replace("_", "-"))
    return None if needed is None else f'{error.name} is not installed; pip install "prorec-fast[{needed.name}]"'


class Kernel(NamedTuple):
    """What serves an operation for some device and dtype."""

    name: str
    file: str  # in the repository
    why: str | None  # it is no kernel; None where it is one

    def __str__(self) -> str:
        return self.name if self.why is None else f"{self.name}: {self.why}"


def kernel_of(operation: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Kernel:
    """What serves `operation`, one of CUDA_LANGUAGE, on `device` in `dtype`."""
    file = _FILES.get(operation, operation)
    why = None
    if dtype not in _native.KERNEL_DTYPES:
        why = f"no kernel takes {str(dtype).removeprefix('torch.')}"
    elif device.type == "cpu":
        try:
            return Kernel(f"compiled kernel ({_native.extension().isa()})", f"csrc/cpu/{file}.cpp", None)
        except ImportError:
            return Kernel("none", f"csrc/cpu/{file}.cpp", "the extension is missing")
        except ValueError as error:  # of an instruction set that was asked for and is not there
            return Kernel("none", f"csrc/cpu/{file}.cpp", str(error))
    elif device.type == "cuda":
        language = CUDA_LANGUAGE[operation]
        why = _device_problem(language, device)
        if why is None:
            path = f"csrc/cuda/{file}.cu"
            if language == "triton":
                path = f"prorec_fast/triton_kernels/{_TRITON_FILES.get(operation, operation)}.py"
            return Kernel(_LANGUAGE_NAMES[language], path, None)
    else:
        why = f"no kernel is for {device.type}"
    return Kernel(_REFERENCE, f"prorec_fast/reference/{file}.py", why)


def backends() -> dict[str, Any]:
    """Versions, what optional packages bring, the devices and the CUDA driver, the kernels that are built and, for each
    operation, what serves float32, bfloat16 and float16 tensors on each device. float64 is always the reference's."""
    from prorec_fast import __version__

    on_cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    kernels = _cpu_kernels()
    for language, name in _LANGUAGE_NAMES.items():
        problem = _device_problem(language, torch.device("cuda"))
        kernels[name + "s"] = f"{_built(language)}; {f'not in use: {problem}' if problem else 'in use'}"
    return {
        "versions": {
            "prorec_fast": __version__,
            "torch": torch.__version__,
            "triton": _triton(),
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
        "optional": {package: _optional(package, needed) for package, needed in OPTIONAL.items()},
        "devices": {"cpu": processor(), **{f"cuda:{number}": _cuda_device(number) for number in on_cuda}},
        "CUDA": {
            "driver": _driver(),
            "torch's runtime": torch.version.cuda or "this build of torch has no CUDA",
            "torch's architectures": " ".join(torch.cuda.get_arch_list()) or "none",
        },
        "kernels": kernels,
        "operations": {
            name: {kind: str(kernel_of(name, torch.device(kind))) for kind in ("cpu", "cuda")} for name in CUDA_LANGUAGE
        },
    }


def show_backends() -> None:
    """Prints `backends()` as text, operations that are served alike on one line."""
    print(*as_text(backends()), sep="\n")


def as_text(found: dict[str, Any]) -> list[str]:
    """Lines that show what `backends` found."""
    lines = []
    for title in ("versions", "optional", "devices", "CUDA", "kernels"):
        width = max(map(len, found[title]))
        lines += [f"{title}:", *(f"  {name:{width}}  {value}" for name, value in found[title].items())]
    lines.append("operations (float32, bfloat16, float16; float64 always runs the reference):")
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, served in found["operations"].items():
        alike.setdefault(tuple(f"{device:4}  {what}" for device, what in served.items()), []).append(name)
    for served, names in alike.items():
        lines += [f"  {', '.join(names)}", *(f"    {line}" for line in served)]
    return lines


def processor() -> str:
    """The CPU's name as it gives it, or its kind."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpu_kernels() -> dict[str, str]:
    """What is known of the extension."""
    try:
        extension = _native.extension()
        pools = {"gomp": "torch's OpenMP", "std": "threads started per call"}
        return {
            "CPU instruction set": extension.isa(),
            "CPU threads": f"{_native.threads()}, {pools[extension.parallel_backend()]}",
        }
    except (ImportError, ValueError) as error:
        return {"CPU": str(error)}


def _device_problem(language: str, device: torch.device) -> str | None:
    """Why the kernels of a language do not serve tensors on a CUDA device; None where they do."""
    if not torch.cuda.is_available():
        return "no CUDA device" if torch.version.cuda else "this build of torch has no CUDA"
    return _native.device_problem(language, torch.cuda.current_device() if device.index is None else device.index)


def _built(language: str) -> str:
    if language == "triton":
        return "compiled on first use"
    try:
        return f"built for {_native.cuda_extension().architectures}"
    except ImportError as error:
        return str(error)


def _cuda_device(number: int) -> str:
    try:
        major, minor = torch.cuda.get_device_capability(number)
        return f"{torch.cuda.get_device_name(number)} (sm_{major}{minor})"
    except RuntimeError as error:
        return f"does not answer: {' '.join(str(error).split())}"


def _driver() -> str:
    """The newest CUDA that the driver serves, and the driver's own version where it is told."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return "does not answer"
    except (OSError, AttributeError):
        return "none found"
    text = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    try:
        release = re.search(r"\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        release = None
    return f"{release[1]}, {text}" if release else text


def _triton() -> str:
    problem = _native.triton_problem()
    if problem is None or _version("triton") == "not installed":
        return _version("triton")
    return f"{_version('triton')}; {problem}"


def _optional(package: str, needed: Extra) -> str:
    installed = _version(package)
    missing = installed == "not installed"
    if not missing and _numbers(installed) >= _numbers(needed.least):
        return installed
    lack = installed if missing else f"{installed}, {needed.least} is needed"
    return f'{lack}: no {needed.feature}; pip install "prorec-fast[{needed.name}]"'


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part)


def _version(package: str) -> str:
    try:
        return metadata.version(package) or "of an unknown version"  # None where its metadata are broken
    except metadata.PackageNotFoundError:
        return "not installed"
