"""L-DiffRec."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prorec_fast._checks import non_negative_number, positive_int, probability

from .diffusion import Denoiser, NoiseSchedule
from .generative import Gaussian
from .sparse_input import SparseLinear, unit_rows
from .variational import VariationalAutoencoder

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph


class LDiffRec(VariationalAutoencoder):
    """Diffusion of the latent vectors of one autoencoder per cluster of items (Wang et al., 2023, arXiv 2304.04971).

    Items are parted by k-means of their co-occurrence vectors. A user's items of each cluster are encoded by a layer of
    the cluster's own (linear, then tanh, as in the code released with the paper); the latent vectors stand side by
    side. One draw is noised to a random step of the schedule, the denoiser predicts what it was, and each cluster's
    items are scored by its part of the prediction, under one softmax:

        loss = nll + kl_weight KL + diffusion_weight mean_u weight_t |x_0 - predicted|^2 / dim

    with t uniform. Ranking starts from the posterior's mean, noised by `sampling_steps`, and walks the whole chain
    back by its means.

    The clusters are part of the state: weights mean nothing under others.

    Args:
        dim: width of the latent vectors of all clusters together; each has an equal part.
        num_clusters: of the items.
        num_steps, noise_scale, noise_min, noise_max: see `NoiseSchedule`.
        sampling_steps: how far ranking noises a latent vector before denoising, 0..num_steps. The noise is drawn from
            the model's seed, the same every time.
        diffusion_weight: of the denoiser's error.
        hidden_dim, time_dim, denoiser_dropout: see `Denoiser`.
        dropout: share of a row's entries that are left out while training.
        anneal_cap, anneal_steps: see `VariationalAutoencoder`.
    """

    name = "l_diffrec"

    def __init__(
        self,
        data: Dataset,
        dim: int = 200,
        num_clusters: int = 2,
        *,
        num_steps: int = 5,
        sampling_steps: int = 0,
        noise_scale: float = 0.5,
        noise_min: float = 0.001,
        noise_max: float = 0.005,
        diffusion_weight: float = 0.05,
        hidden_dim: int = 300,
        time_dim: int = 10,
        dropout: float = 0.5,
        denoiser_dropout: float = 0.2,
        anneal_cap: float = 0.3,
        anneal_steps: int = 200,
        seed: int = 0,
    ) -> None:
        positive_int("dim", dim)
        positive_int("num_clusters", num_clusters)
        if dim % num_clusters:
            raise ValueError(f"dim: want a multiple of num_clusters ({num_clusters}), got {dim}")
        width = dim // num_clusters
        super().__init__(data, dim, hidden_dim=width, anneal_cap=anneal_cap, anneal_steps=anneal_steps, seed=seed)
        self.num_clusters = num_clusters
        self.schedule = NoiseSchedule(num_steps, noise_scale, noise_min, noise_max)
        positive_int("hidden_dim", hidden_dim)
        positive_int("time_dim", time_dim)
        probability("denoiser_dropout", denoiser_dropout)
        non_negative_number("diffusion_weight", diffusion_weight)
        if isinstance(sampling_steps, bool) or sampling_steps not in range(num_steps + 1):
            raise ValueError(f"sampling_steps: want an integer in [0, {num_steps}], got {sampling_steps!r}")
        self.sampling_steps, self.diffusion_weight = sampling_steps, float(diffusion_weight)
        self._noise = {"noise_scale": noise_scale, "noise_min": noise_min, "noise_max": noise_max}
        self.input = SparseLinear(self.num_items, 2 * width, dropout=dropout, bias=False)
        self.input_bias = nn.Parameter(torch.empty(2 * dim, dtype=torch.float32, device="cpu"))
        self.denoiser = Denoiser(dim, num_steps, hidden_dim=hidden_dim, time_dim=time_dim, dropout=denoiser_dropout)
        self.clusters: Tensor  # int64 [num_items]
        self.register_buffer("clusters", item_clusters(data, num_clusters, seed=seed))
        self.bags = self._bags()
        self.register_load_state_dict_post_hook(_renew_bags)
        self.reset_parameters()

    def _bags(self) -> BipartiteGraph:
        """Row u * num_clusters + c: the items of user u in cluster c, weighted as in the user's row of length 1."""
        from prorec_fast.graph import BipartiteGraph

        users, items = self.train_graph.edges()
        rows = users * self.num_clusters + self.clusters[items]
        num_rows = self.num_users * self.num_clusters
        return BipartiteGraph.from_edges(rows, items, num_rows, self.num_items, weights=unit_rows(self.train_graph))

    def encoded(self, users: Tensor) -> Tensor:
        cluster = torch.arange(self.num_clusters, device=users.device)
        rows = (users[:, None] * self.num_clusters + cluster).flatten()
        sums = self.input(self.bags, self.bags.user_values, rows).view(users.numel(), 2 * self.dim)
        parameters = torch.tanh(sums + self.input_bias).view(users.numel(), self.num_clusters, 2, -1)
        return parameters.transpose(1, 2).reshape(users.numel(), 2 * self.dim)

    def item_weights(self) -> Tensor:
        """[num_items, dim]: the last layer's weight where the item's own cluster is, zeros elsewhere."""
        own = self.clusters[:, None] == torch.arange(self.num_clusters, device=self.clusters.device)
        return (own[:, :, None] * self.output.weight[:, None, :]).flatten(1)

    def reconstruction(self, posterior: Gaussian, users: Tensor) -> Tensor:
        """0-d: the mean over the users of -sum_j x_uj log softmax_j, and the weighted error of the denoiser."""
        start = posterior.sample()
        step = torch.randint(self.schedule.num_steps, users.shape, device=start.device)
        predicted = self.denoiser(self.schedule.noised(start, step, torch.randn_like(start)), step)
        error = self.schedule.loss_weight[step] * (predicted - start).square().mean(1)
        return self.negative_log_likelihood(predicted, users) + self.diffusion_weight * error.mean()

    def hidden(self, latent: Tensor) -> Tensor:
        """What the chain walked back makes of the latent vectors."""
        noisy = latent
        if self.sampling_steps:
            generator = torch.Generator(latent.device).manual_seed(self.seed)
            noise = torch.randn(latent.shape, generator=generator, dtype=latent.dtype, device=latent.device)
            noisy = self.schedule.noised(latent, self._all_at(self.sampling_steps - 1, latent), noise)
        for step in reversed(range(self.schedule.num_steps)):
            at = self._all_at(step, latent)
            noisy = self.schedule.mean_before(self.denoiser(noisy, at), noisy, at)
        return noisy

    @staticmethod
    def _all_at(step: int, latent: Tensor) -> Tensor:
        return torch.full(latent.shape[:1], step, dtype=torch.int64, device=latent.device)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            **self._noise,
            "num_clusters": self.num_clusters,
            "num_steps": self.schedule.num_steps,
            "sampling_steps": self.sampling_steps,
            "diffusion_weight": self.diffusion_weight,
            "hidden_dim": self.denoiser.inner.out_features,
            "time_dim": self.denoiser.time.in_features,
            "dropout": self.input.dropout,
            "denoiser_dropout": self.denoiser.dropout.p,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LDiffRec:
        super()._apply(fn, recurse)
        self.bags = self.bags.to(self.device)
        return self


def _renew_bags(model: LDiffRec, _: object) -> None:
    """After other clusters were loaded. (A lambda would keep the model from being pickled.)"""
    model.bags = model._bags()


def item_clusters(data: Dataset, num_clusters: int, *, seed: int) -> Tensor:
    """int64 [num_items]: each item's cluster by k-means of the co-occurrence vectors, larger clusters first. An item
    without training interactions has no vector, and comes to one of them."""
    from prorec_fast.data.kmeans import kmeans

    items = data.with_cooccurrence_profiles(seed=seed).item_profiles
    everything = torch.arange(data.num_items, device="cpu")
    return kmeans(items, everything.new_tensor([0, data.num_items]), everything, num_clusters).labels
