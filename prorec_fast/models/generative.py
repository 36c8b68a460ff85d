"""Models that generate a user's whole row of interactions from a latent Gaussian."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Recommender

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # beyond it, float32 exponentials and their products leave their range


class Gaussian(NamedTuple):
    """Independent normal distributions.

    mean, logvar: [..., latent_dim].
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> Gaussian:
        """From means and log-variances side by side, [..., 2 latent_dim]; log-variances end at `LOG_VARIANCE_RANGE`."""
        mean, logvar = parameters.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(*LOG_VARIANCE_RANGE))

    def sample(self) -> Tensor:
        """One draw, differentiable in both (Kingma & Welling, 2014). Log-variances count up to the ends of
        `LOG_VARIANCE_RANGE`, whatever they were shifted by since."""
        deviation = torch.exp(0.5 * self.logvar.clamp(*LOG_VARIANCE_RANGE))
        return self.mean + deviation * torch.randn_like(self.mean)


class Generative(Recommender):
    """A posterior of a user's latent vector given their training row, and the way back to scores of all items.

    `dim` is the latent width. A framework may shift the posterior before it is sampled and decoded; that, and
    `kl_weight`, is all it needs to know.
    """

    trains_on = "users"
    weight_decay = 0.0

    @property
    def latent_dim(self) -> int:
        """Width of the latent vectors."""
        return self.dim

    @abstractmethod
    def posterior(self, users: Tensor) -> Gaussian:
        """q(z | x_u) of the users [B], given their training rows; with dropout only while `self.training`."""

    @abstractmethod
    def reconstruction(self, posterior: Gaussian, users: Tensor) -> Tensor:
        """0-d: the mean over the users of the loss of generating their training rows from one draw of `posterior`
        [B, latent_dim] (a negative log-likelihood and what else the model's generation is trained on)."""

    @abstractmethod
    def kl_weight(self) -> Tensor | float:
        """The weight, now, of the posterior's divergence from its prior."""

    @abstractmethod
    def decoded(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(users [B, w], items [num_items, w]) whose inner products are the scores, from latent vectors [B, dim]."""

    def representation(self) -> tuple[Tensor, Tensor]:
        """Every user's posterior mean, decoded."""
        users = torch.arange(self.num_users, device=self.device)
        return self.decoded(self.posterior(users).mean)

    def loss_terms(self, users: Tensor) -> dict[str, Tensor]:
        """The negative evidence lower bound of the users' rows."""
        from prorec_fast.losses import gaussian_kl

        posterior = self.posterior(users)
        divergence = gaussian_kl(posterior.mean, posterior.logvar)
        return {"nll": self.reconstruction(posterior, users), "kl": self.kl_weight() * divergence}
