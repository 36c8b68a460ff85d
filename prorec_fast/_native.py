"""The compiled extension, loaded on first use, and the forms in which tensors are handed to it."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from prorec_fast._checks import index_range

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


@cache
def extension() -> ModuleType:
    """The extension module; raises ImportError saying how to build it."""
    try:
        from prorec_fast import _C
    except ImportError as error:
        raise ImportError(f"prorec_fast's compiled kernels are missing ({error}); run 'pip install .' again") from error
    return _C


def runs_on_cpu_kernel(*tensors: Tensor) -> bool:
    """Whether the compiled CPU kernels take these floating tensors; what they do not take, the reference computes."""
    return all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)


def storable(t: Tensor) -> Tensor:
    """`t` in a form the kernels read: unit column stride, float32 or bfloat16."""
    t = t.detach()
    if t.dtype not in _DTYPE_CODES:
        t = t.float()
    if t.stride(-1) != 1 or t.stride(0) < t.size(1):
        t = t.contiguous()
    return t


def matrix(t: Tensor) -> tuple[int, int, int, int, int]:
    """A `storable` 2-d tensor as (address, rows, cols, row stride, dtype code). The caller keeps `t` alive."""
    return t.data_ptr(), t.size(0), t.size(1), t.stride(0), _DTYPE_CODES[t.dtype]


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
