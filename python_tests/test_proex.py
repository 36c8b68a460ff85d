"""ProEx: its head on the rows of a batch, and its loss as plain float64 formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import assert_as_good_as_eager
from torch import nn
from torch.nn.functional import leaky_relu, linear, normalize, softplus
from training_data import tiny

from prorec_fast import fit
from prorec_fast.frameworks import ProEx, profile_head
from prorec_fast.frameworks.proex import mean_of_items
from prorec_fast.frameworks.profile_head import ProfileHead, ProfileTables
from prorec_fast.models import MODELS, Discriminative, Generative, LightGCN, MultVAE, SimGCL
from prorec_fast.models.generative import Gaussian
from prorec_fast.train import evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("proex") / "tiny")


@pytest.fixture
def batch(data):
    users, positives = (index[::5] for index in data.train.edges())
    generator = torch.Generator().manual_seed(1)
    return users, positives, torch.randint(data.num_items, users.shape, generator=generator)


def head_and_tables(rows=40, width=14, out=6, k=3):
    generator = torch.Generator().manual_seed(rows)
    tables = ProfileTables([torch.randn(rows, width, generator=generator) for _ in range(k)], CPU)
    head = ProfileHead(width, out, seed=1, device=CPU)
    with torch.no_grad():
        for bias in (head.bias_in, head.bias_out):
            bias.normal_(generator=generator)
    return head, tables


def plain_head(head, rows):
    return linear(leaky_relu(linear(rows, head.weight_in, head.bias_in), 0.01), head.weight_out, head.bias_out)


@pytest.mark.parametrize("chunk", [2048, 7, 1])
@pytest.mark.parametrize("rows", [0, 1, 7, 22])
def test_head_matches_reference(monkeypatch, chunk, rows):
    monkeypatch.setattr(profile_head, "_CHUNK", chunk)
    head, tables = head_and_tables()
    index = torch.randperm(40)[:rows]
    found = []
    for dtype in (torch.float32, torch.float32, torch.float64):
        for parameter in head.parameters():
            parameter.grad = None
        head.to(dtype)
        profiles = torch.stack([t[index] for t in tables.tables]).to(dtype)
        out = head(tables, index) if not found else plain_head(head, profiles)
        assert out.shape == (3, rows, 6)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype))
        found.append([out.detach(), *(p.grad.clone() for p in head.parameters())])
    for ours, eager, truth in zip(*found, strict=True):
        assert_as_good_as_eager(ours, eager, truth)


def test_head_keeps_its_memory_and_takes_batches_of_any_size():
    head, tables = head_and_tables()
    for rows in (30, 5, 31, 12):
        index = torch.arange(rows)
        torch.testing.assert_close(
            head(tables, index), plain_head(head, torch.stack([t[:rows] for t in tables.tables]))
        )
    places = {tables.hidden(rows, 10).data_ptr() for rows in (31, 4, 90)}
    assert len(places) == 1


def test_head_refuses_a_backward_pass_whose_hidden_layer_is_gone():
    head, tables = head_and_tables()
    first = head(tables, torch.arange(5))
    head(tables, torch.arange(5, 10))
    with pytest.raises(RuntimeError, match="ProfileHead: another forward pass"):
        first.sum().backward()


@pytest.mark.parametrize("chunk", [2048, 7])
def test_head_mean_is_that_of_the_images(monkeypatch, chunk):
    monkeypatch.setattr(profile_head, "_CHUNK", chunk)
    head, tables = head_and_tables()
    want = head(tables, torch.arange(40)).mean(0)
    torch.testing.assert_close(head.mean(tables), want)


def test_mean_of_items_is_the_rows_mean(data):
    items = torch.randn(data.num_items, 5)
    got = mean_of_items(data.train_graph, items)
    for user in range(data.num_users):
        own = data.train.indices[data.train.indptr[user] : data.train.indptr[user + 1]]
        torch.testing.assert_close(got[user], items[own].mean(0))


def plain_nce(anchor, positive, tau, eps=0.0):
    share = (normalize(anchor, dim=1) @ normalize(positive, dim=1).T / tau).softmax(1).diagonal()
    return -(share + eps).log().mean()


def plain_contrast(images, tau):
    """Eq. 7 with unit rows: the mean over nodes of the sum over profiles."""
    unit = normalize(images, dim=2)
    total = 0
    for k in range(len(unit)):
        others = sum(torch.exp((unit[k] * unit[j]).sum(1) / tau) for j in range(len(unit)) if j != k)
        total = total + torch.log1p(torch.exp(torch.tensor(1 / tau)) * others)
    return total.mean()


def doubles(objective, data):
    """Everything of the objective's that plain formulas need, in float64; the profiles as the data set gives them."""
    users, items, _ = data.profiles_for(objective.config.num_profiles)
    head = {name: p.double() for name, p in objective.head.named_parameters()}

    def image(rows):
        hidden = leaky_relu(rows.double() @ head["weight_in"].T + head["bias_in"], 0.01)
        return hidden @ head["weight_out"].T + head["bias_out"]

    return users, items, image


