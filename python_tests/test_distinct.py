from __future__ import annotations

import pytest
import torch

from prorec_fast.ops.distinct import distinct


@pytest.mark.parametrize("batch, size", [(1, 1), (2, 1), (7, 3), (129, 50), (4096, 11_000), (500, 2**62)])
def test_distinct_matches_unique(batch, size):
    index = torch.randint(size, (batch,), generator=torch.Generator().manual_seed(batch))
    found = distinct(index)
    values, inverse, times = torch.unique(index, return_inverse=True, return_counts=True)
    count = len(values)
    assert found.count.shape == () and found.count.dtype == torch.int64 and int(found.count) == count
    assert torch.equal(found.values[:count], values)
    assert (found.values[count:] == values[-1]).all()
    assert torch.equal(found.inverse, inverse)
    assert found.multiplicity.dtype == torch.float32
    assert torch.equal(found.multiplicity[:count], times.float()) and not found.multiplicity[count:].any()
    assert torch.equal(found.order, torch.argsort(index, stable=True))
    assert torch.equal(found.starts[: count + 1], torch.cat([times.new_zeros(1), times.cumsum(0)]))
    assert (found.starts[count:] == batch).all()
    for tensor in (found.values, found.inverse, found.multiplicity, found.order):
        assert tensor.shape == (batch,)


def test_distinct_of_nothing():
    found = distinct(torch.empty(0, dtype=torch.int64))
    assert int(found.count) == 0 and found.starts.tolist() == [0]
    assert [t.shape for t in found[2:5]] == [(0,)] * 3 and found.values.shape == (0,)


def test_distinct_of_a_strided_index():
    index = torch.randint(9, (40, 3), generator=torch.Generator().manual_seed(0))[:, 1]
    for got, want in zip(distinct(index), distinct(index.clone()), strict=True):
        assert torch.equal(got, want)


def test_distinct_traces_in_one_graph_with_shapes_of_its_own():
    index = torch.tensor([5, 1, 5, 0, 1, 5])
    compiled = torch.compile(lambda i: tuple(distinct(i)), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(index), distinct(index), strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_distinct_in_a_cuda_graph():
    index = torch.randint(50, (129,), device="cuda")
    distinct(index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = distinct(index)
    for _ in range(2):
        index.random_(70)
        graph.replay()
        for got, want in zip(captured, distinct(index.cpu()), strict=True):
            assert torch.equal(got.cpu(), want)
