from __future__ import annotations

import pytest
import torch
from test_sample_negatives import draws, random_graph

from prorec_fast import BipartiteGraph, _native, sample_negatives
from prorec_fast.reference.philox import NEGATIVE_STREAM, philox, seed_key
from prorec_fast.reference.sample_negatives import edge_weights, item_weights
from prorec_fast.reference.sample_negatives import sample_negatives as reference


@pytest.mark.parametrize("popularity", [0.0, 0.75])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_sample_negatives_matches_reference_on_the_device(device, num, popularity):
    for graph in (random_graph().to(device), random_graph(9, 700, 900).to(device)):
        for count, seed in ((0, 1), (1, 2), (7, 2**62 + 5), (301, 4)):
            users = draws(graph, count).to(device)
            got = sample_negatives(graph, users, num, seed=seed, popularity=popularity)
            assert got.shape == (count, num) and got.dtype == torch.int64
            assert torch.equal(got, reference(graph, users, num, seed=seed, popularity=popularity))


def test_sample_negatives_of_small_weights_on_the_device(device, monkeypatch):
    """Draws that fall on the borders between items, and items of no weight."""

    def few(graph, popularity):
        return torch.arange(graph.num_items, device=graph.device) * 7 % 3

    for module in ("ops", "reference"):
        monkeypatch.setattr(f"prorec_fast.{module}.sample_negatives.item_weights", few)
    graph = random_graph(20, 40, 100).to(device)
    users = draws(graph, 300).to(device)
    got = sample_negatives(graph, users, 2, seed=1, popularity=1.0)
    assert torch.equal(got, reference(graph, users, 2, seed=1, popularity=1.0))


def test_sample_negatives_of_strided_users_on_the_device(device):
    graph = random_graph().to(device)
    users = draws(graph, 120).to(device)
    assert torch.equal(sample_negatives(graph, users[::3], seed=1), reference(graph, users[::3], seed=1))


def test_philox_matches_reference_on_the_device(device):
    """With one user who has no item, and more items than a draw has bits, a draw is its random words themselves."""
    bits = 52
    arrays = torch.zeros(2, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int32, device=device)
    users, seed = torch.zeros(50, dtype=torch.int64, device=device), torch.tensor(2**63 - 11, device=device)
    out = torch.zeros(50, 6, dtype=torch.int64, device=device)
    rows = _native.csr(*arrays, None, 2**bits)
    _native.cuda_call(users, "sample_negatives", rows, users.data_ptr(), 50, 6, 0, 0, seed.data_ptr(), out.data_ptr())
    b, pair = torch.arange(50, device=device)[:, None], torch.arange(3, device=device)
    words = philox(seed_key(seed), (b, 0, pair, NEGATIVE_STREAM))
    numbers = [high << (bits - 32) | low >> (64 - bits) for high, low in (words[:2], words[2:])]
    assert torch.equal(out, torch.stack(numbers, 2).flatten(1))


def test_sample_negatives_name_users_without_any_on_the_device(device):
    graph = BipartiteGraph.from_edges([0, 0, 1], [0, 1, 0], 3, 2).to(device)
    for popularity in (0.0, 0.5):
        some = torch.tensor([1, 2, 1], device=device)
        got = sample_negatives(graph, some, seed=3, popularity=popularity)
        assert torch.equal(got, reference(graph, some, seed=3, popularity=popularity))
        for _ in range(2):
            with pytest.raises(ValueError, match=r"users: no negative to draw, every item .* positive of user 0"):
                sample_negatives(graph, torch.tensor([1, 0, 0, 2], device=device), popularity=popularity)
    assert sample_negatives(random_graph(3, 0, 0).to(device), some[:0]).shape == (0, 1)


def test_sample_negatives_look_once_at_a_graph_on_the_device(device, monkeypatch):
    graph = random_graph().to(device)
    users = draws(graph, 9).to(device)
    want = [sample_negatives(graph, users, seed=1, popularity=popularity) for popularity in (0.0, 0.5)]
    monkeypatch.setattr("prorec_fast.ops.sample_negatives.item_weights", None)
    monkeypatch.setattr("prorec_fast.ops.sample_negatives.raise_if_full", None)
    for popularity, first in zip((0, 0.5), want, strict=True):
        assert torch.equal(sample_negatives(graph, users, seed=1, popularity=popularity), first)


def test_sample_negatives_draw_a_seed_on_the_device(device):
    graph = random_graph().to(device)
    users = draws(graph, 200).to(device)
    torch.manual_seed(0)
    a, b = sample_negatives(graph, users), sample_negatives(graph, users)
    torch.manual_seed(0)
    assert torch.equal(a, sample_negatives(graph, users)) and not torch.equal(a, b)


def test_sample_negatives_compiles_and_registers_on_the_device(device):
    graph = random_graph().to(device)
    users, seed = draws(graph, 20).to(device), torch.tensor(3, device=device)
    weights = item_weights(graph, 0.5)
    for popular in ((None, None), (weights.cumsum(0), edge_weights(graph, weights)[1])):
        arguments = (*graph.csr(), graph.num_items, users, 2, seed, *popular, False)
        torch.library.opcheck(torch.ops.prorec_fast.sample_negatives, arguments)
    compiled = torch.compile(sample_negatives, fullgraph=True, backend="aot_eager")
    for options in ({}, {"popularity": 0.5}):
        want = reference(graph, users, 2, seed=3, **options)
        for _ in range(2):  # what is kept of the graph is not there, and is
            assert torch.equal(compiled(graph, users, 2, seed=3, **options), want)
            assert torch.equal(sample_negatives(graph, users, 2, seed=3, **options), want)


def test_sample_negatives_of_no_user_of_the_graph_traps(simulated_device):
    graph = random_graph(3, 4, 5)
    for wrong in (-1, 3):
        users, seed, out = (torch.tensor([value]) for value in (wrong, 0, 0))
        rows = _native.csr(*graph.csr(), None, graph.num_items)
        addresses = users.data_ptr(), 1, 1, 0, 0, seed.data_ptr(), out.data_ptr()
        with pytest.raises(RuntimeError, match="sample_negatives: trap"):
            _native.cuda_call(users, "sample_negatives", rows, *addresses)
