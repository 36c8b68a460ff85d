"""How far a kernel may be from the definition in float64: the one table of tolerances, the tests' too."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A kernel's error against float64 may exceed eager PyTorch's error in the same dtype by this factor, plus a floor
# relative to the largest entry of the truth (one rounding of the output, and a short float32 accumulation).
ERROR_FACTOR = 3.0
ERROR_FLOOR = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1.5e-3}


@dataclass(frozen=True)
class Accuracy:
    """A result's largest error and what is allowed, both relative to the largest entry of the truth; of integers, how
    many are wrong.

    Attributes:
        problem: what is wrong; None where nothing is.
    """

    error: float
    allowed: float
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        return self.error / self.allowed if self.allowed else self.error


def max_error(got: Tensor, truth: Tensor, least: float) -> float:
    """The largest error relative to the largest entry of the truth, or to `least` where that is larger."""
    if truth.numel() == 0:
        return 0.0
    scale = truth.double().abs().max().clamp_min(least)
    return ((got.double() - truth.double()).abs().max() / scale).item()


def accuracy(got: Tensor, eager: Tensor, truth: Tensor, least: float = 1e-30) -> Accuracy:
    """Whether `got` is as close to the float64 truth as eager PyTorch in the same dtype is, within the budget of the
    table; of integers, whether it is the truth. `least` is the size below which a truth is rounding of larger terms
    that cancel."""
    if got.dtype != eager.dtype or got.shape != truth.shape:
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (got, eager)]
        return Accuracy(math.inf, 0.0, f"{kinds[0]} where {kinds[1]} is wanted")
    if not got.is_floating_point():
        wrong = int((got != truth).sum())
        return Accuracy(float(wrong), 0.0, f"{wrong} of {got.numel()} entries are wrong" if wrong else None)
    error = max_error(got, truth, least)
    finite = eager.isfinite()  # an entry that overflowed allows a kernel nothing
    eager_error = max_error(eager.double().where(finite, truth.double()), truth, least)
    allowed = ERROR_FACTOR * eager_error + ERROR_FLOOR[got.dtype]
    if not torch.isfinite(got).all():
        return Accuracy(math.inf, allowed, "not finite")
    return Accuracy(error, allowed, None if error <= allowed else f"error {error:.2g}, allowed {allowed:.2g}")
