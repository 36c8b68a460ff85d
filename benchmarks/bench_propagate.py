"""propagate on Amazon-Book's interactions (a synthetic graph of its size where the data is absent), 3 layers, mean.

Run with `pytest benchmarks/bench_propagate.py --benchmark-columns=median,min,stddev`; every provider is first checked
against the definition in float64.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from prorec_fast import BipartiteGraph, propagate
from prorec_fast.reference.propagate import propagate as reference

DATA = Path(__file__).parents[2] / "shared" / "data" / "amazon_book" / "interactions.npz"
LAYERS = 3


@cache
def graph() -> BipartiteGraph:
    if DATA.exists():
        data = np.load(DATA, allow_pickle=False)
        return BipartiteGraph.from_csr(data["train_indptr"], data["train_indices"], int(data["shape"][1]))
    generator = torch.Generator().manual_seed(0)
    users, items = (
        ((torch.rand(130_000, generator=generator) ** 1.5) * n).long() for n in (11_000, 9_332)
    )  # about 120,000 once duplicates are one
    return BipartiteGraph.from_edges(users, items, 11_000, 9_332)


@cache
def adjacency() -> torch.Tensor:
    """The normalised adjacency of users and items together, uncoalesced COO, as the field's released code makes it."""
    users, items = graph().edges()
    values = (graph().user_degree[users] * graph().item_degree[items]).double().rsqrt().float()
    nodes = graph().num_users + graph().num_items
    rows, columns = torch.cat([users, items + graph().num_users]), torch.cat([items + graph().num_users, users])
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.cat([values, values]), (nodes, nodes))


class _SymmetricProduct(torch.autograd.Function):
    """A x for a symmetric CSR matrix: autograd's own backward would transpose the matrix in every call."""

    @staticmethod
    def forward(ctx, csr, x):
        ctx.csr = csr
        return csr @ x

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.csr @ grad


def stacked(product):
    """Layers of product(x) over both halves in one table."""

    def run(user, item):
        x = total = torch.cat([user, item])
        for _ in range(LAYERS):
            x = product(x)
            total = total + x
        return torch.split(total / (LAYERS + 1), [user.size(0), item.size(0)])

    return run


@cache
def provider(name: str):
    if name == "prorec_fast":
        return lambda user, item: propagate(graph(), user, item, LAYERS)
    if name == "reference":
        return lambda user, item: reference(graph(), user, item, LAYERS)
    if name == "reference, compiled":
        return torch.compile(lambda user, item: reference(graph(), user, item, LAYERS), dynamic=False)
    if name == "COO, uncoalesced":
        return stacked(lambda x: torch.sparse.mm(adjacency(), x))
    csr = adjacency().coalesce().to_sparse_csr()
    return stacked(lambda x: _SymmetricProduct.apply(csr, x))


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("name", ["prorec_fast", "CSR (MKL)", "COO, uncoalesced", "reference", "reference, compiled"])
def test_propagate(benchmark, name, backward, dim):
    benchmark.group = f"propagate, d {dim}, {'forward + backward' if backward else 'forward'}"
    generator = torch.Generator().manual_seed(dim)
    sizes = (graph().num_users, graph().num_items)
    tables = [torch.randn(n, dim, generator=generator).requires_grad_(backward) for n in sizes]
    grads = [torch.randn(n, dim, generator=generator) for n in sizes]
    with torch.no_grad():
        truth = reference(graph(), *(t.double() for t in tables), LAYERS)
        for got, want in zip(provider(name)(*tables), truth, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)

    def run():
        outputs = provider(name)(*tables)
        return torch.autograd.grad(outputs, tables, grads) if backward else outputs

    if backward:
        for got, want in zip(run(), reference(graph(), *(g.double() for g in grads), LAYERS), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    benchmark.pedantic(run, rounds=30 if name in ("prorec_fast", "CSR (MKL)") else 8, warmup_rounds=2)
