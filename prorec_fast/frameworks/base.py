"""A framework is a training objective around a model; plain BPR is the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.models import Recommender


class Objective(ABC):
    """A framework bound to one model and data set: what training calls every step.

    Attributes:
        notes: what a result of this run rests on beside its settings (where profiles came from), in words.
    """

    notes: Mapping[str, str] = MappingProxyType({})

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


def squared_norm(model: Recommender) -> Tensor:
    """0-d: the sum of squares of all parameters."""
    return torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()


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
    def __init__(self, config: BPR, model: Recommender) -> None:
        self.config, self.model = config, model

    def terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        from prorec_fast.losses import bpr

        user, item = self.model.representation()
        loss = bpr(user.index_select(0, users), item.index_select(0, positives), item.index_select(0, negatives))
        return {"bpr": loss, "reg": self.config.reg * squared_norm(self.model)}
