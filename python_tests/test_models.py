"""Models: one interface, seeded tables, the stated representations."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize
from training_data import tiny

import prorec_fast.graph
from prorec_fast.frameworks import Plain, ProMax
from prorec_fast.models import LRGCCF, MF, MODELS, Discriminative, LightGCN, SimGCL, build
from prorec_fast.train import evaluate, fit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


def dense_adjacency(data, rows) -> torch.Tensor:
    dense = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    dense[rows.edges()] = 1
    scale = dense.sum(1, keepdim=True).clamp(min=1).rsqrt() * dense.sum(0, keepdim=True).clamp(min=1).rsqrt()
    return dense * scale


def width(model) -> int:
    """Of its representations."""
    if isinstance(model, Discriminative):
        return model.representation_dim
    return model.item_weights().shape[1] + 1  # the last one is the bias's


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_interface(data, name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = build(name, data, dim=8, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    user, item = model.eval().representation()
    assert user.shape == (60, width(model)) and item.shape == (50, width(model))
    again = build(data=data, **{**model.config()})
    assert again.config() == model.config() and type(again) is MODELS[name]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = build(name, data, dim=8, seed=4)
    assert not any(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True) if a.dim() > 1
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if issubclass(MODELS[name], Discriminative)])
def test_models_discriminative_interface(data, name):
    model = build(name, data, dim=8)
    user, item = model.representation()
    (user.sum() + item.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
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


def test_models_gccf_is_every_layer_with_self_loops(data):
    model = LRGCCF(data, dim=8, num_layers=2)
    assert model.representation_dim == 24 and LRGCCF(data).num_layers == 3
    dense = torch.eye(data.num_users + data.num_items, dtype=torch.float64)
    users, items = data.train.edges()
    dense[users, data.num_users + items] = dense[data.num_users + items, users] = 1
    scale = dense.sum(1).rsqrt()
    adjacency = scale[:, None] * dense * scale
    layers = [torch.cat([model.user_embedding, model.item_embedding]).double()]
    for _ in range(2):
        layers.append(adjacency @ layers[-1])
    want = torch.cat(layers, dim=1)
    got = torch.cat(model.representation()).double()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def plain_nce(a, b, tau):
    scores = normalize(a, dim=1) @ normalize(b, dim=1).T / tau
    return -scores.log_softmax(1).diagonal().mean()


def test_models_simgcl_contrasts_two_noisy_views(data, monkeypatch):
    model = SimGCL(data, dim=8, num_layers=2, noise=0.3, temperature=0.5, contrast_weight=0.7)
    plain = LightGCN(data, dim=8, num_layers=2)
    for got, want in zip(model.representation(), plain.representation(), strict=True):
        assert torch.equal(got, want)  # items are ranked without noise
    users, items = data.train.edges()
    users, items, negatives = users[:90], items[:90], items[90:180]
    assert users.unique().numel() < 90 and items.unique().numel() < 90

    seeds, propagate = iter((11, 12)), prorec_fast.graph.propagate
    views = [
        propagate(data.train_graph, model.user_embedding, model.item_embedding, 2, combine="sum", noise=0.3, seed=seed)
        for seed in (11, 12)
    ]

    def seeded(graph, user, item, num_layers, *, noise=0.0, **options):
        return propagate(graph, user, item, num_layers, noise=noise, seed=next(seeds) if noise else None, **options)

    monkeypatch.setattr(prorec_fast.graph, "propagate", seeded)
    terms = model.loss_terms(users, items, negatives)
    assert set(terms) == {"bpr", "contrast"}
    (user_a, item_a), (user_b, item_b) = ([x.double() for x in view] for view in views)
    rows, columns = users.unique(), items.unique()
    want = 0.7 * (plain_nce(user_a[rows], user_b[rows], 0.5) + plain_nce(item_a[columns], item_b[columns], 0.5))
    torch.testing.assert_close(terms["contrast"].double(), want, rtol=1e-5, atol=1e-6)
    tables = list(model.parameters())
    for got, expected in zip(
        torch.autograd.grad(terms["contrast"], tables), torch.autograd.grad(want, tables), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_models_simgcl_draws_new_noise_under_torch_seed(data):
    model, (users, items) = SimGCL(data, dim=8), data.train.edges()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(model.auxiliary_terms(users, items)["contrast"].item())
    assert values[0] == values[1] != values[2]
    assert model.auxiliary_terms(users, items)["contrast"].item() != values[2]
    assert SimGCL(data, contrast_weight=0.0).auxiliary_terms(users, items) == {}


@pytest.mark.parametrize("make", [LRGCCF, partial(SimGCL, contrast_weight=0.05)], ids=["gccf", "simgcl"])
@pytest.mark.parametrize("framework", [Plain(), ProMax()], ids=["none", "promax"])
def test_models_learn(data, make, framework):
    model = make(data, dim=8)
    before = evaluate(model, data)
    run = fit(model, data, framework, epochs=25, batch_size=128, lr=0.02, eval_every=5)
    losses = [record["loss"] for record in run.history]
    assert losses[-1] < 0.95 * losses[0] and run.test["recall@20"] > 1.05 * before["recall@20"]
    terms = {"bpr", "reg"} | ({"sdr", "s2dr"} if framework.name == "promax" else set())
    assert set(run.history[0]["terms"]) == terms | ({"contrast"} if model.name == "simgcl" else set())


def test_models_rejects(data):
    with pytest.raises(ValueError, match="dim: want an integer of at least 1"):
        MF(data, dim=0)
    with pytest.raises(ValueError, match="init_scale"):
        MF(data, init_scale=0.0)
    with pytest.raises(ValueError, match="num_layers"):
        LightGCN(data, num_layers=0)
    with pytest.raises(ValueError, match="combine: want one of sum, mean, last"):
        LightGCN(data, combine="concat")
    with pytest.raises(ValueError, match="num_layers: want an integer of at least 1, got 0"):
        LRGCCF(data, num_layers=0)
    for name, value in (("noise", 0.0), ("noise", float("inf")), ("temperature", 0), ("contrast_weight", -1.0)):
        with pytest.raises(ValueError, match=f"{name}: want"):
            SimGCL(data, **{name: value})
    with pytest.raises(ValueError, match=r"model: want one of lightgcn, .*mf, .*got 'bert'"):
        build("bert", data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_models_move_with_their_graph(data):
    model = LightGCN(data, dim=8)
    want = model.representation()[0]
    got = model.to("cuda").representation()[0]
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_models_once_trained_rank_the_same_every_time(data, name):
    """Nothing is dropped out any more, and a copy by pickle is the same model."""
    run = fit(MODELS[name](data, dim=8), data, epochs=2, batch_size=64)
    assert not run.objective.training and not run.objective.model.training
    first = run.objective.representation()
    for ranker in (run.objective, pickle.loads(pickle.dumps(run.objective)).model):
        for table, again in zip(first, ranker.representation(), strict=True):
            assert torch.equal(table, again)
