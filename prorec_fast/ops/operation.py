"""What an operation makes of autocast and of torch.func, before it looks at its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from prorec_fast._checks import FLOAT_DTYPES

# What the floating arguments of an operation become inside an autocast region; None leaves them as they are. None of
# these narrows a tensor.
Cast = Callable[[torch.dtype, Sequence[torch.dtype]], torch.dtype]


def float32(dtype: torch.dtype, _: Sequence[torch.dtype]) -> torch.dtype:
    """16-bit arguments are read as float32, and so are results: what torch does for its own losses."""
    return torch.promote_types(dtype, torch.float32)


def widest(_: torch.dtype, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """All arguments come in the widest dtype among them."""
    return reduce(torch.promote_types, dtypes)


def operation(name: str, cast: Cast | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates an operation's function of tensors.

    Inside an autocast region its floating arguments are cast, and it runs as if outside: no product of its definition
    is narrowed. A torch.func transform or forward-mode differentiation of what kernels would compute is refused, as
    they see memory alone; float64 runs the definition, which torch transforms.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            tensors = [a for a in (*arguments, *options.values()) if isinstance(a, Tensor)]
            if not torch.compiler.is_compiling():
                _refuse_transforms(name, tensors)
            device = tensors[0].device.type if tensors else "cpu"
            if not _has_autocast(device) or not torch.is_autocast_enabled(device):
                return function(*arguments, **options)
            dtypes = [t.dtype for t in tensors if _castable(t)]

            def given(value: Any) -> Any:
                return value.to(cast(value.dtype, dtypes)) if cast is not None and _castable(value) else value

            with torch.autocast(device, enabled=False):
                return function(*map(given, arguments), **{key: given(value) for key, value in options.items()})

        return run

    return decorate


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


_has_autocast._dynamo_marked_constant = True  # torch 2.6 cannot trace it


def _castable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in FLOAT_DTYPES and value.layout == torch.strided


def _refuse_transforms(name: str, tensors: Sequence[Tensor]) -> None:
    dual = forward_ad._current_level >= 0
    if not dual and not torch._C._are_functorch_transforms_active():
        return
    transformed = any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
    transformed |= dual and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if transformed and all(t.dtype != torch.float64 for t in tensors):
        floats = any(t.is_floating_point() for t in tensors)
        why = "need float64 inputs, which run the reference" if floats else "have no use for it"
        raise RuntimeError(f"{name}: torch.func and forward-mode differentiation {why}")
