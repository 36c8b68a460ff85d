from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager, check_against_reference

from prorec_fast import BipartiteGraph, propagate
from prorec_fast.ops.propagate import propagate_kernel
from prorec_fast.reference.propagate import propagate as reference

COMBINES = ("mean", "sum", "last", "concat", (0.1, -0.5, 0.0, 2.0))


@pytest.fixture
def short_segments(monkeypatch):
    """Rows of more than 32 edges are shared by several warps."""
    monkeypatch.setattr("prorec_fast.graph._SEGMENT", 32)


def skewed_graph(device, weighted=False):
    """A user with all items, an item with nearly all users, nodes without edges."""
    users, items = 23, 150
    generator = torch.Generator().manual_seed(0)
    few = [torch.randint(1, n, (60,), generator=generator) for n in (9, 99)]
    rows = torch.cat([torch.full((items - 1,), 5), torch.arange(1, users - 1), few[0]])
    columns = torch.cat([torch.arange(items - 1), torch.full((users - 2,), 7), few[1]])
    weights = torch.rand(rows.numel(), generator=generator) + 0.1 if weighted else None
    return BipartiteGraph.from_edges(rows, columns, users, items, weights=weights, device=device)


def small_graph(device, users=13, items=9, edges=40):
    generator = torch.Generator().manual_seed(users)
    rows, columns = (torch.randint(max(n - 1, 1), (edges,), generator=generator) for n in (users, items))
    return BipartiteGraph.from_edges(rows, columns, users, items, device=device)


def tables(graph, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(dim)
    sizes = graph.num_users, graph.num_items
    return [torch.randn(n, dim, generator=generator).to(dtype).to(graph.device) for n in sizes]


def joined(function, graph, **options):
    """As a function of the two tables that returns one tensor."""
    return lambda *tables: torch.cat(function(graph, *tables, **options))


def check(graph, inputs, **options):
    check_against_reference(joined(propagate, graph, **options), joined(reference, graph, **options), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 8, 31, 33, 64, 129, 200, 300])
def test_propagate_matches_reference_at_every_width_on_the_device(device, dim, dtype):
    graph = small_graph(device)
    check(graph, tables(graph, dim, dtype))


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combine", COMBINES, ids=str)
def test_propagate_matches_reference_in_every_form_on_the_device(device, short_segments, combine, weighted, self_loops):
    graph = skewed_graph(device, weighted)
    assert graph.user_segments.size(0) > 3
    for options in ({}, {"keep_prob": 0.6, "seed": 2**62 + 3}, {"noise": 0.2, "seed": 12}):
        check(graph, tables(graph, 12), combine=combine, self_loops=self_loops, **options)
    options = {"combine": combine, "self_loops": self_loops, "keep_prob": 0.5, "noise": 0.1, "seed": 1}
    check(graph, tables(graph, 33), **options)
    # Of numbers above zero: else rounding decides the sign of the noise.
    check(graph, [t.abs() for t in tables(graph, 24, torch.bfloat16)], **options)


@pytest.mark.parametrize("users, items, edges", [(1, 1, 1), (1, 50, 30), (90, 1, 70), (7, 5, 0), (0, 4, 0), (5, 0, 0)])
def test_propagate_matches_reference_on_small_graphs_on_the_device(device, users, items, edges):
    graph = small_graph(device, users, items, edges)
    for options in ({}, {"combine": "concat"}, {"keep_prob": 0.5, "seed": 1}, {"noise": 0.1, "seed": 1}):
        check(graph, tables(graph, 5), **options)


@pytest.mark.parametrize("combine", ["mean", "last", "concat"])
@pytest.mark.parametrize("num_layers", [0, 1, 2, 5])
def test_propagate_matches_reference_at_every_depth_on_the_device(device, combine, num_layers):
    graph = small_graph(device)
    for noise in (0.0, 0.1):
        check(graph, tables(graph, 16), num_layers=num_layers, combine=combine, noise=noise, seed=3)


@pytest.mark.parametrize("dim", [4, 140])
def test_propagate_shares_long_rows_on_the_device(device, short_segments, dim):
    generator = torch.Generator().manual_seed(7)
    users = torch.cat([torch.arange(500), torch.randint(600, (90,), generator=generator)])
    items = torch.cat([torch.zeros(500, dtype=torch.int64), torch.randint(1, 5, (90,), generator=generator)])
    graph = BipartiteGraph.from_edges(users, items, 600, 6, device=device)
    assert graph.item_segments.size(0) > 500 // 32
    assert not graph.user_segments.numel()
    inputs = tables(graph, dim)
    check(graph, inputs, num_layers=2, keep_prob=0.7, seed=3)
    once, again = (propagate(graph, *inputs, keep_prob=0.7, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_propagate_sums_the_weights_of_long_rows_on_the_device(device):
    users = torch.arange(5000)
    weights = torch.rand(5000, generator=torch.Generator().manual_seed(0)) + 0.1
    graph = BipartiteGraph.from_edges(users, users % 2 * (users < 300), 5000, 2, weights=weights, device=device)
    inputs = tables(graph, 2)
    got, eager, truth = (
        torch.cat(f(graph, *t, 1, combine="last"))
        for f, t in ((propagate, inputs), (reference, inputs), (reference, [t.double() for t in inputs]))
    )
    assert_as_good_as_eager(got, eager, truth)


def test_segments_of_a_graph_cover_its_long_rows(device, short_segments):
    graph = skewed_graph(device)
    for indptr, segments in ((graph.user_indptr, graph.user_segments), (graph.item_indptr, graph.item_segments)):
        want = [
            (row, at, min(at + 32, end))
            for row, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True))
            for at in range(begin, end, 32)
            if end - begin > 32
        ]
        assert [tuple(s) for s in segments.tolist()] == want


