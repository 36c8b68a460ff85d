"""What the autoencoders of training rows have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prorec_fast._checks import non_negative_number, positive_int

from .generative import Gaussian, Generative

if TYPE_CHECKING:
    from prorec_fast.data import Dataset


class VariationalAutoencoder(Generative):
    """A Gaussian posterior from an encoder, and a decoder whose last layer is a softmax over all items (Liang et al.,
    2018). A model of this kind says what lies between: `encoded` and `hidden`.

    Args:
        data, dim, seed: as for `Recommender`.
        hidden_dim: width of what the last layer takes.
        anneal_cap: the largest weight of the Kullback-Leibler term. 1 makes the loss a bound of the likelihood; less
            ranks better.
        anneal_steps: the weight rises linearly from 0 to it in so many training steps.

    Attributes:
        steps: 0-d int64, the training steps so far: every posterior drawn up while `training` is one. It is part of the
            state, so that a resumed run goes on with it.
        output: the last layer.
    """

    capturable = True

    def __init__(
        self, data: Dataset, dim: int, *, hidden_dim: int, anneal_cap: float, anneal_steps: int, seed: int
    ) -> None:
        super().__init__(data, dim, seed=seed)
        positive_int("hidden_dim", hidden_dim)
        non_negative_number("anneal_cap", anneal_cap)
        positive_int("anneal_steps", anneal_steps)
        self.anneal_cap, self.anneal_steps = float(anneal_cap), anneal_steps
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.output = dense_layer(hidden_dim, self.num_items)

    @abstractmethod
    def encoded(self, users: Tensor) -> Tensor:
        """[B, 2 dim]: means and log-variances side by side, from the users' training rows."""

    @abstractmethod
    def hidden(self, latent: Tensor) -> Tensor:
        """[B, width of `item_weights`]: what the last layer takes, from latent vectors [B, dim]."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier-normal weights and zero biases, from the model's seed."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for parameter in self.parameters():
            fresh = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
            if parameter.dim() == 2:
                nn.init.xavier_normal_(fresh, generator=generator)
            parameter.copy_(fresh)
        self.steps.zero_()

    def posterior(self, users: Tensor) -> Gaussian:
        if self.training:
            self.steps += 1
        return Gaussian.from_parameters(self.encoded(users))

    def reconstruction(self, posterior: Gaussian, users: Tensor) -> Tensor:
        """0-d: the mean over the users of -sum_j x_uj log softmax_j(output(hidden(z))), z one draw."""
        return self.negative_log_likelihood(self.hidden(posterior.sample()), users)

    def item_weights(self) -> Tensor:
        """The last layer's weight, [num_items, hidden_dim] unless a model says otherwise."""
        return self.output.weight

    def negative_log_likelihood(self, hidden: Tensor, users: Tensor) -> Tensor:
        """0-d: the mean over the users of -sum_j x_uj log softmax_j, from the last layer's input."""
        from prorec_fast.losses import multinomial_nll

        return multinomial_nll(hidden, self.item_weights(), self.output.bias, self.train_graph, rows=users)

    def kl_weight(self) -> Tensor:
        """0-d: anneal_cap * min(1, steps / anneal_steps)."""
        return self.anneal_cap * (self.steps.float() / self.anneal_steps).clamp(max=1)

    def decoded(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's input and weight, each with a column more: of ones, and of the bias."""
        hidden = self.hidden(latent)
        users = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
        return users, torch.cat([self.item_weights(), self.output.bias[:, None]], dim=1)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "anneal_cap": self.anneal_cap, "anneal_steps": self.anneal_steps}


def dense_layer(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer, uninitialised: nothing is drawn from the caller's generators."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32, device="cpu")
