"""A Mult-VAE's loss in existing code, before and after: last layer, multinomial likelihood and divergence.

python benchmarks/examples/mult_vae.py
"""

from __future__ import annotations

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from side_by_side import Provider, Setting, compare, interactions, loss_and_gradients
from torch import Tensor, nn

from prorec_fast import BipartiteGraph, losses

HIDDEN, LATENT, BATCH, BETA = 600, 200, 1024, 0.2


class Before(nn.Module):
    """The decoder and the loss."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(LATENT, HIDDEN)
        self.output = nn.Linear(HIDDEN, num_items)

    def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor, x: Tensor) -> Tensor:
        """mean, logvar [B, LATENT]: what the encoder made of x [B, N], the batch's rows of the interaction matrix."""
        hidden = torch.tanh(self.hidden(mean + noise * torch.exp(logvar / 2)))
        # these lines:
        logits = self.output(hidden)  # [B, N]
        likelihood = -(x * F.log_softmax(logits, dim=1)).sum(1).mean()
        divergence = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()
        loss = likelihood + BETA * divergence
        # up to here
        return loss


class After(nn.Module):
    """The same, with the same parameters; logits exist for a part of the batch at a time."""

    def __init__(self, train: sp.csr_matrix) -> None:
        super().__init__()
        # become:
        self.graph = BipartiteGraph.from_scipy(train)
        # up to here
        self.hidden = nn.Linear(LATENT, HIDDEN)
        self.output = nn.Linear(HIDDEN, train.shape[1])

    def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor, users: Tensor) -> Tensor:
        """users [B]: whose rows they are."""
        hidden = torch.tanh(self.hidden(mean + noise * torch.exp(logvar / 2)))
        # become:
        likelihood = losses.multinomial_nll(hidden, self.output.weight, self.output.bias, self.graph, rows=users)
        loss = likelihood + BETA * losses.gaussian_kl(mean, logvar)
        # up to here
        return loss


def build(at: Setting) -> tuple[Provider, Provider]:
    train = interactions(at.graph())
    before, after = Before(at.num_items), After(train)
    after.load_state_dict(before.state_dict())
    users = at.distinct(at.num_users, min(BATCH, at.num_users))
    mean, logvar, noise = (at.table(len(users), seed, LATENT) for seed in (1, 2, 3))
    x = torch.from_numpy(train[users.numpy()].toarray())

    def run(model: nn.Module, rows: Tensor) -> Provider:
        return loss_and_gradients(
            lambda: model(mean, logvar, noise.detach(), rows), [mean, logvar, *model.parameters()], True
        )

    return run(before, x), run(after, users)


if __name__ == "__main__":
    compare("A Mult-VAE's loss", build)
