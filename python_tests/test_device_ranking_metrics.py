from __future__ import annotations

import pytest
import torch
from test_ranking_metrics import case

import prorec_fast
from prorec_fast import BipartiteGraph
from prorec_fast.ops import ranking_metrics as op
from prorec_fast.reference.ranking_metrics import METRICS
from prorec_fast.reference.ranking_metrics import ranking_metrics as reference


def check(device, ranked, truth, items, ks, kernel=True):
    """Every metric at every cut-off, of the kernel in float64."""
    want = reference(ranked, truth.csr(), items, ks)
    rows = [t.to(device) for t in truth.csr()]
    if kernel:
        table = op.ranking_metrics_kernel(ranked.to(device), *rows, items, ks)
        torch.testing.assert_close(table.cpu(), want, rtol=1e-12, atol=1e-14)
    got = prorec_fast.ranking_metrics(ranked.to(device), tuple(rows), ks, num_items=items)
    for i, k in enumerate(ks):
        for j, name in enumerate(METRICS):
            assert got[f"{name}@{k}"].item() == pytest.approx(want[i, j].item(), rel=1e-6, abs=1e-9), (name, k)


@pytest.mark.parametrize("users, items, width", [(2, 30, 5), (129, 507, 20), (65, 90, 70), (1, 1, 1), (40, 33, 32)])
def test_ranking_metrics_matches_reference_on_the_device(device, users, items, width):
    ranked, truth = case(users, items, width)
    check(device, ranked, truth, items, (width, 1, width // 2 + 1, 1))


def test_ranking_metrics_with_few_blocks(device, monkeypatch):
    monkeypatch.setattr(op, "_BLOCKS", 3)
    ranked, truth = case(130, 60, 40)
    check(device, ranked, truth, 60, (32, 33, 31, 40))


def test_ranking_metrics_of_many_cut_offs(device):
    ranked, truth = case(20, 80, 40)
    check(device, ranked, truth, 80, tuple(range(1, 41)))
    assert prorec_fast.ranking_metrics(ranked.to(device), truth.to(device), ()) == {}


def test_ranking_metrics_of_long_lists(device):
    ranked, truth = case(3, 2100, 2100)
    check(device, ranked, truth, 2100, (2048, 1000))
    check(device, ranked, truth, 2100, (2049, 20), kernel=False)


def test_ranking_metrics_without_anyone_to_count_on_the_device(device):
    for users in (0, 3):
        nobody = BipartiteGraph.from_edges([], [], users, 8)
        check(device, torch.zeros(users, 10, dtype=torch.int64), nobody, 8, (10, 3))
    no_items = BipartiteGraph.from_csr(torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), 0)
    check(device, torch.full((2, 4), -1), no_items, 0, (4,))


def test_ranking_metrics_is_deterministic_on_the_device(device):
    ranked, truth = case(100, 50, 20)
    rows = [t.to(device) for t in truth.csr()]
    first, second = (op.ranking_metrics_kernel(ranked.to(device), *rows, 50, (5, 20)) for _ in range(2))
    assert torch.equal(first, second)


def test_ranking_metrics_traps_what_is_out_of_range(simulated_device, monkeypatch):
    monkeypatch.setattr(op._native, "index", lambda name, t, size, low: t)  # which a device cannot look at
    indptr, indices = torch.tensor([0, 1, 2]), torch.tensor([3, 7], dtype=torch.int32)
    ranked = torch.tensor([[3, 1], [0, 7]])
    assert op.ranking_metrics_cuda(ranked, indptr, indices, 8, (2,))[0, 0] == 1
    for bad in ((ranked + 1, indptr), (ranked - 2, indptr), (ranked, indptr + 1), (ranked, torch.tensor([0, 2, 1]))):
        with pytest.raises(RuntimeError, match="trap"):
            op.ranking_metrics_cuda(*bad, indices, 8, (2,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ranking_metrics_in_a_cuda_graph():
    ranked, truth = case(300, 200, 20)
    ranked, rows = ranked.to("cuda"), [t.to("cuda") for t in truth.csr()]
    op.ranking_metrics_kernel(ranked, *rows, 200, (5, 20))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.ranking_metrics_kernel(ranked, *rows, 200, (5, 20))
    ranked.copy_(ranked.flip(0))
    graph.replay()
    torch.testing.assert_close(got, reference(ranked, rows, 200, (5, 20)), rtol=1e-12, atol=1e-14)
