"""Models that tell a user's items from others: tables of embeddings, trained with BPR."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from prorec_fast import _native

from .base import Recommender

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph


class Discriminative(Recommender):
    """Two embedding tables and one way to turn them into representations.

    Args:
        data: the data set; its training graph is the one `representation` uses when given none.
        dim: width of the tables.
        init_scale: factor on the Xavier-uniform tables. The gradient of a cosine goes as 1 / norm, so losses on
            cosines weigh less against BPR where the tables start larger.
        seed: of the initial tables.

    Attributes:
        user_embedding, item_embedding: parameters, [num_users, dim] and [num_items, dim].
    """

    trains_on = "interactions"
    weight_decay = 1e-6

    def __init__(self, data: Dataset, dim: int = 32, *, init_scale: float = 1.0, seed: int = 0) -> None:
        super().__init__(data, dim, seed=seed)
        if not 0 < init_scale < float("inf"):
            raise ValueError(f"init_scale: want a finite number above 0, got {init_scale!r}")
        self.init_scale = float(init_scale)
        self.user_embedding = nn.Parameter(torch.empty(self.num_users, dim, dtype=torch.float32, device="cpu"))
        self.item_embedding = nn.Parameter(torch.empty(self.num_items, dim, dtype=torch.float32, device="cpu"))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for table in (self.user_embedding, self.item_embedding):
            fresh = torch.empty(table.shape, dtype=torch.float32, device="cpu")
            nn.init.xavier_uniform_(fresh, gain=self.init_scale, generator=generator)
            table.copy_(fresh)

    @property
    def representation_dim(self) -> int:
        """Width of the representations."""
        return self.dim

    @abstractmethod
    def representation(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        """(users [num_users, d], items [num_items, d]), differentiable.

        Args:
            graph: another graph over the same users and items; None means the training graph.
        """

    def forward(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        return self.representation(graph)

    def auxiliary_terms(self, users: Tensor, positives: Tensor) -> Mapping[str, Tensor]:
        """What the model is trained on beside the triplets' ranking, in whatever framework: nothing, for most."""
        return {}

    def loss_terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        """BPR on the batch's triplets (Rendle et al., 2009), and the auxiliary terms."""
        loss = batch_bpr(*self.representation(), users, positives, negatives)
        return {"bpr": loss, **self.auxiliary_terms(users, positives)}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "init_scale": self.init_scale}


def batch_bpr(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """0-d: mean BPR loss of a batch of indices [B] into whole tables [M, d] and [N, d]."""
    from prorec_fast.losses import bpr

    # one gather for both kinds of items: backward then fills one table less
    positive, negative = rows_of(item, torch.cat([positives, negatives])).chunk(2)
    return bpr(rows_of(user, users), positive, negative)


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """table[index]. On CUDA the gradient of index_select is added up by atomics, in another order every time; that of
    embedding is not. On the CPU both have one order, and index_select is the faster."""
    return embedding(index, table) if _native.on_cuda(table) else table.index_select(0, index)
