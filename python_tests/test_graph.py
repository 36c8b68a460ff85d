from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from prorec_fast import BipartiteGraph

USERS, ITEMS = [2, 0, 2, 0, 2, 4], [1, 3, 0, 3, 1, 2]  # (0, 3) and (2, 1) stand there twice
EDGES = [(0, 3), (2, 0), (2, 1), (4, 2)]


def pairs(graph):
    users, items = graph.edges()
    assert users.dtype == items.dtype == torch.int64
    return list(zip(users.tolist(), items.tolist(), strict=True))


def check_invariants(graph):
    indptr, indices = graph.csr()
    assert indptr.dtype == graph.item_indptr.dtype == torch.int64
    assert indices.dtype == graph.item_indices.dtype == torch.int32
    assert indptr.shape == (graph.num_users + 1,) and graph.item_indptr.shape == (graph.num_items + 1,)
    assert indices.shape == graph.item_indices.shape == (graph.num_edges,)
    assert pairs(graph) == sorted(set(pairs(graph)))
    by_item = [
        (int(u), i) for i, n in enumerate(graph.item_degree) for u in graph.item_indices[graph.item_indptr[i] :][:n]
    ]
    assert by_item == sorted(pairs(graph), key=lambda edge: (edge[1], edge[0]))
    users, items = graph.edges()
    assert torch.equal(graph.user_degree, torch.bincount(users, minlength=graph.num_users))
    assert torch.equal(graph.item_degree, torch.bincount(items, minlength=graph.num_items))


def test_graph_from_edges_counts_duplicates_once():
    graph = BipartiteGraph.from_edges(torch.tensor(USERS), torch.tensor(ITEMS), 5, 4)
    assert (graph.num_users, graph.num_items, graph.num_edges) == (5, 4, 4)
    assert pairs(graph) == EDGES and graph.user_values is None and graph.item_values is None
    assert graph.user_degree.tolist() == [1, 0, 2, 0, 1] and graph.item_degree.tolist() == [1, 1, 1, 1]
    assert repr(graph) == "BipartiteGraph(num_users=5, num_items=4, num_edges=4, device='cpu')"
    check_invariants(graph)


def test_graph_from_edges_sums_weights():
    graph = BipartiteGraph.from_edges(USERS, ITEMS, 5, 4, weights=[1.0, 2, 4, 8, 16, 32])
    assert pairs(graph) == EDGES
    assert graph.user_values.tolist() == [10, 4, 17, 32] and graph.user_values.dtype == torch.float32
    assert graph.item_values.tolist() == [4, 17, 32, 10]
    assert "weighted" in repr(graph)
    check_invariants(graph)