def plain_discriminative(objective, data, batch, theta):
    config = objective.config
    u, i, j = batch
    user, item = (t.double() for t in objective.model.representation())
    users, items, image = doubles(objective, data)
    of_users, of_items = (torch.stack([image(t) for t in tables]) for tables in (users, items))
    mixed_users, mixed_items = (torch.einsum("ek,knd->end", theta.double(), t) for t in (of_users, of_items))
    uniq_u, uniq_i, uniq_all = u.unique(), i.unique(), torch.cat([i, j]).unique()
    losses = []
    for c_user, c_item in zip(mixed_users, mixed_items, strict=True):
        z_user, z_item = user + c_user, item + c_item
        loss = softplus((z_user[u] * (z_item[j] - z_item[i])).sum(1)).mean()
        if config.align_weight:
            nce = plain_nce(user[uniq_u], c_user[uniq_u], config.temperature)
            nce = nce + plain_nce(item[uniq_i], c_item[uniq_i], config.temperature)
            loss = loss + config.align_weight * nce
        losses.append(loss)
    losses = torch.stack(losses)
    variance = losses.var() if len(losses) > 1 else torch.zeros(())
    total = losses.sum() + config.variance_weight * variance
    if config.regularization == "uniformity":
        apart = sum(plain_nce(t[uniq_u], t[uniq_u], config.temperature, config.contrast_eps) for t in of_users)
        apart = apart + sum(plain_nce(t[uniq_i], t[uniq_i], config.temperature, config.contrast_eps) for t in of_items)
    else:
        apart = plain_contrast(of_users[:, uniq_u], config.temperature)
        apart = apart + plain_contrast(of_items[:, uniq_all], config.temperature)
    return total + config.regularization_weight * apart


def compare(objective, terms, want):
    got = sum(value for name, value in terms.items() if name != "reg")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    parameters = objective.all_parameters()
    ours, truth = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (got, want))
    for one, other in zip(ours, truth, strict=True):
        assert (one is None or not one.any()) if other is None else one is not None
        if other is not None:
            torch.testing.assert_close(one, other.float(), rtol=2e-4, atol=2e-5 * other.abs().max().item())


