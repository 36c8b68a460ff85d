from __future__ import annotations

from importlib.util import find_spec

import torch
from baseline.graph import coo_adjacency
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, compiled

from prorec_fast import BipartiteGraph, propagate
from prorec_fast.reference.propagate import propagate as reference

COO, CSR, SCIPY = "COO, uncoalesced", "CSR", "scipy.sparse"
LAYERS = 3


def csr_provider(at: Setting) -> str:
    """The name of torch's CSR product: the vendor's library."""
    return f"{CSR} (cuSPARSE)" if at.device == "cuda" else f"{CSR} (MKL)"


def enriched(at: Setting) -> BipartiteGraph:
    """The training graph and as many random edges as the published enrichment adds."""
    graph = at.graph()
    users, items = graph.edges()
    generator = torch.Generator().manual_seed(0)
    extra = [
        torch.randint(n, (at.enriched_edges - graph.num_edges,), generator=generator).to(at.device)
        for n in (at.num_users, at.num_items)
    ]
    users, items = (torch.cat(pair) for pair in zip((users, items), extra, strict=True))
    return BipartiteGraph.from_edges(users, items, at.num_users, at.num_items)


def csr_adjacency(graph: BipartiteGraph, dtype: torch.dtype) -> torch.Tensor:
    """The same as `coo_adjacency`, sorted, with int32 indices, which the vendors' products are fastest with."""
    scale = [degree.double().clamp_min(1).rsqrt() for degree in (graph.user_degree, graph.item_degree)]
    values = [
        (torch.repeat_interleave(own, indptr.diff()) * other[indices.long()]).to(dtype)
        for own, other, indptr, indices in (
            (*scale, graph.user_indptr, graph.user_indices),
            (*scale[::-1], graph.item_indptr, graph.item_indices),
        )
    ]
    indptr = torch.cat([graph.user_indptr, graph.item_indptr[1:] + graph.num_edges]).int()
    indices = torch.cat([graph.user_indices + graph.num_users, graph.item_indices])
    size = (graph.num_users + graph.num_items,) * 2
    return torch.sparse_csr_tensor(indptr, indices, torch.cat(values), size, check_invariants=False)


class ScipyProduct:
    """SciPy's product of such a matrix, on one thread."""

    def __init__(self, csr: torch.Tensor) -> None:
        from scipy.sparse import csr_matrix

        parts = (t.numpy() for t in (csr.values(), csr.col_indices(), csr.crow_indices()))
        self.matrix = csr_matrix(tuple(parts), csr.shape)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.matrix @ x.detach().numpy())


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
    return torch.split(total / (LAYERS + 1), [len(user), len(item)])


def providers(at: Setting = AMAZON_BOOK, backward: bool = True, both: bool = False):
    """The layers of the training graph or, as in a ProMax step, of `both` it and the enriched one."""
    inputs = [at.table(at.num_users, 1), at.table(at.num_items, 2)]
    graphs = [at.graph(), enriched(at)] if both else [at.graph()]
    grads = [at.table(n, seed).detach() for seed in range(3, 3 + len(graphs)) for n in (at.num_users, at.num_items)]

    def runner(*layers):
        def run():
            with torch.set_grad_enabled(backward):
                outputs = [table for one in layers for table in one(*inputs)]
                gradients = torch.autograd.grad(outputs, inputs, grads) if backward else ()
            return [*(t.detach() for t in outputs), *gradients]

        return run

    def eager(graph):
        return lambda user, item: reference(graph, user, item, LAYERS)

    def coo(graph):
        adjacency = coo_adjacency(graph, inputs[0].dtype)
        return lambda user, item: stacked(lambda x: torch.sparse.mm(adjacency, x), user, item)

    def csr(graph):
        adjacency = csr_adjacency(graph, inputs[0].dtype)
        return lambda user, item: stacked(lambda x: SymmetricProduct.apply(adjacency, x), user, item)

    def scipy(graph):
        product = ScipyProduct(csr_adjacency(graph, inputs[0].dtype))
        return lambda user, item: stacked(lambda x: SymmetricProduct.apply(product, x), user, item)

    def ours(graph):
        return lambda user, item: propagate(graph, user, item, LAYERS)

    forms = {EAGER: eager, OURS: ours, csr_provider(at): csr, COO: coo, COMPILED: lambda graph: compiled(eager(graph))}
    found = {name: runner(*map(form, graphs)) for name, form in forms.items()}
    why = _no_scipy(at)
    return {**found, SCIPY: Unavailable(why) if why else runner(*map(scipy, graphs))}


def _no_scipy(at: Setting) -> str:
    if at.device != "cpu" or at.precision == "bfloat16":
        return "timed on a CPU in float32"
    return "" if find_spec("scipy") else "not importable (No module named 'scipy')"
