from __future__ import annotations

import pytest
import torch
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import BipartiteGraph, library, propagate  # noqa: F401
from prorec_fast.ops.propagate import propagate_cpu
from prorec_fast.reference.propagate import propagate as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMBINES = ("mean", "sum", "last", "concat", (0.1, -0.5, 0.0, 2.0))


def random_graph(users=61, items=45, edges=500, weighted=False):
    """Some nodes without edges, first and last ones among them."""
    generator = torch.Generator().manual_seed(users * 1000 + items)
    rows = torch.randint(1, max(users - 2, 2), (edges,), generator=generator)
    columns = torch.randint(1, max(items - 1, 2), (edges,), generator=generator)
    weights = torch.rand(edges, generator=generator) + 0.1 if weighted else None
    return BipartiteGraph.from_edges(rows, columns, users, items, weights=weights)


def skewed_graph():
    """An item with 5000 edges among items with few."""
    generator = torch.Generator().manual_seed(7)
    users = torch.cat([torch.arange(5000), torch.randint(5200, (900,), generator=generator)])
    items = torch.cat([torch.zeros(5000, dtype=torch.int64), torch.randint(1, 30, (900,), generator=generator)])
    return BipartiteGraph.from_edges(users, items, 5300, 30)


def tables(graph, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(dim)
    return [torch.randn(n, dim, generator=generator).to(dtype) for n in (graph.num_users, graph.num_items)]


def joined(function, graph, **options):
    """As a function of the two tables that returns one tensor."""
    return lambda *tables: torch.cat(function(graph, *tables, **options))


def check(graph, inputs, **options):
    check_against_reference(joined(propagate, graph, **options), joined(reference, graph, **options), inputs)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 8, 16, 31, 32, 33, 48, 64, 65, 128, 129, 200, 512])
def test_propagate_matches_reference_at_every_width(dim, dtype):
    graph = random_graph()
    check(graph, tables(graph, dim, dtype))


@pytest.mark.every_level
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combine", COMBINES, ids=str)
def test_propagate_matches_reference_in_every_form(combine, weighted, self_loops):
    graph = random_graph(weighted=weighted)
    for options in ({}, {"keep_prob": 0.6, "seed": 11}, {"noise": 0.2, "seed": 12}):
        for dim in (8, 33):
            check(graph, tables(graph, dim), combine=combine, self_loops=self_loops, **options)
    check(graph, tables(graph, 24), combine=combine, self_loops=self_loops, keep_prob=0.5, noise=0.1, seed=2**62 + 3)
    check(graph, tables(graph, 24, torch.bfloat16), combine=combine, self_loops=self_loops, keep_prob=0.5, seed=1)


@pytest.mark.every_level
@pytest.mark.parametrize(
    "users, items, edges", [(1, 1, 1), (1, 50, 30), (300, 1, 200), (7, 5, 0), (0, 4, 0), (5, 0, 0)]
)
def test_propagate_matches_reference_on_small_graphs(users, items, edges):
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(max(n, 1), (edges,), generator=generator) for n in (users, items))
    graph = BipartiteGraph.from_edges(rows, columns, users, items)
    for options in ({}, {"combine": "concat"}, {"keep_prob": 0.5, "seed": 1}, {"noise": 0.1, "seed": 1}):
        check(graph, tables(graph, 20), **options)


@pytest.mark.parametrize("num_layers", [0, 1, 2, 5])
@pytest.mark.parametrize("combine", ["mean", "sum", "last", "concat"])
def test_propagate_matches_reference_at_every_depth(combine, num_layers):
    if (combine, num_layers) == ("sum", 0):
        assert not any(t.any() for t in propagate(random_graph(), *tables(random_graph(), 8), 0, combine="sum"))
        return
    graph = random_graph()
    check(graph, tables(graph, 32), num_layers=num_layers, combine=combine)


def test_propagate_matches_reference_on_skewed_degrees_and_many_tasks():
    graph = skewed_graph()
    for dim in (8, 72):
        check(graph, tables(graph, dim))
        check(graph, tables(graph, dim), keep_prob=0.7, seed=3)
    graph = random_graph(4000, 3000, 60000)
    check(graph, tables(graph, 32))