def test_graph_of_random_edges_round_trips():
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randint(70, (900,), generator=generator), torch.randint(50, (900,), generator=generator)
    graph = BipartiteGraph.from_edges(users.int(), items.to(torch.int16), 71, 52)
    check_invariants(graph)
    dense = torch.zeros(71, 52)
    dense[users, items] = 1
    assert torch.equal(graph.to_sparse_csr().to_dense(), dense)
    for again in (
        BipartiteGraph.from_edges(*graph.edges(), 71, 52),
        BipartiteGraph.from_csr(*graph.csr(), 52),
        BipartiteGraph.from_csr(*(t.numpy() for t in graph.csr()), 52),
        copy.deepcopy(graph),
        pickle.loads(pickle.dumps(graph)),
    ):
        for a, b in zip(graph.adjacency(), again.adjacency(), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_graph_from_csr_sorts_rows_and_takes_weights():
    graph = BipartiteGraph.from_csr([0, 3, 3, 5], [2, 0, 2, 1, 0], 3, values=[1.0, 2.0, 4.0, 8.0, 16.0])
    assert pairs(graph) == [(0, 0), (0, 2), (2, 0), (2, 1)]
    assert graph.user_values.tolist() == [2, 5, 16, 8]


def test_graph_from_scipy():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy makes the matrices that are read here")
    binary = sparse.coo_matrix((np.ones(4), np.array(EDGES).T), shape=(5, 4))
    for matrix in (binary, binary.tocsc(), binary.tocsr().astype(bool), sparse.csr_array(binary)):
        graph = BipartiteGraph.from_scipy(matrix)
        assert pairs(graph) == EDGES and graph.user_values is None and graph.num_items == 4
    weighted = sparse.csr_matrix(np.array([[0, 2.5], [1, 0], [0, 0]]))
    assert BipartiteGraph.from_scipy(weighted).user_values.tolist() == [2.5, 1]
    weighted.data[0] = 0  # a stored zero is no edge
    graph = BipartiteGraph.from_scipy(weighted)
    assert pairs(graph) == [(1, 0)] and graph.user_values is None
    repeated = sparse.csr_matrix((np.ones(3), [1, 1, 0], [0, 2, 3]), shape=(2, 2))
    graph = BipartiteGraph.from_scipy(repeated)
    assert pairs(graph) == [(0, 1), (1, 0)] and graph.user_values.tolist() == [2, 1] and repeated.nnz == 3
    with pytest.raises(TypeError, match="matrix: want a 2-d"):
        BipartiteGraph.from_scipy(np.eye(3))


@pytest.mark.parametrize("num_users, num_items", [(0, 0), (3, 0), (0, 3), (3, 4)])
def test_graph_without_edges(num_users, num_items):
    graph = BipartiteGraph.from_edges([], [], num_users, num_items)
    assert graph.num_edges == 0 and pairs(graph) == []
    assert graph.to_sparse_csr().shape == (num_users, num_items)
    check_invariants(graph)


def test_graph_to_device():
    graph = BipartiteGraph.from_edges(USERS, ITEMS, 5, 4, weights=torch.ones(6))
    assert graph.to("cpu") is graph
    with pytest.raises(TypeError, match=r"^device: want a device or its name, got torch\.float16"):
        graph.to(torch.float16)
    moved = graph.to("meta")
    assert moved.device.type == "meta" and moved.num_edges == 4 and moved.user_values is not None


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (([0, 1], [0, 4], 2, 4), {}, IndexError, r"items: want entries in \[0, 4\)"),
        (([-1, 1], [0, 1], 2, 4), {}, IndexError, r"users: want entries in \[0, 2\)"),
        (([0.5], [0], 2, 4), {}, TypeError, "users: want a 1-d tensor of integers"),
        (([[0]], [[0]], 2, 4), {}, TypeError, "users: want a 1-d tensor of integers"),
        (([0, 1], [0], 2, 4), {}, ValueError, "items: want as many as users"),
        (([0], [0], -1, 4), {}, ValueError, "num_users: want an int"),
        (([0], [0], 2, 2**31), {}, ValueError, "num_items: want an int"),
        (([0], [0], 2, 4), {"weights": [1.0, 2.0]}, ValueError, "weights: want as many as users"),
        (([0], [0], 2, 4), {"weights": [0.0]}, ValueError, "weights: want finite numbers above 0"),
        (([0], [0], 2, 4), {"weights": [float("nan")]}, ValueError, "weights: want finite numbers above 0"),
    ],
)
def test_graph_rejects(arguments, options, error, message):
    with pytest.raises(error, match=message):
        BipartiteGraph.from_edges(*arguments, **options)


@pytest.mark.parametrize("indptr", [[0, 2], [1, 3], [0, 2, 1, 3], []])
def test_graph_rejects_offsets(indptr):
    with pytest.raises(ValueError, match="indptr: want offsets from 0 to 3"):
        BipartiteGraph.from_csr(indptr, [0, 1, 2], 3)


def test_the_constructor_is_not_for_edges():
    users, items = torch.tensor([0, 1]), torch.tensor([1, 0])
    with pytest.raises(TypeError, match="item_indptr: want a tensor, got int 2; of edges from_edges makes a graph"):
        BipartiteGraph(users, items, 2, 2)
