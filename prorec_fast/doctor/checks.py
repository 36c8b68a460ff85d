"""Every kernel's values and gradients against the definition in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prorec_fast.doctor.accuracy import Accuracy, accuracy
from prorec_fast.doctor.cases import Case, cases


@dataclass(frozen=True)
class Check:
    """What one call of a kernel gave; of its results, the one that is worst.

    Attributes:
        where: the device and, on the CPU, the instruction set.
        operation, form, dtype: the call.
        result: "value" (of several, "value 0" and so on) or "gradient of <input>".
        error, allowed: relative to the truth's largest entry; of integers, how many entries are wrong. None where there
            is no number.
        problem: what is wrong in words; None where nothing is.
    """

    where: str
    operation: str
    form: str
    dtype: str
    result: str
    error: float | None
    allowed: float | None
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        return self.error / self.allowed if self.error and self.allowed else 0.0

    def __str__(self) -> str:
        call = f"{self.operation} on {self.where}, {self.form}, {self.dtype}, {self.result}"
        return f"{call}: {self.problem or 'well'}"


def calls(device: torch.device, operations: Collection[str]) -> Iterator[tuple[Case, torch.dtype]]:
    """What `check_device` goes through."""
    for case in cases(device):
        if case.operation in operations:
            yield from ((case, dtype) for dtype in case.dtypes)


def check_device(device: torch.device, where: str, operations: Collection[str]) -> Iterator[Check]:
    """Checks the kernels of `operations` on `device`, one call after another."""
    with _float32_products(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say, the facts say
        for case, dtype in calls(device, operations):
            try:
                yield _check(case, dtype, where)
            except Exception as error:  # whatever a kernel that does not work raises
                yield failed(case, dtype, where, one_line(error))


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def failed(case: Case, dtype: torch.dtype, where: str, problem: str) -> Check:
    """A call that gave no results."""
    return Check(where, case.operation, case.form, _name(dtype), "call", None, None, problem)


def _check(case: Case, dtype: torch.dtype, where: str) -> Check:
    found = _accuracies(case, dtype)
    result = max(found, key=lambda name: (not found[name].ok, found[name].share))
    worst = found[result]
    error = worst.error if math.isfinite(worst.error) else None
    return Check(where, case.operation, case.form, _name(dtype), result, error, worst.allowed, worst.problem)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _accuracies(case: Case, dtype: torch.dtype) -> dict[str, Accuracy]:
    """Of every value and every gradient."""
    tensors = {name: t.to(dtype) for name, t in case.tensors.items()}
    exact = {name: t.double() for name, t in tensors.items()}
    got = _results(case.ours, tensors, dtype)
    with _one_thread():
        eager, truth = _results(case.definition, tensors, dtype), _results(case.definition, exact, dtype)
    return {name: accuracy(got[name], eager[name], truth[name], case.least) for name in truth}


def _results(run: Callable[..., Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Values, and gradients of all of them together with random gradients of each, which `dtype` holds."""
    inputs = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = run(*inputs.values())
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = {"value" if len(outputs) == 1 else f"value {n}": t.detach() for n, t in enumerate(outputs)}
    outputs = [t for t in outputs if t.requires_grad]
    if outputs:
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs]
        grads = torch.autograd.grad(outputs, list(inputs.values()), grads)
        found |= {f"gradient of {name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return found


@contextmanager
def _float32_products() -> Iterator[None]:
    """Products of float32 tensors in float32, whatever torch was told."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For torch's small operations: where threads wait for cores that something else has, these take seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