def test_propagate_without_segments_on_the_device(device):
    graph = skewed_graph(device)
    inputs = tables(graph, 8)
    options = ((0.25,) * 4, False, False, 0.0, 1.0, False, None)
    got = propagate_kernel(*inputs, (*graph.adjacency()[:6], None, None), *options)
    for ours, eager in zip(got, reference(graph, *inputs), strict=True):
        torch.testing.assert_close(ours, eager)


def test_propagate_matches_reference_strided_on_the_device(device):
    graph = small_graph(device)
    wide = [torch.randn(2 * n, 64, generator=torch.Generator().manual_seed(n)).to(device) for n in (13, 9)]
    for dtype in (torch.float32, torch.bfloat16):
        check(graph, [t[::2, 1::2].to(dtype) for t in wide])
        check(graph, [t.to(dtype)[::2, :24] for t in wide])
        check(graph, [t.to(dtype)[::2, 1:25] for t in wide])  # not on a 16-byte boundary
    check(graph, [t.t()[:24, : n // 2].t() for t, n in zip(wide, (26, 18), strict=True)], combine="concat")


@pytest.mark.parametrize("combine", ["mean", "concat"])
@pytest.mark.parametrize("output", range(2))
@pytest.mark.parametrize("which", range(2))
def test_propagate_grad_of_each_input_and_output_alone_on_the_device(device, short_segments, which, output, combine):
    graph = skewed_graph(device, weighted=True)
    inputs = tables(graph, 12)
    inputs[which].requires_grad_()
    truth = [t.detach().double() for t in inputs]
    truth[which].requires_grad_()
    results = [f(graph, *t, combine=combine)[output] for f, t in ((propagate, inputs), (reference, truth))]
    grad_out = torch.randn(results[1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    for result in results:
        result.backward(grad_out.to(result.dtype))
    torch.testing.assert_close(inputs[which].grad.double(), truth[which].grad, rtol=1e-4, atol=1e-6)
    assert inputs[1 - which].grad is None


def test_propagate_skips_what_is_not_wanted_on_the_device(device, short_segments):
    graph = skewed_graph(device)
    user, item = tables(graph, 8)
    options = ((0.25,) * 4, False, False, 0.0, 1.0, False, None)
    both = propagate_kernel(user, item, graph.adjacency(), *options)
    for needs in ((True, False), (False, True)):
        some = propagate_kernel(user, item, graph.adjacency(), *options, needs)
        assert all(s is None if not n else torch.equal(s, b) for n, s, b in zip(needs, some, both, strict=True))
    from_item = propagate_kernel(None, item, graph.adjacency(), *options)
    zeros = propagate_kernel(torch.zeros_like(user), item, graph.adjacency(), *options)
    assert all(torch.equal(a, b) for a, b in zip(from_item, zeros, strict=True))


def test_propagate_writes_every_output_on_the_device(device):
    graph = skewed_graph(device, weighted=True)
    for dim in (8, 33):
        want = propagate(graph, *tables(graph, dim))
        for _ in range(3):
            junk = [torch.full((n, dim), float("nan"), device=device) for n in (graph.num_users, graph.num_items)]
            del junk
            got = propagate(graph, *tables(graph, dim))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_propagate_takes_a_seed_on_the_device(device):
    graph = skewed_graph(device)
    inputs = tables(graph, 8)
    seed = torch.full((), 2**62 + 3, dtype=torch.int64, device=device)
    for options in ({"keep_prob": 0.5}, {"noise": 0.1}):
        given, same, other = (propagate(graph, *inputs, seed=s, **options)[0] for s in (seed, 2**62 + 3, 4))
        assert torch.equal(given, same) and not torch.equal(given, other)
        torch.manual_seed(0)
        a, b = (propagate(graph, *inputs, **options)[0] for _ in range(2))
        torch.manual_seed(0)
        assert torch.equal(a, propagate(graph, *inputs, **options)[0]) and not torch.equal(a, b)


def test_propagate_registers_on_the_device(device, short_segments):
    for weighted in (False, True):
        graph = skewed_graph(device, weighted=weighted)
        inputs = [t.requires_grad_() for t in tables(graph, 4)]
        options = ((1.0,) * 3, False, True, 0.1, 0.5, True, torch.full((), 4, dtype=torch.int64, device=device))
        torch.library.opcheck(torch.ops.prorec_fast.propagate, (*inputs, *graph.adjacency(), *options))
