"""The compiled extension, loaded on first use, and the forms in which tensors are handed to it."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from prorec_fast._checks import index_range

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KERNEL_DTYPES = tuple(_DTYPE_CODES)
OLDEST_TRITON = (3, 4)


@cache
def extension() -> ModuleType:
    """The extension module; raises ImportError saying how to build it."""
    try:
        from prorec_fast import _C
    except ImportError as error:
        root = Path(__file__).parents[1]
        advice = "run 'pip install .' again"
        if (root / "CMakeLists.txt").exists():  # a Python started there does not see what is installed
            advice = f"these are the sources: run 'pip install {root}' and start Python in another folder"
        raise ImportError(f"prorec_fast's compiled kernels are missing ({error}); {advice}") from error
    return _C


def on_cuda(t: Tensor) -> bool:
    """Whether the device path serves `t`."""
    return t.is_cuda


def cuda_extension() -> ModuleType:
    """The CUDA launchers; raises ImportError where the extension was built without them."""
    module = extension()
    if not hasattr(module, "cuda"):
        raise ImportError("built without CUDA kernels; install again with nvcc at hand and -Ccmake.define.PRF_CUDA=ON")
    return module.cuda


@cache
def device_problem(language: str, device: int) -> str | None:
    """Why kernels in `language` ("triton" or "cuda") cannot serve CUDA device number `device`; None when they can."""
    if language == "triton":
        return triton_problem()
    try:
        with torch.cuda.device(device) if torch.cuda.is_available() else nullcontext():
            return cuda_extension().problem() or None
    except ImportError as error:
        return str(error)


@cache
def triton_problem() -> str | None:
    """Why the Triton kernels cannot be used whatever the device; None when they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        version = import_module("triton").__version__
        if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
            return f"Triton {version} is older than {'.'.join(map(str, OLDEST_TRITON))}"
        import_module("prorec_fast.triton_kernels.primitives")
    except Exception as error:  # whatever a broken or old Triton raises
        return f"Triton cannot be used ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def runs_on_kernel(language: str, *tensors: Tensor) -> bool:
    """Whether a compiled kernel takes these floating tensors: on the CPU, or on a CUDA device one in `language`. What
    no kernel takes, the reference computes; where that is for lack of a build or a driver, one warning says so."""
    if any(t.dtype not in _DTYPE_CODES for t in tensors):
        return False
    return device_has_kernel(language, *tensors)


def device_has_kernel(language: str, *tensors: Tensor) -> bool:
    """`runs_on_kernel` for tensors of any dtype."""
    if all(map(on_cuda, tensors)):
        return _serves(language, tensors[0].device.index or 0)
    return all(t.device.type == "cpu" for t in tensors)


def _serves(language: str, device: int) -> bool:
    return _usable(language, device)  # marked itself, what is cached would be traced all the same


# What torch.compiler.assume_constant_result does, but that imports the compiler.
_serves._dynamo_marked_constant = True


@cache
def _usable(language: str, device: int) -> bool:
    problem = device_problem(language, device)
    if problem is not None:
        name = {"cuda": "CUDA C++", "triton": "Triton"}[language]
        warnings.warn(
            f"prorec_fast: no {name} kernels, plain PyTorch serves instead ({problem}); see `prorec-fast info`",
            stacklevel=8,
        )
    return problem is None


def cuda_call(t: Tensor, name: str, *arguments) -> None:
    """Launches a CUDA kernel on the current stream of the device of `t`."""
    launcher = getattr(cuda_extension(), name)
    with torch.cuda.device(t.device):
        launcher(*arguments, torch.cuda.current_stream().cuda_stream)


def call(t: Tensor, name: str, *arguments) -> None:
    """Runs the kernel `name` of the device of `t`, where both take the same arguments."""
    if on_cuda(t):
        cuda_call(t, name, *arguments)
    else:
        getattr(extension(), name)(*arguments, threads())


def storable(t: Tensor) -> Tensor:
    """`t` in a form the kernels read: unit column stride; on the CPU, float32 or bfloat16."""
    t = t.detach()
    if t.dtype not in _DTYPE_CODES or (t.dtype == torch.float16 and not on_cuda(t)):
        t = t.float()
    if t.stride(-1) != 1 or t.stride(-2) < t.size(-1):
        t = t.contiguous()
    return t


def matrix(t: Tensor) -> tuple[int, int, int, int, int]:
    """A `storable` 2-d tensor as (address, rows, cols, row stride, dtype code). The caller keeps `t` alive."""
    return t.data_ptr(), t.size(0), t.size(1), t.stride(0), _DTYPE_CODES[t.dtype]


def tables(t: Tensor) -> tuple[int, int, int, int, int, int, int]:
    """A `storable` 3-d tensor of at least one table as (the first as a `matrix`..., tables, their stride)."""
    return *matrix(t[0]), t.size(0), t.stride(0)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a kernel to fill: its dtype and device do not follow torch's defaults."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`empty`, cleared."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def index(name: str, t: Tensor | None, size: int, low: int = 0) -> Tensor | None:
    """Indices for a kernel: contiguous, and seen to be in [low, size). Looked at here and not only where arguments are
    checked, because under torch.compile those checks see no values."""
    if t is None:
        return None
    index_range(name, t, size, low)
    return t.contiguous()


def address(t: Tensor | None) -> int:
    """The address of a contiguous tensor; 0 for None."""
    return 0 if t is None else t.data_ptr()


def csr(indptr: Tensor, indices: Tensor, values: Tensor | None, cols: int) -> tuple[int, int, int, int, int]:
    """CSR rows (int64 indptr, int32 indices, float32 values) as (indptr, indices, values, rows, cols)."""
    return indptr.data_ptr(), indices.data_ptr(), address(values), indptr.numel() - 1, cols


def threads() -> int:
    """The number of threads a kernel may use: torch's."""
    return torch.get_num_threads()
