from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sizes import COMPILED, EAGER, NUM_ITEMS, NUM_USERS, OURS, assert_agree, table

from prorec_fast import BipartiteGraph, propagate
from prorec_fast.reference.propagate import propagate as reference

DATA = Path(__file__).parents[2] / "shared" / "data" / "amazon_book" / "interactions.npz"
COO = "COO, uncoalesced"
MKL = "CSR (MKL)"
LAYERS = 3


@cache
def graph() -> BipartiteGraph:
    """Amazon-Book's training edges, or as many synthetic ones where the data is absent."""
    if DATA.exists():
        data = np.load(DATA, allow_pickle=False)
        return BipartiteGraph.from_csr(data["train_indptr"], data["train_indices"], int(data["shape"][1]))
    generator = torch.Generator().manual_seed(0)
    users, items = ((torch.rand(123_000, generator=generator) ** 1.5 * rows).long() for rows in (NUM_USERS, NUM_ITEMS))
    return BipartiteGraph.from_edges(users, items, NUM_USERS, NUM_ITEMS)


@cache
def adjacency() -> torch.Tensor:
    """The normalised adjacency of users and items together, uncoalesced COO, as the field's released code makes it."""
    users, items = graph().edges()
    values = (graph().user_degree[users] * graph().item_degree[items]).double().rsqrt().float()
    rows, columns = torch.cat([users, items + NUM_USERS]), torch.cat([items + NUM_USERS, users])
    size = (NUM_USERS + NUM_ITEMS,) * 2
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.cat([values, values]), size)


class SymmetricProduct(torch.autograd.Function):
    """csr @ x for a symmetric matrix: autograd's own backward would transpose it in every call."""

    @staticmethod
    def forward(ctx, csr, x):
        ctx.csr = csr
        return csr @ x

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.csr @ grad


def stacked(product, user, item):
    """The mean of the layers, both halves in one table."""
    x = total = torch.cat([user, item])
    for _ in range(LAYERS):
        x = product(x)
        total = total + x
    return torch.split(total / (LAYERS + 1), [NUM_USERS, NUM_ITEMS])


def providers(backward: bool = True, dim: int = 32, compiled: bool = True):
    inputs = [table(NUM_USERS, dim, 1), table(NUM_ITEMS, dim, 2)]
    grads = [table(NUM_USERS, dim, 3).detach(), table(NUM_ITEMS, dim, 4).detach()]
    coo, csr = adjacency(), adjacency().coalesce().to_sparse_csr()

    def eager(user, item):
        return reference(graph(), user, item, LAYERS)

    found = {
        EAGER: eager,
        OURS: lambda user, item: propagate(graph(), user, item, LAYERS),
        COO: lambda user, item: stacked(lambda x: torch.sparse.mm(coo, x), user, item),
        MKL: lambda user, item: stacked(lambda x: SymmetricProduct.apply(csr, x), user, item),
    }
    if compiled:
        found[COMPILED] = torch.compile(eager, dynamic=False)

    def runner(layers):
        def run():
            with torch.set_grad_enabled(backward):
                outputs = layers(*inputs)
                gradients = torch.autograd.grad(outputs, inputs, grads) if backward else ()
            return [*(t.detach() for t in outputs), *gradients]

        return run

    return {name: runner(layers) for name, layers in found.items()}


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, COO, MKL, OURS])
def test_propagate(benchmark, provider, backward, dim):
    found = providers(backward, dim, compiled=provider == COMPILED)
    assert_agree(found)
    benchmark(found[provider])
