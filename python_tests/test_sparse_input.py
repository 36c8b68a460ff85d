"""SparseLinear against a dense matrix product in float64, and the values its input may have."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from prorec_fast import BipartiteGraph, _native
from prorec_fast.models.sparse_input import SparseLinear, _padded_entries, symmetrically_normalised, unit_rows

NUM_USERS, NUM_ITEMS, WIDTH = 40, 33, 7


@pytest.fixture(scope="module")
def graph():
    """Users 0 and 39 and item 32 without edges, one user with every other item, weights between 0.5 and 2."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(1, NUM_USERS - 1, (150,), generator=generator)
    items = torch.randint(NUM_ITEMS - 1, (150,), generator=generator)
    users = torch.cat([users, torch.full((NUM_ITEMS - 1,), 5)])
    items = torch.cat([items, torch.arange(NUM_ITEMS - 1)])
    weights = 0.5 + 1.5 * torch.rand(users.numel(), generator=generator)
    return BipartiteGraph.from_edges(users, items, NUM_USERS, NUM_ITEMS, weights=weights)


def binary(graph):
    return BipartiteGraph.from_edges(*graph.edges(), NUM_USERS, NUM_ITEMS)


def dense(graph, values=None):
    matrix = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.float64)
    if values is None:
        values = torch.ones(graph.num_edges) if graph.user_values is None else graph.user_values
    matrix[graph.edges()] = values.double()
    return matrix


def layer(dropout=0.0):
    made, generator = SparseLinear(NUM_ITEMS, WIDTH, dropout=dropout), torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.weight.normal_(generator=generator)
        made.bias.normal_(generator=generator)
    return made


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "binary"])
def test_sparse_input_values(graph, weighted):
    graph = graph if weighted else binary(graph)
    matrix = dense(graph)
    unit = matrix / matrix.norm(dim=1, keepdim=True).clamp_min(1e-9)
    torch.testing.assert_close(dense(graph, unit_rows(graph)), unit, rtol=1e-6, atol=0)
    scale = (matrix.sum(1, keepdim=True) * matrix.sum(0, keepdim=True)).rsqrt()
    want = torch.where(matrix > 0, matrix * scale, 0)
    torch.testing.assert_close(dense(graph, symmetrically_normalised(graph)), want, rtol=1e-6, atol=0)


@pytest.fixture(params=["exact", "padded"])
def collected(request, monkeypatch):
    """How entries are collected: on the CPU, and on a device."""
    monkeypatch.setattr(_native, "on_cuda", lambda t: request.param == "padded")
    return request.param


@pytest.mark.parametrize(
    "users",
    [[3, 5, 0, 39, 17], [5, 6], [6], [0], [0, 39], [], [3, 3, 2, 3], list(range(NUM_USERS))],
    ids=["some", "longest", "one", "empty row", "empty rows", "no users", "repeated", "all"],
)
def test_sparse_input_is_the_dense_product(graph, users, collected):
    made, values = layer(), unit_rows(graph)
    users = torch.tensor(users, dtype=torch.int64)
    out = made(graph, values, users)
    weight, bias = (p.detach().double().requires_grad_() for p in (made.weight, made.bias))
    want = linear(dense(graph, values)[users], weight.T, bias)
    assert out.shape == (users.numel(), WIDTH) and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    grad = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out.backward(grad.float())
    want.backward(grad)
    torch.testing.assert_close(made.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.bias.grad.double(), bias.grad, rtol=1e-5, atol=1e-5)


def test_sparse_input_of_users_who_come_again_too_often(graph, collected):
    """On a device there is place for so many different users' entries; more are not lost in silence."""
    made, users = layer(), torch.tensor([5, 5, 5, 2])
    out = made(graph, unit_rows(graph), users)
    out.sum().backward()
    want = linear(dense(graph, unit_rows(graph))[users], made.weight.double().T, made.bias.double())
    if collected == "padded":
        assert graph.most_edges(4) < 3 * (NUM_ITEMS - 1) and out[0].isnan().all()
    else:
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


def test_sparse_input_has_one_shape_on_a_device(graph):
    sizes = {
        tuple(t.shape for t in _padded_entries(graph, graph.user_values, torch.tensor(users)))
        for users in ([0, 39, 3], [5, 6, 7], [17, 2, 11])
    }
    most = graph.user_degree.topk(3).values.sum().item()
    assert sizes == {((most,), (most,), (6,))}
    assert [graph.most_edges(n) for n in (0, 1, 3, 99)] == [0, NUM_ITEMS - 1, most, graph.num_edges]


def test_sparse_input_of_a_graph_without_edges(collected):
    empty = torch.empty(0, dtype=torch.int64)
    graph, made = BipartiteGraph.from_edges(empty, empty, 3, NUM_ITEMS), layer()
    out = made(graph, unit_rows(graph), torch.arange(3))
    assert torch.equal(out, made.bias.expand(3, -1))
    out.sum().backward()
    assert not made.weight.grad.any()


def test_sparse_input_without_a_bias(graph, collected):
    made, plain, users = SparseLinear(NUM_ITEMS, WIDTH, bias=False), layer(), torch.arange(NUM_USERS)
    made.load_state_dict({"weight": plain.weight})
    out = made(graph, unit_rows(graph), users)
    assert torch.equal(out + plain.bias, plain(graph, unit_rows(graph), users))


def test_sparse_input_in_float64(graph):
    made, users = layer().double(), torch.arange(NUM_USERS)
    out = made(graph, unit_rows(graph), users)
    want = linear(dense(graph, unit_rows(graph)), made.weight.T, made.bias)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)


def test_sparse_input_dropout(graph, collected):
    """Entries are kept with their probability, each on its own, scaled to keep the mean; only while training."""
    made, values = SparseLinear(NUM_ITEMS, NUM_ITEMS, dropout=0.3), unit_rows(graph)
    with torch.no_grad():
        made.weight.copy_(torch.eye(NUM_ITEMS))  # so that the output is the row itself
        made.bias.zero_()
    users, matrix = torch.arange(NUM_USERS), dense(graph, values).float()
    torch.manual_seed(0)
    draws = torch.stack([made(graph, values, users) for _ in range(400)]).detach()
    present = matrix > 0
    assert not draws[:, ~present].any()
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (matrix / 0.7).expand_as(draws)[kept])
    share = kept[:, present].float().mean(0)  # 400 draws each: a standard deviation of 0.023
    assert abs(share.mean() - 0.7) < 0.01 and (share - 0.7).abs().max() < 0.1
    each = kept[:, present].float() - 0.7
    assert (each[:, :-1] * each[:, 1:]).mean().abs() < 0.003

    torch.manual_seed(0)
    assert torch.equal(made(graph, values, users), draws[0])
    assert not torch.equal(made(graph, values, users), draws[0])
    torch.testing.assert_close(made.eval()(graph, values, users), matrix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 0}, "num_items: want an integer of at least 1"),
        ({"width": 2.5}, "width: want an integer of at least 1"),
        ({"dropout": 1.0}, "dropout: want a number of at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout: want"),
    ],
)
def test_sparse_input_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(**{"num_items": 4, "width": 3, **arguments})
