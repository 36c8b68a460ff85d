"""Argument checks: every message names the argument, what came and what was wanted."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(value: object) -> str:
    """`value` in a few words for an error message."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.layout != torch.strided:
            kind = f"{str(value.layout).removeprefix('torch.')} {kind}"
        article = "an" if kind[0] == "i" else "a"
        return f"{article} {kind} tensor of shape {tuple(value.shape)} on {value.device}"
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}"


def float_tensor(name: str, value: Tensor, *, shape: str, dims: Container[int]) -> None:
    """Requires a floating tensor of one of these numbers of dimensions, `shape` in words, the first and the last of
    which have at least one entry."""
    if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: want a floating tensor (float16, bfloat16, float32, float64), got {describe(value)}")
    if value.dim() not in dims or value.size(0) < 1 or value.size(-1) < 1:
        raise ValueError(f"{name}: want shape {shape}, got {describe(value)}")


def float_matrix(name: str, value: Tensor, *, cols: int | None = None, rows: int | None = None) -> None:
    """Requires a 2-d floating tensor with at least one column, of the given sizes where given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: want a 2-d floating tensor, got {describe(value)}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: want a floating tensor (float16, bfloat16, float32, float64), got {describe(value)}")
    if (
        value.dim() != 2
        or value.size(1) < 1
        or (rows is not None and value.size(0) != rows)
        or (cols is not None and value.size(1) != cols)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in (rows, cols))
        raise ValueError(f"{name}: want shape [{wanted}], got {describe(value)}")


def float_tables(name: str, value: Tensor, *, rows: int, cols: int, count: int | None = None) -> None:
    """Requires a 3-d floating tensor of at least one table of the given sizes, and of `count` where given."""
    if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: want a 3-d floating tensor, got {describe(value)}")
    counted = value.dim() == 3 and (value.size(0) >= 1 if count is None else value.size(0) == count)
    if not counted or value.shape[1:] != (rows, cols):
        wanted = "1 or more" if count is None else count
        raise ValueError(f"{name}: want shape [{wanted}, {rows}, {cols}], got {describe(value)}")


def float_vector(name: str, value: Tensor, *, size: int) -> None:
    """Requires a 1-d floating tensor of `size` entries."""
    if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: want a floating tensor (float16, bfloat16, float32, float64), got {describe(value)}")
    if value.shape != (size,):
        raise ValueError(f"{name}: want shape [{size}], got {describe(value)}")


def same_device_and_dtype(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Requires tensors on one device and of one dtype."""
    first = tensors[0]
    for name, t in zip(names[1:], tensors[1:], strict=True):
        if t.device != first.device or t.dtype != first.dtype:
            raise ValueError(f"{name}: want the device and dtype of {names[0]} ({describe(first)}), got {describe(t)}")


def index_vector(name: str, value: Tensor, *, size: int, device: torch.device) -> None:
    """Requires a 1-d int64 tensor on `device` with entries in [0, size). Entries are checked on the CPU only, where
    looking at them does not stall a device; elsewhere an index out of range is a device-side assertion."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 1:
        raise TypeError(f"{name}: want a 1-d int64 tensor, got {describe(value)}")
    if value.device != device:
        raise ValueError(f"{name}: want a tensor on {device}, got {describe(value)}")
    index_range(name, value, size)


def index_range(name: str, value: Tensor, size: int, low: int = 0) -> None:
    """Requires entries in [low, size) of a tensor on the CPU, unless torch.compile is tracing and there are none."""
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel():
        least, most = (int(x) for x in torch.aminmax(value))
        if least < low or most >= size:
            raise IndexError(f"{name}: want entries in [{low}, {size}), got entries in [{least}, {most}]")


def device(name: str, value: torch.device | str | int) -> torch.device:
    """`value` as a device."""
    try:
        return torch.device(value)
    except (TypeError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: want a device or its name, got {value!r}") from error


def float_dtype(name: str, value: torch.dtype | str) -> torch.dtype:
    """`value`, a floating dtype or the name of one, as a dtype."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
    found = names.get(value) if isinstance(value, str) else value
    if found not in FLOAT_DTYPES:
        raise ValueError(f"{name}: want one of {', '.join(names)}, got {value!r}")
    return found


def row_count(name: str, value: Tensor, *, rows: int, device: torch.device) -> None:
    """Requires a 0-d int64 tensor on `device` in [0, rows]; its value is checked where those of an index are."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 0:
        raise TypeError(f"{name}: want a 0-d int64 tensor, got {describe(value)}")
    if value.device != device:
        raise ValueError(f"{name}: want a tensor on {device}, got {describe(value)}")
    index_range(name, value, rows + 1)


def positive_number(name: str, value: float) -> None:
    """Requires a finite number above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name}: want a finite number above 0, got {value!r}")


def non_negative_number(name: str, value: float) -> None:
    """Requires 0 or a finite number above."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ValueError(f"{name}: want a finite number of at least 0, got {value!r}")


def probability(name: str, value: float) -> None:
    """Requires a number of at least 0 and below 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}: want a number of at least 0 and below 1, got {value!r}")


def positive_int(name: str, value: int) -> None:
    """Requires an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: want an integer of at least 1, got {value!r}")


def temperature(name: str, value: float) -> None:
    """Requires a positive number whose reciprocal float32 holds."""
    positive_number(name, value)
    if not 1e-30 <= value <= 1e30:
        raise ValueError(f"{name}: want a number in [1e-30, 1e30], got {value!r}")


def smoothing(name: str, value: float) -> None:
    """Requires 0 or a positive number that float32 probabilities can be added to."""
    if not isinstance(value, (int, float)) or not (value == 0 or 1e-30 <= value < float("inf")):
        raise ValueError(f"{name}: want 0 or a finite number of at least 1e-30, got {value!r}")


def finite_number(name: str, value: float) -> None:
    """Requires a finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < float("inf"):
        raise ValueError(f"{name}: want a finite number, got {value!r}")


def share(name: str, value: float) -> None:
    """Requires a number in [0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}: want a number in [0, 1], got {value!r}")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Requires one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: want one of {', '.join(choices)}, got {value!r}")
