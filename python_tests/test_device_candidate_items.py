from __future__ import annotations

import pytest
import torch
from test_retrieval import profiles, random_graph

from prorec_fast import BipartiteGraph, _native, retrieval
from prorec_fast.ops.candidate_items import candidate_items_kernel
from prorec_fast.reference.candidate_items import candidate_items as reference


def assert_as_reference(graph, similar):
    got = retrieval.candidate_items(graph, similar)
    for ours, want in zip(got, reference(*graph.csr(), graph.num_items, similar), strict=True):
        assert ours.dtype == want.dtype and torch.equal(ours, want)
    return got


@pytest.mark.parametrize("users, items, k", [(1, 5, 3), (1, 1, 1), (5, 33, 1), (40, 507, 10), (12, 4097, 19)])
def test_candidate_items_matches_reference_on_the_device(device, users, items, k):
    graph = random_graph(users, items).to(device)
    similar = torch.randint(-1, users, (users, k), generator=torch.Generator().manual_seed(users)).to(device)
    got = assert_as_reference(graph, similar)
    for form in (graph.to_sparse_csr(), graph.csr()):
        assert all(torch.equal(a, b) for a, b in zip(retrieval.candidate_items(form, similar), got, strict=True))
    assert_as_reference(graph, similar.T.contiguous().T)


def test_candidate_items_far_apart_on_the_device(device):
    """Items at the borders of the tiles that the kernel counts in, and tiles that nobody has an item of."""
    items = torch.tensor([0, 1, 4094, 4095, 4096, 4097, 8191, 8192, 50_000, 54_095, 54_096, 199_999])
    users = torch.arange(12)
    generator = torch.Generator().manual_seed(0)
    has = torch.rand(12, 12, generator=generator) < 0.6
    has[3], has[4] = True, False
    user, item = has.nonzero(as_tuple=True)
    graph = BipartiteGraph.from_edges(user, items[item], 12, 200_000).to(device)
    assert_as_reference(graph, torch.stack([users, (users + 1) % 12, users.new_full((12,), 3)], 1).to(device))
    others = (users + 5) % 12
    assert_as_reference(graph, torch.stack([others, others, users.new_full((12,), -1)], 1).to(device))
    graph = BipartiteGraph.from_edges([0], [199_999], 2, 200_000).to(device)
    assert_as_reference(graph, torch.tensor([[1], [0]], device=device))


def test_candidate_items_of_nothing_on_the_device(device):
    for users, items, k in ((0, 0, 0), (3, 0, 2), (3, 9, 0), (3, 9, 2)):
        graph = BipartiteGraph.from_edges([], [], users, items).to(device)
        similar = torch.zeros(users, k, dtype=torch.int64, device=device)
        indptr, indices, counts = retrieval.candidate_items(graph, similar)
        assert not indptr.any() and indptr.shape == (users + 1,) and indices.shape == counts.shape == (0,)


def test_candidate_items_registers_on_the_device(device):
    graph = random_graph(20, 50).to(device)
    similar = torch.randint(-1, 20, (20, 3), generator=torch.Generator().manual_seed(1)).to(device)
    torch.library.opcheck(torch.ops.prorec_fast.candidate_items, (*graph.csr(), 50, similar))


def test_candidate_items_of_what_is_no_user_or_no_graph_traps(simulated_device, monkeypatch):
    monkeypatch.setattr(_native, "index", lambda name, t, size, low=0: t)
    graph = random_graph(20, 50)
    similar = torch.zeros(20, 2, dtype=torch.int64)
    for wrong in (-2, 20):
        similar[7, 1] = wrong
        with pytest.raises(RuntimeError, match="candidate_items: trap"):
            candidate_items_kernel(*graph.csr(), 50, similar)
    indptr, indices = torch.tensor([0, 0, 5000]), torch.arange(5000, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="candidate_items: trap"):
        candidate_items_kernel(indptr, indices, 4999, torch.tensor([[1], [-1]]))
    with pytest.raises(RuntimeError, match="candidate_items: trap"):
        candidate_items_kernel(indptr, indices - 1, 5000, torch.tensor([[1], [-1]]))


def test_enrich_on_the_device(device):
    graph = random_graph(60, 90, 0.1)
    arguments = profiles(60, 24), profiles(90, 24, 1)
    want = retrieval.enrich(graph, *arguments, num_similar=4)
    got = retrieval.enrich(graph.to(device), *(t.to(device) for t in arguments), num_similar=4)
    assert got.num_edges == want.num_edges > graph.num_edges
    assert torch.equal(got.user_indptr.cpu(), want.user_indptr)
    # Cosines that differ by their rounding may change places, so not every edge has to be the same.
    edges = [set(zip(*(t.tolist() for t in g.edges()), strict=True)) for g in (got, want)]
    assert len(edges[0] & edges[1]) >= 0.99 * want.num_edges
