"""LightGCN's propagation in existing code, before and after.

python benchmarks/examples/lightgcn.py
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from side_by_side import Provider, Setting, compare, interactions
from torch import Tensor, nn

from prorec_fast import BipartiteGraph, propagate


class Before(nn.Module):
    """LightGCN on a sparse COO adjacency of users and items together."""

    def __init__(self, train: sp.csr_matrix, dim: int = 32, num_layers: int = 3) -> None:
        super().__init__()
        num_users, num_items = train.shape
        self.user_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_users, dim)))
        self.item_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_items, dim)))
        self.num_layers = num_layers
        # these lines:
        adjacency = sp.bmat([[None, train], [train.T, None]])
        scale = sp.diags(np.maximum(np.asarray(adjacency.sum(1)).ravel(), 1) ** -0.5)
        adjacency = (scale @ adjacency @ scale).tocoo()
        place = np.stack([adjacency.row, adjacency.col])
        self.adjacency = torch.sparse_coo_tensor(place, adjacency.data, adjacency.shape).coalesce()
        # up to here

    def forward(self) -> tuple[Tensor, Tensor]:
        # these lines:
        layers = [torch.cat([self.user_embedding, self.item_embedding])]
        for _ in range(self.num_layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        user, item = torch.stack(layers).mean(0).split([len(self.user_embedding), len(self.item_embedding)])
        # up to here
        return user, item


class After(nn.Module):
    """The same, with the same parameters: a state_dict fits both."""

    def __init__(self, train: sp.csr_matrix, dim: int = 32, num_layers: int = 3) -> None:
        super().__init__()
        num_users, num_items = train.shape
        self.user_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_users, dim)))
        self.item_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_items, dim)))
        self.num_layers = num_layers
        # become:
        self.graph = BipartiteGraph.from_scipy(train)
        # up to here

    def forward(self) -> tuple[Tensor, Tensor]:
        # become:
        user, item = propagate(self.graph, self.user_embedding, self.item_embedding, self.num_layers)
        # up to here
        return user, item


def build(at: Setting) -> tuple[Provider, Provider]:
    train = interactions(at.graph())
    before, after = Before(train, at.dim), After(train, at.dim)
    after.load_state_dict(before.state_dict())
    grads = at.table(at.num_users, 1).detach(), at.table(at.num_items, 2).detach()

    def run(model: nn.Module) -> Provider:
        def outputs_and_gradients() -> list[Tensor]:
            outputs = model()
            return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, list(model.parameters()), grads)]

        return outputs_and_gradients

    return run(before), run(after)


if __name__ == "__main__":
    compare("LightGCN's propagation", build)
