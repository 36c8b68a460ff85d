"""What every model has: one way to be trained on batches, and one way to rank items by inner products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from prorec_fast._checks import positive_int

if TYPE_CHECKING:
    from collections.abc import Callable

    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph


class Recommender(nn.Module, ABC):
    """A model scores by inner product of a user's and an item's representation.

    There are two kinds, and a training objective (`prorec_fast.frameworks`) wraps one by nothing but what its kind
    promises: `Discriminative` models train on triplets of a user, an item of theirs and another; `Generative` ones on
    users, whose whole training rows they reconstruct.

    Args:
        data: the data set, whose training interactions the model learns from.
        dim: width of what the model learns of a user: its embeddings, or its latent vectors.
        seed: of the initial weights. The generator is the model's own: nothing else changes them.

    Attributes:
        trains_on: what a batch is, "interactions" (users, positives and negatives) or "users".
        weight_decay: the factor on the sum of squares of all parameters that is usual for such models.
        capturable: whether a training step does the same work every time, with nothing but tensors that stay where they
            are in place of what changes, so that it may be replayed as a CUDA graph. A model says so itself.
    """

    name: str  # in a run's configuration; by default the class's, in lower case
    trains_on: ClassVar[str]
    weight_decay: ClassVar[float]
    capturable: ClassVar[bool] = False

    def __init__(self, data: Dataset, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        positive_int("dim", dim)
        if not hasattr(self, "name"):
            self.name = type(self).__name__.lower()
        self.num_users, self.num_items, self.dim, self.seed = data.num_users, data.num_items, dim, int(seed)
        self.train_graph: BipartiteGraph = data.train_graph

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the initial weights again, from the model's seed."""

    @abstractmethod
    def representation(self) -> tuple[Tensor, Tensor]:
        """(users [num_users, w], items [num_items, w]): their inner products are the scores that rank items.

        Those of the model alone: a framework may add to them, see `Objective.representation`."""

    @abstractmethod
    def loss_terms(self, *batch: Tensor) -> Mapping[str, Tensor]:
        """The model's own loss of one batch as named 0-d terms, weights included; int64 indices [B] as `trains_on`."""

    def config(self) -> dict[str, Any]:
        """What `models.build(**config, data=data)` needs to make this model again, as plain values."""
        return {"name": self.name, "dim": self.dim, "seed": self.seed}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Recommender:
        super()._apply(fn, recurse)
        self.train_graph = self.train_graph.to(self.device)
        return self