def test_propagate_matches_reference_strided():
    graph = random_graph()
    wide = [torch.randn(2 * n, 64, generator=torch.Generator().manual_seed(n)) for n in (61, 45)]
    check(graph, [t[::2, 1::2] for t in wide])
    check(graph, [t[::2, :24] for t in wide])
    check(graph, [t.t()[:24, : n // 2].t() for t, n in zip(wide, (122, 90), strict=True)], combine="concat")


@pytest.mark.parametrize("combine", ["mean", "concat"])
@pytest.mark.parametrize("output", range(2))
@pytest.mark.parametrize("which", range(2))
def test_propagate_grad_of_each_input_and_output_alone(which, output, combine):
    graph = random_graph(weighted=True)
    inputs = tables(graph, 24)
    inputs[which].requires_grad_()
    truth = [t.detach().double() for t in inputs]
    truth[which].requires_grad_()
    results = [f(graph, *t, combine=combine)[output] for f, t in ((propagate, inputs), (reference, truth))]
    grad_out = torch.randn(results[1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for result in results:
        result.backward(grad_out.to(result.dtype))
    torch.testing.assert_close(inputs[which].grad.double(), truth[which].grad, rtol=1e-4, atol=1e-6)
    assert inputs[1 - which].grad is None


def test_propagate_gradcheck_float64():
    graph = random_graph(6, 5, 14)
    inputs = [t.double().requires_grad_() for t in tables(graph, 3)]
    for options in ({}, {"combine": "concat", "self_loops": True}, {"keep_prob": 0.5, "seed": 4}):
        assert torch.autograd.gradcheck(joined(propagate, graph, **options), inputs)


@pytest.mark.parametrize(
    "options", [{}, {"combine": "concat"}, {"keep_prob": 0.5, "seed": 1}, {"noise": 0.1, "seed": 1}]
)
def test_propagate_does_not_depend_on_the_thread_count(options):
    graph = random_graph(3000, 2000, 40000)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            inputs = leaves(tables(graph, 40))
            output = joined(propagate, graph, **options)(*inputs)
            output.backward(torch.ones_like(output))
            results.append([output.detach(), *(t.grad for t in inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_propagate_keeps_the_edges_it_says():
    graph = random_graph(400, 300, 20000)
    ones = [torch.ones(n, 8) for n in (400, 300)]
    full, dropped = (
        propagate(graph, *ones, 1, combine="last", keep_prob=p, seed=5)[0][:, 0].double() for p in (1.0, 0.3)
    )
    assert abs(dropped.sum() / full.sum() - 1) < 0.02  # kept edges are scaled up, so the mean stays
    again = propagate(graph, *ones, 1, combine="last", keep_prob=0.3, seed=5)[0][:, 0].double()
    other = propagate(graph, *ones, 1, combine="last", keep_prob=0.3, seed=6)[0][:, 0].double()
    assert torch.equal(dropped, again) and not torch.equal(dropped, other)
    torch.manual_seed(0)
    a = propagate(graph, *ones, keep_prob=0.5)
    b = propagate(graph, *ones, keep_prob=0.5)
    torch.manual_seed(0)
    c = propagate(graph, *ones, keep_prob=0.5)
    assert torch.equal(a[0], c[0]) and not torch.equal(a[0], b[0])


def test_propagate_properties():
    graph = random_graph()
    user, item = tables(graph, 16)
    state = torch.get_rng_state()
    user_out, _ = propagate(graph, user, item)
    assert torch.equal(torch.get_rng_state(), state)  # nothing random, nothing drawn
    torch.testing.assert_close(user_out[0], user[0] / 4)  # a node without edges keeps its layer 0 only
    assert not propagate(graph, user, item, combine="last")[0][0].any()
    # The vector of square roots of degrees is the eigenvector of eigenvalue 1.
    roots = [d.float().sqrt()[:, None].expand(-1, 8) for d in (graph.user_degree, graph.item_degree)]
    for out, root in zip(propagate(graph, *roots, 4, combine="last"), roots, strict=True):
        torch.testing.assert_close(out, root.contiguous(), rtol=1e-5, atol=1e-6)
    # Noise moves each entry away from zero, each row by eps in all, and leaves rows of zeros alone.
    still = propagate(graph, user, item, 1, combine="last")[0]
    moved = propagate(graph, user, item, 1, combine="last", noise=0.5, seed=9)[0] - still
    assert (moved * still >= 0).all()
    torch.testing.assert_close(moved.norm(dim=1), 0.5 * (graph.user_degree > 0).float(), rtol=1e-4, atol=1e-5)
    user[3] = float("nan")
    touched = torch.cat(propagate(graph, user, item, 1, combine="last")).isnan().any(1).nonzero().flatten()
    neighbours = graph.csr()[1][graph.csr()[0][3] : graph.csr()[0][4]].long() + 61
    assert touched.tolist() == neighbours.tolist()


def test_propagate_compiles_and_registers():
    for weighted in (False, True):
        graph = random_graph(weighted=weighted)
        inputs = leaves(tables(graph, 16))
        for options in (
            ((0.25,) * 4, False, False, 0.0, 1.0, False, None),
            ((1.0,) * 3, False, True, 0.1, 0.5, True, torch.tensor(4)),
        ):
            torch.library.opcheck(torch.ops.prorec_fast.propagate, (*inputs, *graph.adjacency(), *options))
        for options in ({}, {"combine": "concat", "keep_prob": 0.5, "seed": 3}, {"noise": 0.1, "seed": 3}):
            assert_compiled_equals_eager(joined(propagate, graph, **options), tables(graph, 16))
    compiled = torch.compile(propagate, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    a, b = (compiled(graph, *tables(graph, 16), keep_prob=0.5)[0] for _ in range(2))
    assert not torch.equal(a, b)


def test_propagate_writes_every_output():
    """Outputs come from torch.empty: what was there before must not shine through."""
    graph = random_graph(weighted=True)
    for dim in (8, 33, 65):
        want = propagate(graph, *tables(graph, dim))
        for _ in range(3):
            junk = [torch.full((n, dim), float("nan")) for n in (61, 45)]
            del junk
            assert all(torch.equal(a, b) for a, b in zip(propagate(graph, *tables(graph, dim)), want, strict=True))


def test_propagate_skips_what_is_not_wanted():
    graph = random_graph()
    user, item = tables(graph, 16)
    options = ((0.25,) * 4, False, False, 0.0, 1.0, False, None)
    both = propagate_cpu(user, item, graph.adjacency(), *options)
    user_only = propagate_cpu(user, item, graph.adjacency(), *options, (True, False))
    assert user_only[1] is None and torch.equal(user_only[0], both[0])
    from_user = propagate_cpu(user, None, graph.adjacency(), *options)
    zeros = propagate_cpu(user, torch.zeros_like(item), graph.adjacency(), *options)
    assert all(torch.equal(a, b) for a, b in zip(from_user, zeros, strict=True))


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (lambda u, i: (u[:-1], i), {}, "user: want shape"),
        (lambda u, i: (u, i[:, :-1]), {}, "item: want shape"),
        (lambda u, i: (u, i.double()), {}, "item: want the device and dtype of user"),
        (lambda u, i: (u.long(), i), {}, "user: want a floating tensor"),
        (lambda u, i: (u, i, -1), {}, "num_layers: want an int"),
        (lambda u, i: (u, i, 2.0), {}, "num_layers: want an int"),
        (lambda u, i: (u, i), {"combine": "max"}, "combine: want mean"),
        (lambda u, i: (u, i), {"combine": (1.0, 2.0)}, "combine: want num_layers [+] 1 = 4 weights"),
        (lambda u, i: (u, i), {"noise": -0.1}, "noise: want"),
        (lambda u, i: (u, i), {"keep_prob": 0.0}, "keep_prob: want"),
        (lambda u, i: (u, i), {"keep_prob": 1.5}, "keep_prob: want"),
        (lambda u, i: (u, i), {"keep_prob": 0.5, "seed": -1}, "seed: want"),
    ],
)
def test_propagate_rejects(arguments, options, message):
    graph = random_graph()
    with pytest.raises((TypeError, ValueError), match=message):
        propagate(graph, *arguments(*tables(graph, 8)), **options)
    with pytest.raises(TypeError, match="graph: want a BipartiteGraph"):
        propagate(None, *tables(graph, 8))
