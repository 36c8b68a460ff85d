from __future__ import annotations

import pytest
import torch

from prorec_fast import BipartiteGraph, sample_negatives
from prorec_fast.reference.philox import seed_tensor
from prorec_fast.reference.sample_negatives import edge_weights, item_weights
from prorec_fast.reference.sample_negatives import sample_negatives as reference


def random_graph(users=50, items=40, edges=500):
    generator = torch.Generator().manual_seed(users)
    return BipartiteGraph.from_edges(
        torch.randint(users - 2, (edges,), generator=generator),
        (torch.rand(edges, generator=generator) ** 2 * (items - 1)).long(),  # skewed; the last item has no edge
        users,
        items,
    )


def draws(graph, count, seed=0):
    return torch.randint(graph.num_users, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.every_level
@pytest.mark.parametrize("popularity", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_sample_negatives_matches_reference(num, popularity):
    for graph in (random_graph(), random_graph(9, 700, 900), random_graph(2000, 300, 20000)):
        for count, seed in ((0, 1), (1, 2), (7, 2**62 + 5), (3001, 4)):
            users = draws(graph, count)
            got = sample_negatives(graph, users, num, seed=seed, popularity=popularity)
            assert got.shape == (count, num) and got.dtype == torch.int64
            assert torch.equal(got, reference(graph, users, num, seed=seed, popularity=popularity))


@pytest.mark.parametrize("popularity", [0.0, 0.75])
def test_sample_negatives_are_never_positives(popularity):
    graph = random_graph(60, 30, 900)
    users = draws(graph, 20000)
    negatives = sample_negatives(graph, users, 3, seed=1, popularity=popularity)
    assert negatives.min() >= 0 and negatives.max() < graph.num_items
    assert not graph.to_sparse_csr().to_dense()[users[:, None], negatives].any()


@pytest.mark.parametrize("popularity", [0.0, 0.75])
def test_sample_negatives_have_the_distribution_they_say(popularity):
    graph = random_graph()
    for user in (0, 7, 49):  # 49 has no edge
        taken = graph.to_sparse_csr().to_dense()[user].bool()
        weights = graph.item_degree.double() ** popularity if popularity else torch.ones(40, dtype=torch.float64)
        weights[taken] = 0
        count = 40000
        negatives = sample_negatives(graph, torch.full((count // 4,), user), 4, seed=3, popularity=popularity)
        seen = torch.bincount(negatives.flatten(), minlength=40).double()
        expected = count * weights / weights.sum()
        assert not seen[expected == 0].any()
        possible = expected > 0
        freedom = int(possible.sum()) - 1
        chi_square = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # mean + 4 standard deviations


def test_sample_negatives_draws_are_independent():
    graph = BipartiteGraph.from_edges([0], [0], 1, 9)
    negatives = sample_negatives(graph, torch.zeros(20000, dtype=torch.int64), 3, seed=8) - 1
    for a, b in (
        (negatives[:, 0], negatives[:, 1]),
        (negatives[:, 1], negatives[:, 2]),
        (negatives[1:, 0], negatives[:-1, 0]),
    ):
        table = torch.bincount(8 * a + b, minlength=64).double()
        expected = table.sum() / 64
        assert ((table - expected) ** 2 / expected).sum() < 63 + 4 * 126**0.5


def test_sample_negatives_leave_one_item():
    """A user with all items but one always gets that one, wherever it is."""
    for missing in (0, 1, 5, 8):
        items = torch.tensor([i for i in range(9) if i != missing])
        graph = BipartiteGraph.from_edges(
            torch.cat([torch.zeros(8, dtype=torch.int64), torch.ones(9, dtype=torch.int64)]),
            torch.cat([items, torch.arange(9)]),
            2,
            9,
        )
        for popularity in (0.0, 1.0):
            got = sample_negatives(graph, torch.zeros(50, dtype=torch.int64), 2, popularity=popularity)
            assert (got == missing).all()
            with pytest.raises(ValueError, match=r"users: no negative to draw, every item .* positive of user 1"):
                sample_negatives(graph, torch.tensor([0, 1, 0, 1]), popularity=popularity)
            with pytest.raises(ValueError, match="positive of user 1"):
                reference(graph, torch.tensor([0, 1, 0, 1]), popularity=popularity)


def test_sample_negatives_name_users_without_popular_items():
    graph = BipartiteGraph.from_edges([0, 0, 1], [0, 1, 0], 3, 5)  # items 2 to 4 have no edge
    assert sample_negatives(graph, torch.tensor([0])).item() >= 2
    assert sample_negatives(graph, torch.tensor([1]), popularity=0.5).item() == 1
    with pytest.raises(ValueError, match="every item of positive weight is a positive of user 0"):
        sample_negatives(graph, torch.tensor([0, 1]), popularity=0.5)
    for empty in (BipartiteGraph.from_edges([], [], 3, 0), BipartiteGraph.from_edges([], [], 3, 0)):
        for popularity in (0.0, 1.0):
            with pytest.raises(ValueError, match="of user 0, 2"):
                sample_negatives(empty, torch.tensor([2, 0]), popularity=popularity)


def test_sample_negatives_seeds():
    graph = random_graph()
    users = draws(graph, 500)
    a = sample_negatives(graph, users, 2, seed=5)
    assert torch.equal(a, sample_negatives(graph, users, 2, seed=5))
    assert not torch.equal(a, sample_negatives(graph, users, 2, seed=6))
    assert torch.equal(a[:100], sample_negatives(graph, users[:100], 2, seed=5))  # draw b depends on b alone
    assert torch.equal(a[:, :1], sample_negatives(graph, users, 1, seed=5))
    torch.manual_seed(0)
    b, c = sample_negatives(graph, users), sample_negatives(graph, users)
    torch.manual_seed(0)
    assert torch.equal(b, sample_negatives(graph, users)) and not torch.equal(b, c)
    threads = torch.get_num_threads()
    try:
        many = draws(graph, 5000)
        torch.set_num_threads(1)
        serial = sample_negatives(graph, many, seed=5)
        torch.set_num_threads(2)
        assert torch.equal(serial, sample_negatives(graph, many, seed=5))
    finally:
        torch.set_num_threads(threads)


def test_item_weights_are_proportional_and_fit():
    graph = random_graph(500, 300, 9000)
    for popularity in (0.25, 1.0, 2.0, 400.0):
        weights = item_weights(graph, popularity)
        assert weights.sum() < 2**52 and ((weights > 0) == (graph.item_degree > 0)).all()
    degree = graph.item_degree.double()
    weights = item_weights(graph, 1.0).double()
    torch.testing.assert_close(weights / weights.sum(), degree / degree.sum())


def test_sample_negatives_compiles_and_registers():
    graph = random_graph()
    users, seed = draws(graph, 60), seed_tensor(3, torch.device("cpu"))
    weights = item_weights(graph, 0.5)
    for popular in ((None, None), (weights.cumsum(0), edge_weights(graph, weights)[1])):
        arguments = (*graph.csr(), graph.num_items, users, 2, seed, *popular)
        torch.library.opcheck(torch.ops.prorec_fast.sample_negatives, arguments)
    compiled = torch.compile(sample_negatives, fullgraph=True, backend="aot_eager")
    for options in ({}, {"popularity": 0.5}):
        want = sample_negatives(graph, users, 2, seed=3, **options)
        assert torch.equal(compiled(graph, users, 2, seed=3, **options), want)


@pytest.mark.parametrize(
    "users, options, error, message",
    [
        ([0, 50], {}, IndexError, r"users: want entries in \[0, 50\)"),
        ([-1], {}, IndexError, r"users: want entries in \[0, 50\)"),
        ([0.5], {}, TypeError, "users: want a 1-d int64 tensor"),
        ([0], {"num": 0}, ValueError, "num: want an int"),
        ([0], {"popularity": -1.0}, ValueError, "popularity: want"),
        ([0], {"seed": -1}, ValueError, "seed: want"),
    ],
)
def test_sample_negatives_rejects(users, options, error, message):
    with pytest.raises(error, match=message):
        sample_negatives(random_graph(), torch.tensor(users), **options)
    with pytest.raises(TypeError, match="graph: want a BipartiteGraph"):
        sample_negatives(None, torch.tensor([0]))
