from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast.reference.philox import EDGE_STREAM, NOISE_STREAM, philox, seed_key, seed_tensor

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


def propagate(
    graph: BipartiteGraph,
    user: Tensor,
    item: Tensor,
    num_layers: int = 3,
    *,
    combine: str | Sequence[float] = "mean",
    noise: float = 0.0,
    keep_prob: float = 1.0,
    self_loops: bool = False,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_l alpha_l E[l] (or the layers side by side), E[l + 1] = D^-1/2 R D^-1/2 E[l]."""
    if noise > 0 or keep_prob < 1:
        key = seed_key(seed_tensor(seed, user.device))
    users, items = graph.edges()
    weights = torch.ones_like(users, dtype=torch.float64) if graph.user_values is None else graph.user_values.double()
    user_scale = _inverse_sqrt_degree(users, weights, graph.num_users, self_loops)
    item_scale = _inverse_sqrt_degree(items, weights, graph.num_items, self_loops)
    weights = user_scale[users] * weights * item_scale[items]
    if keep_prob < 1:
        weights = weights * edge_mask(key, users, items, keep_prob) / keep_prob
    weights = weights.to(user.dtype)[:, None]

    layers = [(user, item)]
    for layer in range(1, num_layers + 1):
        user, item = layers[-1]
        next_user = torch.zeros_like(user).index_add(0, users, weights * item[items])
        next_item = torch.zeros_like(item).index_add(0, items, weights * user[users])
        if self_loops:
            next_user = next_user + (user_scale**2).to(user.dtype)[:, None] * user
            next_item = next_item + (item_scale**2).to(item.dtype)[:, None] * item
        if noise > 0:
            next_user = next_user + noise * _perturbation(key, next_user, layer, 0)
            next_item = next_item + noise * _perturbation(key, next_item, layer, 1)
        layers.append((next_user, next_item))

    if combine == "concat":
        return tuple(torch.cat(side, dim=1) for side in zip(*layers, strict=True))
    alpha = layer_weights(combine, num_layers)
    return tuple(sum(a * e for a, e in zip(alpha, side, strict=True)) for side in zip(*layers, strict=True))


def layer_weights(combine: str | Sequence[float], num_layers: int) -> tuple[float, ...]:
    """The weight of each layer, 0 to num_layers, in the combined result."""
    if combine == "mean":
        return (1 / (num_layers + 1),) * (num_layers + 1)
    if combine == "sum":
        return (0.0,) + (1.0,) * num_layers
    if combine == "last":
        return (0.0,) * num_layers + (1.0,)
    return tuple(float(a) for a in combine)


def edge_mask(key: tuple[Tensor, Tensor], users: Tensor, items: Tensor, keep_prob: float) -> Tensor:
    """Whether each edge is kept."""
    return philox(key, (users, items, 0, EDGE_STREAM))[0] < int(keep_prob * 2**32)


def _perturbation(key: tuple[Tensor, Tensor], e: Tensor, layer: int, side: int) -> Tensor:
    """sign(e) * normalize(r), with r uniform in [0, 1) from 24 bits."""
    rows, dim = e.shape
    blocks = (dim + 31) // 32  # of columns: the four words of eight counters
    counters = torch.arange(8 * blocks, device=e.device)
    words = philox(key, (counters, torch.arange(rows, device=e.device)[:, None], 2 * layer + side, NOISE_STREAM))
    words = torch.stack([w.unflatten(1, (blocks, 8)) for w in words], dim=2).flatten(1)[:, :dim]
    uniform = (words >> 8).to(torch.float64) * 2.0**-24
    return e.detach().sign() * F.normalize(uniform, dim=1).to(e.dtype)


def _inverse_sqrt_degree(rows: Tensor, weights: Tensor, num_rows: int, self_loops: bool) -> Tensor:
    """float64 [num_rows]; 0 for a row without edges."""
    degree = weights.new_full((num_rows,), float(self_loops)).index_add(0, rows, weights)
    return torch.where(degree > 0, degree.rsqrt(), 0)
