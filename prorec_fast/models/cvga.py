"""CVGA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .sparse_input import SparseLinear, symmetrically_normalised
from .variational import VariationalAutoencoder

if TYPE_CHECKING:
    from prorec_fast.data import Dataset


class CVGA(VariationalAutoencoder):
    """One linear graph convolution in, one linear layer out (Zhang et al., 2023, "Revisiting Graph-based Recommender
    Systems from the Perspective of Variational Auto-Encoder"): mean and log-variance are rows of
    D_u^-1/2 R D_i^-1/2 W + b.

    Args:
        dim: width of the latent vectors.
        dropout: share of a row's edges that are left out while training.
        anneal_cap, anneal_steps: see `VariationalAutoencoder`.
    """

    name = "cvga"

    def __init__(
        self,
        data: Dataset,
        dim: int = 64,
        *,
        dropout: float = 0.5,
        anneal_cap: float = 0.2,
        anneal_steps: int = 2000,
        seed: int = 0,
    ) -> None:
        super().__init__(data, dim, hidden_dim=dim, anneal_cap=anneal_cap, anneal_steps=anneal_steps, seed=seed)
        self.input = SparseLinear(self.num_items, 2 * dim, dropout=dropout)
        self.entries: Tensor
        self.register_buffer("entries", symmetrically_normalised(self.train_graph), persistent=False)
        self.reset_parameters()

    def encoded(self, users: Tensor) -> Tensor:
        return self.input(self.train_graph, self.entries, users)

    def hidden(self, latent: Tensor) -> Tensor:
        return latent

    def config(self) -> dict[str, Any]:
        return {**super().config(), "dropout": self.input.dropout}
