"""Mult-VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .sparse_input import SparseLinear, unit_rows
from .variational import VariationalAutoencoder, dense_layer

if TYPE_CHECKING:
    from prorec_fast.data import Dataset


class MultVAE(VariationalAutoencoder):
    """Layers of num_items, hidden_dim, dim, hidden_dim and num_items units around the latent vector (Liang et al.,
    2018, arXiv 1802.05814), tanh between them; the input is a user's row, of Euclidean length 1.

    Args:
        dim: width of the latent vectors.
        hidden_dim: width of the layers on both sides of it.
        dropout: share of a row's entries that are left out while training.
        anneal_cap, anneal_steps: see `VariationalAutoencoder`.
    """

    name = "mult_vae"

    def __init__(
        self,
        data: Dataset,
        dim: int = 200,
        hidden_dim: int = 600,
        *,
        dropout: float = 0.5,
        anneal_cap: float = 0.2,
        anneal_steps: int = 2000,
        seed: int = 0,
    ) -> None:
        super().__init__(data, dim, hidden_dim=hidden_dim, anneal_cap=anneal_cap, anneal_steps=anneal_steps, seed=seed)
        self.input = SparseLinear(self.num_items, hidden_dim, dropout=dropout)
        self.encoder = dense_layer(hidden_dim, 2 * dim)
        self.decoder = dense_layer(dim, hidden_dim)
        self.entries: Tensor
        self.register_buffer("entries", unit_rows(self.train_graph), persistent=False)
        self.reset_parameters()

    def encoded(self, users: Tensor) -> Tensor:
        return self.encoder(torch.tanh(self.input(self.train_graph, self.entries, users)))

    def hidden(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.decoder(latent))

    def config(self) -> dict[str, Any]:
        own = {"hidden_dim": self.decoder.out_features, "dropout": self.input.dropout}
        return {**super().config(), **own}
