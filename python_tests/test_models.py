"""Models: one interface, seeded tables, the stated representations."""

from __future__ import annotations

import pytest
import torch
from training_data import tiny

from prorec_fast.models import MF, MODELS, LightGCN, build


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


def dense_adjacency(data, rows) -> torch.Tensor:
    dense = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    dense[rows.edges()] = 1
    scale = dense.sum(1, keepdim=True).clamp(min=1).rsqrt() * dense.sum(0, keepdim=True).clamp(min=1).rsqrt()
    return dense * scale


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_interface(data, name):
    model = build(name, data, dim=8, seed=3)
    user, item = model.representation()
    assert user.shape == (60, 8) and item.shape == (50, 8)
    (user.sum() + item.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again = build(data=data, **{**model.config()})
    assert again.config() == model.config()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for got, want in zip(model(), (user, item), strict=True):
        assert torch.equal(got, want)


def test_models_tables_are_xavier_uniform_and_seeded(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = MF(data, dim=16, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    bound = (6 / (60 + 16)) ** 0.5
    assert 0.9 * bound < model.user_embedding.abs().max() <= bound
    scaled = MF(data, dim=16, seed=1, init_scale=4.0)
    torch.testing.assert_close(scaled.user_embedding, 4 * model.user_embedding)
    assert not torch.equal(model.user_embedding, MF(data, dim=16, seed=2).user_embedding)
    first = model.item_embedding.detach().clone()
    with torch.no_grad():
        model.item_embedding.zero_()
    model.reset_parameters()
    assert torch.equal(model.item_embedding, first)


@pytest.mark.parametrize("combine", ["sum", "mean", "last"])
@pytest.mark.parametrize("layers", [1, 3])
def test_models_lightgcn_is_the_stated_sum(data, combine, layers):
    model = LightGCN(data, dim=8, num_layers=layers, combine=combine)
    adjacency = dense_adjacency(data, data.train)
    users, items = [model.user_embedding.double()], [model.item_embedding.double()]
    for _ in range(layers):
        u, i = users[-1], items[-1]
        users.append(adjacency @ i)
        items.append(adjacency.T @ u)
    pick = {"sum": lambda x: sum(x[1:]), "mean": lambda x: sum(x) / len(x), "last": lambda x: x[-1]}[combine]
    user, item = model.representation()
    torch.testing.assert_close(user.double(), pick(users), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(item.double(), pick(items), atol=1e-5, rtol=1e-4)


def test_models_lightgcn_takes_another_graph(data):
    model = LightGCN(data, dim=8, num_layers=1)
    user, _ = model.representation(data.test_graph)
    want = dense_adjacency(data, data.test) @ model.item_embedding.double()
    torch.testing.assert_close(user.double(), want, atol=1e-5, rtol=1e-4)


def test_models_rejects(data):
    with pytest.raises(ValueError, match="dim: want an integer of at least 1"):
        MF(data, dim=0)
    with pytest.raises(ValueError, match="init_scale"):
        MF(data, init_scale=0.0)
    with pytest.raises(ValueError, match="num_layers"):
        LightGCN(data, num_layers=0)
    with pytest.raises(ValueError, match="combine: want one of sum, mean, last"):
        LightGCN(data, combine="concat")
    with pytest.raises(ValueError, match="model: want one of lightgcn, mf, got 'bert'"):
        build("bert", data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_models_move_with_their_graph(data):
    model = LightGCN(data, dim=8)
    want = model.representation()[0]
    got = model.to("cuda").representation()[0]
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), want, atol=1e-5, rtol=1e-4)