VARIANTS = {
    "released": ProEx(),
    "paper": ProEx.preset("paper"),
    "no variance": ProEx(variance_weight=0.0),
    "no regularization": ProEx(regularization_weight=0.0),
    "no mixing": ProEx(mixing=False, align_weight=0.3),
    "one profile": ProEx(num_profiles=1, num_environments=2, align_weight=0.2),
    "many": ProEx(num_profiles=6, num_environments=7, alpha=1.0, temperature=0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_proex_is_the_formula(data, batch, name):
    config = replace(VARIANTS[name], reg=0.01)
    model = LightGCN(data, dim=8, init_scale=3.0)
    objective = config.bind(model, data)
    torch.manual_seed(4)
    terms = objective.terms(*batch)
    torch.manual_seed(4)
    theta = objective._environments()
    assert theta.shape == ((config.num_environments if config.mixing else 1), config.num_profiles)
    torch.testing.assert_close(theta.sum(1), torch.ones(len(theta)))
    compare(objective, terms, plain_discriminative(objective, data, batch, theta))
    squares = sum(parameter.square().sum() for parameter in objective.all_parameters())
    torch.testing.assert_close(terms["reg"], 0.01 * squares)
    assert ("variance" in terms) == bool(config.variance_weight)
    assert ("regularization" in terms) == bool(config.regularization_weight)


def test_proex_keeps_a_models_auxiliary_terms(data, batch):
    """In the order of the draws: the environments, then the two noisy views."""
    model = SimGCL(data, dim=8, contrast_weight=0.3)
    objective = ProEx().bind(model, data)
    torch.manual_seed(4)
    contrast = objective.terms(*batch)["contrast"]
    torch.manual_seed(4)
    objective._environments()
    assert torch.equal(contrast, model.auxiliary_terms(*batch[:2])["contrast"])


def test_proex_on_device_is_that_of_the_cpu(data, batch, simulated_device, monkeypatch):
    """There shapes do not follow the number of distinct rows; the numbers stay."""
    from prorec_fast import _native

    found = []
    for on_device in (True, False):
        if not on_device:
            monkeypatch.setattr(_native, "on_cuda", lambda t: False)
        for config in (
            ProEx(num_profiles=2, num_environments=2),
            ProEx.preset("paper", num_profiles=2, num_environments=2),
        ):
            objective = config.bind(LightGCN(data, dim=8, init_scale=3.0), data)
            torch.manual_seed(4)
            found.append(objective.terms(*(index[:12] for index in batch)))
    for device, cpu in zip(found[:2], found[2:], strict=True):
        assert device.keys() == cpu.keys()
        for name in cpu:
            torch.testing.assert_close(device[name], cpu[name], rtol=1e-4, atol=1e-5)


class Exact(Generative):
    """A generative model without chance, whose terms are plain functions of its latent vectors."""

    name = "exact"

    def __init__(self, data, dim=4):
        super().__init__(data, dim)
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(data.num_users, 2 * dim, generator=generator))
        self.items = nn.Parameter(torch.randn(data.num_items, dim, generator=generator))

    def reset_parameters(self):
        pass

    def posterior(self, users):
        return Gaussian(*self.table[users].chunk(2, dim=1))

    def reconstruction(self, posterior, users):
        return (posterior.mean @ self.items.T).square().sum(1).mean() + posterior.logvar.exp().sum(1).mean()

    def kl_weight(self):
        return 0.7

    def decoded(self, latent):
        return latent, self.items


def plain_kl(mean, logvar, prior_mean, prior_logvar):
    ratio = (logvar - prior_logvar).exp() + (mean - prior_mean).square() / prior_logvar.exp()
    return 0.5 * (prior_logvar - logvar + ratio - 1).sum(1).mean()


@pytest.mark.parametrize(
    "config",
    [
        ProEx(),
        ProEx.preset("paper"),
        ProEx(align_weight=0.0, num_profiles=2, num_environments=3),
        ProEx(mixing=False, regularization_weight=0.0),
    ],
    ids=["released", "paper", "no alignment", "no mixing"],
)
def test_proex_generative_is_the_formula(data, config):
    objective = config.bind(Exact(data), data)
    model, users = objective.model, torch.arange(3, 40, 2)
    torch.manual_seed(4)
    terms = objective.terms(users)
    torch.manual_seed(4)
    theta = objective._environments().double()
    of_users, of_items, image = doubles(objective, data)
    own = [mean_of_items(data.train_graph, item) + user for user, item in zip(of_users, of_items, strict=True)]
    means, logvars = torch.stack([image(t[users]) for t in own]).chunk(2, dim=2)
    mean, logvar = model.table[users].double().chunk(2, dim=1)
    beta = 1 - (0.5 if config.align_weight is None else config.align_weight)
    losses = []
    for weights in theta:
        c_mean = torch.einsum("k,kbd->bd", weights, means)
        c_logvar = torch.einsum("k,kbd->bd", weights, logvars.exp()).log()
        m, v = mean + c_mean, logvar + c_logvar
        nll = (m @ model.items.double().T).square().sum(1).mean() + v.exp().sum(1).mean()
        zero = torch.zeros_like(m)
        losses.append(nll + 0.7 * (beta * plain_kl(m, v, zero, zero) + (1 - beta) * plain_kl(m, v, c_mean, c_logvar)))
    losses = torch.stack(losses)
    want = losses.sum() + (config.variance_weight * losses.var() if len(losses) > 1 else 0)
    if config.regularization == "contrast":
        want = want + config.regularization_weight * plain_contrast(means, config.temperature)
    else:
        apart = sum(plain_nce(t, t, config.temperature, config.contrast_eps) for t in means)
        want = want + config.regularization_weight * apart
    assert "reg" not in terms  # generative models have no weight decay of their own
    compare(objective, terms, want)


def test_proex_ranks_by_the_mean_of_all_profiles(data):
    model = LightGCN(data, dim=8)
    objective = ProEx().bind(model, data)
    users, items, image = doubles(objective, data)
    for got, base, tables in zip(objective.representation(), model.representation(), (users, items), strict=True):
        want = base.double() + torch.stack([image(t) for t in tables]).mean(0)
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)
    exact = Exact(data)
    objective = ProEx().bind(exact, data)
    users, items, image = doubles(objective, data)
    own = [mean_of_items(data.train_graph, item) + user for user, item in zip(users, items, strict=True)]
    want = exact.table[:, :4].double() + torch.stack([image(t) for t in own]).mean(0)[:, :4]
    torch.testing.assert_close(objective.representation()[0], want.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_under_proex(data, name):
    model = MODELS[name](data, dim=8)
    framework = ProEx(num_profiles=2, num_environments=2)
    run = fit(model, data, framework, epochs=3, batch_size=64, lr=0.01, eval_every=3, seed=1)
    assert run.notes["profiles"] == data.profiles_for(2)[2]
    assert run.test == evaluate(run.objective, data, "test")
    before = framework.bind(MODELS[name](data, dim=8), data)
    for ours, theirs in zip(run.objective.all_parameters(), before.all_parameters(), strict=True):
        assert ours.isfinite().all() and not torch.equal(ours, theirs)
    if isinstance(model, Discriminative):  # the annealing raises the other losses
        assert run.history[2]["loss"] < run.history[0]["loss"]


@pytest.mark.parametrize("make", [LightGCN, MultVAE])
def test_proex_resumes_where_it_was(data, tmp_path, make):
    settings = {"batch_size": 64, "eval_every": 1, "seed": 1, "framework": ProEx(num_profiles=2, num_environments=2)}
    whole = fit(make(data, dim=8), data, epochs=4, **settings)
    fit(make(data, dim=8), data, epochs=2, out=tmp_path / "run", **settings)
    rest = fit(make(data, dim=8), data, epochs=4, out=tmp_path / "run", resume=True, **settings)
    assert rest.test == whole.test and rest.best_epoch == whole.best_epoch
    for name, value in whole.objective.all_state().items():
        assert torch.equal(rest.objective.all_state()[name], value), name
    assert any(name.startswith("framework.head") for name in rest.objective.all_state())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_profiles": 0}, "num_profiles: want an integer of at least 1"),
        ({"num_environments": 2.5}, "num_environments: want an integer"),
        ({"alpha": 0.0}, "alpha: want a finite number above 0"),
        ({"alpha": 0.001}, "alpha: want at least 0.01"),
        ({"variance_weight": -1}, "variance_weight: want a finite number of at least 0"),
        ({"align_weight": float("nan")}, "align_weight: want a finite number"),
        ({"regularization": "none"}, "regularization: want one of uniformity, contrast"),
    ],
)
def test_proex_rejects(change, message):
    with pytest.raises(ValueError, match=message):
        ProEx(**change)


def test_proex_rejects_a_share_above_one(data):
    with pytest.raises(ValueError, match="align_weight: want at most 1"):
        ProEx(align_weight=1.5).bind(Exact(data), data)


def test_proex_leaves_out_profiles_of_another_width(data):
    further = [(data.user_profiles[:, :5], data.item_profiles[:, :5])]
    objective = ProEx(num_profiles=2).bind(Exact(data), replace(data, further_profiles=further))
    assert objective.notes["profiles"].startswith("1 of 2 profiles of the data set, the first that are 12-d (")
    (tables,) = objective.profiles
    assert [table.size(1) for table in tables.tables] == [12, 12]
