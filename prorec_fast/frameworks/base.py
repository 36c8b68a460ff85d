"""A framework is a training objective around a model; the model's own loss alone is the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from prorec_fast import _native
from prorec_fast._checks import non_negative_number

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph
    from prorec_fast.models import Recommender

OWN_STATE = "framework."  # before the names of what a framework adds to a model's weights


class Objective(nn.Module, ABC):
    """A framework bound to one model and data set: what training calls every step, and what is evaluated after it.

    Its own parameters are those that the framework adds; the model's stay the model's.

    Attributes:
        notes: what a result of this run rests on beside its settings (where profiles came from), in words.
        phase: all that `terms` depends on beside its arguments, the parameters and other tensors that stay where they
            are: while it stays equal, a step may be replayed as a CUDA graph. None (the default) says nothing about
            that, and every step runs as Python.
    """

    notes: Mapping[str, str] = MappingProxyType({})
    phase: Hashable | None = None

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self._models = (model,)  # in a tuple, where nn.Module does not take it for a part of this one

    @property
    def model(self) -> Recommender:
        return self._models[0]

    @property
    def train_graph(self) -> BipartiteGraph:
        return self.model.train_graph

    def train(self, mode: bool = True) -> Objective:
        self.model.train(mode)
        return super().train(mode)

    def all_parameters(self) -> list[nn.Parameter]:
        """The model's parameters, then the framework's."""
        return [*self.model.parameters(), *self.parameters()]

    def all_state(self) -> dict[str, Tensor]:
        """The model's state dictionary, and the framework's with its names prefixed."""
        return {**self.model.state_dict(), **{OWN_STATE + name: t for name, t in self.state_dict().items()}}

    def load_all_state(self, state: Mapping[str, Tensor]) -> None:
        """What `all_state` gave.

        Raises:
            RuntimeError: it belongs to another model or framework.
        """
        own = {name.removeprefix(OWN_STATE): t for name, t in state.items() if name.startswith(OWN_STATE)}
        self.load_state_dict(own)
        self.model.load_state_dict({name: t for name, t in state.items() if not name.startswith(OWN_STATE)})

    def start_epoch(self, epoch: int) -> None:
        """Called before the steps of `epoch` (0, 1, ...); whatever depends on time is set here."""

    @abstractmethod
    def terms(self, *batch: Tensor) -> Mapping[str, Tensor]:
        """The loss of one batch as named 0-d terms, weights included: their sum is what is minimised.

        Args:
            batch: int64 [B] each, on the model's device: users, positives and negatives, or users alone, as
                `model.trains_on` says.
        """

    def representation(self) -> tuple[Tensor, Tensor]:
        """(users [M, w], items [N, w]) whose inner products rank items: the model's, where a framework adds nothing."""
        return self.model.representation()


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


def squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """0-d: the sum of squares of all parameters."""
    return torch.stack([_SquaredNorm.apply(parameter) for parameter in parameters]).sum()


@dataclass(frozen=True)
class Plain(Framework):
    """The model's own loss, with weight decay as a loss term: the base that the other frameworks are compared with.

    Attributes:
        reg: factor on the sum of squares of all parameters; None takes the model's `weight_decay`.
    """

    name: ClassVar[str] = "none"
    reg: float | None = None

    def __post_init__(self) -> None:
        if self.reg is not None:
            non_negative_number("reg", self.reg)

    def bind(self, model: Recommender, data: Dataset) -> Objective:
        return _PlainObjective(model, model.weight_decay if self.reg is None else self.reg)


class _PlainObjective(Objective):
    phase = "plain"

    def __init__(self, model: Recommender, reg: float) -> None:
        super().__init__(model)
        self.reg = reg

    def terms(self, *batch: Tensor) -> dict[str, Tensor]:
        return with_decay(self.model.loss_terms(*batch), self.reg, self)


def with_decay(terms: Mapping[str, Tensor], reg: float, objective: Objective) -> dict[str, Tensor]:
    """The terms, and `reg` times the sum of squares of all parameters."""
    return {**terms, "reg": reg * squared_norm(objective.all_parameters())} if reg else dict(terms)
