"""A framework is a training objective around a model; plain BPR is the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding

from prorec_fast import _native

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.models import Recommender


class Objective(ABC):
    """A framework bound to one model and data set: what training calls every step.

    Attributes:
        notes: what a result of this run rests on beside its settings (where profiles came from), in words.
        phase: all that `terms` depends on beside its arguments, the parameters and other tensors that stay where they
            are: while it stays equal, a step may be replayed as a CUDA graph. None (the default) says nothing about
            that, and every step runs as Python.
    """

    notes: Mapping[str, str] = MappingProxyType({})
    phase: Hashable | None = None

    def start_epoch(self, epoch: int) -> None:  # noqa: B027  (nothing to do for most)
        """Called before the steps of `epoch` (0, 1, ...); whatever depends on time is set here."""

    @abstractmethod
    def terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Mapping[str, Tensor]:
        """The loss of one batch as named 0-d terms, weights included: their sum is what is minimised.

        Args:
            users, positives, negatives: int64 [B] on the model's device.
        """


@dataclass(frozen=True)
class Framework(ABC):
    """Settings of a training objective; one instance may be used for any number of runs."""

    name: ClassVar[str]

    @abstractmethod
    def bind(self, model: Recommender, data: Dataset) -> Objective:
        """The objective for `model`, with whatever is computed once per run, on the model's device."""

    def config(self) -> dict[str, Any]:
        """The settings as plain values, with the framework's name."""
        return {"name": self.name, **asdict(self)}


class _SquaredNorm(torch.autograd.Function):
    """sum x^2 with gradient 2 x: one pass each way over tables that every step touches in full."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        flat = x.reshape(-1)
        if _native.on_cuda(x):  # cuBLAS's dot ends at 2^31 entries, and is refused where torch is to be deterministic
            return torch.linalg.vector_norm(flat).square()
        return torch.dot(flat, flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * (2 * grad)


def squared_norm(model: Recommender) -> Tensor:
    """0-d: the sum of squares of all parameters."""
    return torch.stack([_SquaredNorm.apply(parameter) for parameter in model.parameters()]).sum()


def batch_bpr(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """0-d: mean BPR loss of a batch of indices [B] into whole tables [M, d] and [N, d]."""
    from prorec_fast.losses import bpr

    # one gather for both kinds of items: backward then fills one table less
    positive, negative = _rows(item, torch.cat([positives, negatives])).chunk(2)
    return bpr(_rows(user, users), positive, negative)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index]. On CUDA the gradient of index_select is added up by atomics, in another order every time; that of
    embedding is not. On the CPU both have one order, and index_select is the faster."""
    return embedding(index, table) if _native.on_cuda(table) else table.index_select(0, index)


@dataclass(frozen=True)
class BPR(Framework):
    """Bayesian personalised ranking with weight decay as a loss term: the base that ProMax is compared with.

    Attributes:
        reg: factor on the sum of squares of all parameters.
    """

    name: ClassVar[str] = "none"
    reg: float = 1e-6

    def bind(self, model: Recommender, data: Dataset) -> Objective:
        return _BPRObjective(self, model)


class _BPRObjective(Objective):
    phase = "bpr"

    def __init__(self, config: BPR, model: Recommender) -> None:
        self.config, self.model = config, model

    def terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        loss = batch_bpr(*self.model.representation(), users, positives, negatives)
        return {"bpr": loss, "reg": self.config.reg * squared_norm(self.model)}
