"""Mult-VAE.

Habits: the encoder multiplies dense rows over all items, and the likelihood is a dense log-softmax over all items.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, log_softmax, normalize

from prorec_fast.data import Dataset

from .batches import Rows, users_with_edges


class MultVAE(nn.Module):
    def __init__(
        self, data: Dataset, dim: int, hidden_dim: int, dropout: float, anneal_cap: float, anneal_steps: int
    ) -> None:
        super().__init__()
        self.input, self.encoder = nn.Linear(data.num_items, hidden_dim), nn.Linear(hidden_dim, 2 * dim)
        self.decoder, self.output = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, data.num_items)
        for layer in (self.input, self.encoder, self.decoder, self.output):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout, self.anneal_cap, self.anneal_steps, self.steps = dropout, anneal_cap, anneal_steps, 0

    def batches(self, data: Dataset) -> Rows:
        return Rows(data.train_graph, users_with_edges(data.train_graph))

    def start_epoch(self, epoch: int) -> None:
        pass

    def encoded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = dropout(normalize(rows), self.dropout, self.training)
        mean, logvar = self.encoder(torch.tanh(self.input(rows))).chunk(2, dim=1)
        return mean, logvar

    def decoded(self, latent: Tensor) -> Tensor:
        return self.output(torch.tanh(self.decoder(latent)))

    def loss(self, users: Tensor, rows: Tensor) -> Tensor:
        self.steps += 1
        mean, logvar = self.encoded(rows)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        likelihood = (log_softmax(self.decoded(latent), dim=1) * rows).sum(1).mean()
        divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1).mean()
        return self.anneal_cap * min(1.0, self.steps / self.anneal_steps) * divergence - likelihood

    def ranking(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from users [B] and their training rows [B, num_items] to scores."""
        return lambda users, rows: self.decoded(self.encoded(rows)[0])
