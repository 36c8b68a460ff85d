"""LightGCN with BPR, and under ProMax and ProEx.

Habits: the propagation runs over whole tables in every step, ProEx's MLP over the profiles of all users and items
whatever the batch, and every environment mixes whole tables and gathers the batch's rows from them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prorec_fast.data import Dataset
from prorec_fast.frameworks import ProEx, ProMax
from prorec_fast.frameworks.promax import whitened_profiles

from .batches import Triplets
from .graph import coo_adjacency, propagated
from .losses import bpr, distribution, info_nce, reshaping, squares


class LightGCN(nn.Module):
    """Tables, propagated; the loss is BPR and weight decay."""

    reg = 1e-6

    def __init__(self, data: Dataset, dim: int, num_layers: int) -> None:
        super().__init__()
        self.user_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(data.num_users, dim)))
        self.item_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(data.num_items, dim)))
        self.num_layers = num_layers
        self.register_buffer("adjacency", coo_adjacency(data.train_graph), persistent=False)

    def batches(self, data: Dataset) -> Triplets:
        return Triplets(data.train_graph)

    def start_epoch(self, epoch: int) -> None:
        pass

    def propagated(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        return propagated(adjacency, self.user_embedding, self.item_embedding, self.num_layers)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        user, item = self.propagated(self.adjacency)
        return bpr(user[users], item[positives], item[negatives]) + self.reg * squares(self.parameters())

    def representation(self) -> tuple[Tensor, Tensor]:
        return self.propagated(self.adjacency)

    def ranking(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from users [B] and their training rows [B, num_items] to scores."""
        user, item = self.representation()
        return lambda users, rows: user[users] @ item.T


class ProMaxLightGCN(LightGCN):
    def __init__(self, data: Dataset, dim: int, num_layers: int, settings: ProMax) -> None:
        super().__init__(data, dim, num_layers)
        self.settings, self.reg, self.contrast_weight = settings, settings.reg, settings.s2dr_weight
        profiles = whitened_profiles(data.user_profiles, data.item_profiles, dim, settings.whitening)
        for name, table in zip(("user_profiles", "item_profiles"), profiles, strict=True):
            self.register_buffer(name, table, persistent=False)
        self.register_buffer("enriched", coo_adjacency(data.enriched_graph), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        self.contrast_weight = self.settings.s2dr_weight if epoch >= self.settings.warmup_epochs else 0.0

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        settings, tau = self.settings, self.settings.temperature
        user, item = self.propagated(self.adjacency)
        loss = bpr(user[users], item[positives], item[negatives]) + self.reg * squares(self.parameters())
        rows, columns = users.unique(), positives.unique()
        student = distribution(user[rows], item, tau)
        teacher = distribution(self.user_profiles[rows], self.item_profiles, settings.teacher_temperature)
        loss = loss + settings.sdr_weight * reshaping(student, teacher, settings.weight_range, settings.sdr_eps)
        if self.contrast_weight:
            other_user, other_item = self.propagated(self.enriched)
            contrast = (
                info_nce(user[rows], other_user[rows], tau, settings.contrast_eps)
                + info_nce(item[columns], other_item[columns], tau, settings.contrast_eps)
                + info_nce(user[users], other_item[positives], tau) / 2
                + info_nce(other_user[users], item[positives], tau) / 2
            )
            loss = loss + self.contrast_weight * contrast
        return loss


class ProExLightGCN(LightGCN):
    def __init__(self, data: Dataset, dim: int, num_layers: int, settings: ProEx) -> None:
        super().__init__(data, dim, num_layers)
        self.settings = settings
        users, items, _ = data.profiles_for(settings.num_profiles)
        self.register_buffer("user_profiles", torch.stack(users), persistent=False)  # [K, num_users, t]
        self.register_buffer("item_profiles", torch.stack(items), persistent=False)
        self.register_buffer("alpha", torch.full((settings.num_profiles,), settings.alpha), persistent=False)
        width = users[0].shape[1]
        hidden = (width + dim) // 2
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        settings = self.settings
        user, item = self.propagated(self.adjacency)
        of_users, of_items = self.mlp(self.user_profiles), self.mlp(self.item_profiles)  # [K, num_users, d]
        losses = []
        for theta in torch.distributions.Dirichlet(self.alpha).sample((settings.num_environments,)):
            shifted_user = user + sum(weight * image for weight, image in zip(theta, of_users, strict=True))
            shifted_item = item + sum(weight * image for weight, image in zip(theta, of_items, strict=True))
            losses.append(bpr(shifted_user[users], shifted_item[positives], shifted_item[negatives]))
        losses = torch.stack(losses)
        rows, columns = users.unique(), positives.unique()
        images = [image[rows] for image in of_users] + [image[columns] for image in of_items]
        apart = sum(info_nce(image, image, settings.temperature, settings.contrast_eps) for image in images)
        return (
            losses.sum()
            + settings.variance_weight * losses.var()
            + settings.regularization_weight * apart
            + self.reg * squares(self.parameters())
        )

    def representation(self) -> tuple[Tensor, Tensor]:
        user, item = super().representation()
        return user + self.mlp(self.user_profiles).mean(0), item + self.mlp(self.item_profiles).mean(0)
