"""What every model has: two embedding tables and one way to turn them into representations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph


class Recommender(nn.Module, ABC):
    """A model scores by inner product of a user's and an item's representation.

    Training objectives (`prorec_fast.frameworks`) wrap a model and use nothing of it but `representation`, its
    parameters and its sizes, so any subclass works with any of them.

    Args:
        data: the data set; its training graph is the one `representation` uses when given none.
        dim: width of the tables.
        init_scale: factor on the Xavier-uniform tables. The gradient of a cosine goes as 1 / norm, so losses on
            cosines weigh less against BPR where the tables start larger.
        seed: of the initial tables. The generator is the model's own: nothing else changes them.

    Attributes:
        capturable: whether `representation` does the same work at every call, with nothing but tensors that stay where
            they are in place of what changes, so that training may replay it as a CUDA graph. A model says so itself.
    """

    name: str
    capturable: bool = False

    def __init__(self, data: Dataset, dim: int = 32, *, init_scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: want a positive integer, got {dim!r}")
        if not 0 < init_scale < float("inf"):
            raise ValueError(f"init_scale: want a finite number above 0, got {init_scale!r}")
        self.num_users, self.num_items, self.dim = data.num_users, data.num_items, dim
        self.init_scale, self.seed = float(init_scale), int(seed)
        self.train_graph: BipartiteGraph = data.train_graph
        self.user_embedding = nn.Parameter(torch.empty(self.num_users, dim, dtype=torch.float32, device="cpu"))
        self.item_embedding = nn.Parameter(torch.empty(self.num_items, dim, dtype=torch.float32, device="cpu"))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw both tables again, from the model's seed."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for table in (self.user_embedding, self.item_embedding):
            fresh = torch.empty(table.shape, dtype=torch.float32, device="cpu")
            nn.init.xavier_uniform_(fresh, gain=self.init_scale, generator=generator)
            table.copy_(fresh)

    @abstractmethod
    def representation(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        """(users [num_users, d], items [num_items, d]), differentiable.

        Args:
            graph: another graph over the same users and items; None means the training graph.
        """

    def forward(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        return self.representation(graph)

    def config(self) -> dict[str, Any]:
        """What `models.build(**config, data=data)` needs to make this model again, as plain values."""
        return {"name": self.name, "dim": self.dim, "init_scale": self.init_scale, "seed": self.seed}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Recommender:
        super()._apply(fn, recurse)
        self.train_graph = self.train_graph.to(self.user_embedding.device)
        return self
