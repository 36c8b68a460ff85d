"""Generative models: the written formula in a few dense float64 lines, and what training needs of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from training_data import tiny, with_gaps, with_random_biases, write_tiny

from prorec_fast.data import load
from prorec_fast.models import CVGA, MultVAE, build
from prorec_fast.models.generative import LOG_VARIANCE_RANGE, Gaussian
from prorec_fast.train import evaluate, fit

AUTOENCODERS = {"mult_vae": {"dim": 6, "hidden_dim": 10}, "cvga": {"dim": 6}}
names = pytest.mark.parametrize("name", AUTOENCODERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return with_gaps(tiny(tmp_path_factory.mktemp("generative") / "tiny"))


def make(name, data, **options):
    return build(name, data, **{**AUTOENCODERS[name], **options})


def matrix(data):
    """The training matrix, dense float64."""
    dense = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    dense[data.train.edges()] = 1
    return dense


def plain_encoder(name, x, p):
    """(mean, logvar) of all users from the training matrix, with the parameters p."""
    rows = x.sum(1, keepdim=True).clamp(min=1).rsqrt()
    if name == "mult_vae":
        hidden = torch.tanh(linear(x * rows, p["input.weight"].T, p["input.bias"]))
        return linear(hidden, p["encoder.weight"], p["encoder.bias"]).chunk(2, dim=1)
    columns = x.sum(0, keepdim=True).clamp(min=1).rsqrt()
    return linear(x * rows * columns, p["input.weight"].T, p["input.bias"]).chunk(2, dim=1)


def plain_logits(name, latent, p):
    if name == "mult_vae":
        latent = torch.tanh(linear(latent, p["decoder.weight"], p["decoder.bias"]))
    return linear(latent, p["output.weight"], p["output.bias"])


def doubled(model):
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


@names
def test_generative_loss_is_the_plain_formula(data, name):
    model = with_random_biases(make(name, data, dropout=0.0, anneal_cap=0.3, anneal_steps=4)).train()
    users = torch.tensor([3, 7, 0, 59, 12, 12, 31])
    torch.manual_seed(5)
    noise = torch.randn(7, 6).double()
    torch.manual_seed(5)
    terms = model.loss_terms(users)
    assert set(terms) == {"nll", "kl"}

    p, x = doubled(model), matrix(data)
    mean, logvar = (t[users] for t in plain_encoder(name, x, p))
    logits = plain_logits(name, mean + (0.5 * logvar).exp() * noise, p)
    nll = -(x[users] * logits.log_softmax(1)).sum(1).mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
    weight = 0.3 * 1 / 4  # after one step
    torch.testing.assert_close(terms["nll"].double(), nll, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["kl"].double(), weight * kl, rtol=1e-5, atol=0)
    sum(terms.values()).backward()
    (nll + weight * kl).backward()
    for parameter_name, parameter in model.named_parameters():
        want = p[parameter_name].grad
        error = (parameter.grad.double() - want).abs().max() / want.abs().max()
        assert error < 2e-5, parameter_name


@names
def test_generative_ranks_by_the_posterior_mean(data, name):
    model = with_random_biases(make(name, data, dropout=0.5)).eval()
    user, item = model.representation()
    p = doubled(model)
    mean, logvar = plain_encoder(name, matrix(data), p)
    torch.testing.assert_close((user @ item.T).double(), plain_logits(name, mean, p), rtol=1e-5, atol=1e-5)
    posterior = model.posterior(torch.tensor([7, 2]))  # one of them without a row
    for got, want in zip(posterior, (mean, logvar), strict=True):
        torch.testing.assert_close(got.double(), want[[7, 2]], rtol=1e-5, atol=1e-5)
    assert (model.latent_dim, model.representation()[0].shape[1]) == (6, item.shape[1])


@names
def test_generative_runs_in_float64(data, name):
    model = make(name, data).double().eval()
    mean, _ = plain_encoder(name, matrix(data), dict(model.named_parameters()))
    torch.testing.assert_close(model.posterior(torch.arange(60)).mean, mean, rtol=1e-4, atol=1e-8)  # entries in float32
    terms = model.loss_terms(torch.arange(60))
    assert all(value.dtype == torch.float64 for value in terms.values())


@names
def test_generative_dropout_is_seeded_and_only_for_training(data, name):
    model, users = make(name, data, dropout=0.5), torch.arange(60)
    means = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        means.append(model.posterior(users).mean)
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])
    model.eval()
    assert torch.equal(model.posterior(users).mean, model.posterior(users).mean)


class LargestTensor(TorchDispatchMode):
    """Notes how many entries the largest result of any operation has."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for t in results if isinstance(results, tuple | list) else (results,):
            if isinstance(t, torch.Tensor):
                self.entries = max(self.entries, t.numel())
        return results


@names
def test_generative_encoder_has_no_users_times_items(data, name):
    """Forward and backward; the likelihood's own tests are about its chunks."""
    model, users = make(name, data), torch.arange(60).repeat(100)
    with LargestTensor() as largest:
        torch.ones(3, 5).add(1)
    assert largest.entries == 15
    with LargestTensor() as largest:
        torch.cat(model.posterior(users), dim=1).square().sum().backward()
    edges = 100 * data.train_graph.num_edges
    assert edges <= largest.entries <= max(edges, 12 * users.numel()) < users.numel() * data.num_items / 2


@names
def test_generative_learns(data, name):
    model = make(name, data, anneal_steps=50)
    before = evaluate(model, data)
    run = fit(model, data, epochs=60, batch_size=16, lr=0.02, eval_every=5)
    losses = [record["terms"]["nll"] for record in run.history]
    assert losses[-1] < 0.95 * losses[0] and run.test["recall@10"] > 1.2 * before["recall@10"]
    assert set(run.history[0]["terms"]) == {"nll", "kl"}


@names
def test_generative_kl_weight_rises_while_training(data, name):
    model, users = make(name, data, anneal_cap=0.6, anneal_steps=3), torch.arange(4)
    weights = [model.kl_weight()]
    for _ in range(5):
        model.loss_terms(users)
        weights.append(model.kl_weight())
    assert torch.stack(weights).tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.6, 0.6])
    assert all(weight.dtype == torch.float32 and weight.dim() == 0 for weight in weights)
    model = make(name, data, anneal_steps=10)
    noted = model.state_dict()["steps"]  # the same memory, which a captured step would go on counting in
    model.loss_terms(users)
    evaluate(model, data)
    assert model.training and noted.item() == 1
    model.eval().loss_terms(users)
    assert noted.item() == 1
    model.reset_parameters()
    assert noted.item() == 0 and model.kl_weight() == 0


class Stop(Exception):
    pass


@names
def test_generative_resume_equals_uninterrupted(data, tmp_path, name):
    settings = {"batch_size": 16, "lr": 0.01, "eval_every": 2, "seed": 3}
    whole_model, resumed_model = (make(name, data, anneal_steps=11) for _ in range(2))
    whole = fit(whole_model, data, epochs=4, **settings)

    def interrupt(record):
        if record["epoch"] == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(make(name, data, anneal_steps=11), data, epochs=4, out=tmp_path, on_epoch=interrupt, **settings)
    resumed = fit(resumed_model, data, epochs=4, out=tmp_path, resume=True, **settings)
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert (a["terms"], a.get("valid")) == (b["terms"], b.get("valid"))
    assert whole.test == resumed.test and whole.best_epoch == resumed.best_epoch
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[key]), key
    assert whole_model.steps.item() == whole.best_epoch * 4  # of 59 users in batches of 16
    assert "entries" not in whole_model.state_dict()


def test_generative_does_not_depend_on_torch_defaults(tmp_path):
    settings = {"epochs": 2, "batch_size": 32, "lr": 0.01}
    data = load(write_tiny(tmp_path / "tiny"))
    for name in AUTOENCODERS:
        usual = fit(make(name, data), data, **settings)
        for change, restore in (
            (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
            (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        ):
            change()
            try:
                model = make(name, data)
                changed = fit(model, data, **settings)
            finally:
                restore()
            assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
            assert changed.test == usual.test
            assert [record["terms"] for record in changed.history] == [record["terms"] for record in usual.history]


def test_generative_gaussian_bounds_its_deviation():
    extreme = torch.tensor([[0.0, 1.0, 2.0, 1e4], [-1e4, 1e4, float("inf"), -float("inf")]]).T
    parameters = extreme.T.reshape(1, 8).requires_grad_()
    posterior = Gaussian.from_parameters(parameters)
    low, high = LOG_VARIANCE_RANGE
    assert posterior.logvar.tolist() == [[low, high, high, low]]
    shifted = Gaussian(posterior.mean, posterior.logvar + torch.tensor([[-1e4, 1e4, 90.0, float("-inf")]]))
    sample = shifted.sample()
    assert torch.isfinite(sample).all()
    sample.sum().backward()
    assert torch.isfinite(parameters.grad).all()
    assert Gaussian.from_parameters(torch.full((1, 2), torch.nan)).sample().isnan().all()


def test_generative_gaussian_samples_its_distribution():
    mean, logvar = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 1.0])
    torch.manual_seed(0)
    draws = Gaussian(mean.expand(20000, 2), logvar.expand(20000, 2)).sample()
    torch.testing.assert_close(draws.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(0), logvar.exp(), rtol=0.05, atol=0)


@names
def test_generative_survives_extreme_weights(data, name):
    model = make(name, data).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    terms = model.loss_terms(torch.arange(60))
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@names
def test_generative_initial_weights_are_xavier_normal(data, name):
    model = build(name, data, seed=2)
    for parameter_name, p in model.named_parameters():
        if p.dim() == 1:
            assert not p.any()
        else:
            assert abs(p.std() * (sum(p.shape) / 2) ** 0.5 - 1) < 0.05, parameter_name


def test_generative_config_has_every_option(data):
    options = {"dim": 4, "dropout": 0.25, "anneal_cap": 0.5, "anneal_steps": 7, "seed": 9}
    model = MultVAE(data, hidden_dim=5, **options)
    assert model.config() == {"name": "mult_vae", "hidden_dim": 5, **options}
    assert CVGA(data, **options).config() == {"name": "cvga", **options}
    again = build(data=data, **model.config())
    assert again.config() == model.config()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mult_vae", {"dim": 0}, "dim: want an integer of at least 1"),
        ("mult_vae", {"hidden_dim": 0}, "hidden_dim: want an integer of at least 1"),
        ("mult_vae", {"dropout": 1.0}, "dropout: want a number of at least 0 and below 1"),
        ("cvga", {"dim": 2.0}, "dim: want an integer of at least 1"),
        ("cvga", {"dropout": -0.1}, "dropout: want a number of at least 0 and below 1"),
        ("cvga", {"anneal_cap": float("inf")}, "anneal_cap: want a finite number of at least 0"),
        ("mult_vae", {"anneal_cap": -1}, "anneal_cap: want a finite number of at least 0"),
        ("mult_vae", {"anneal_steps": 0}, "anneal_steps: want an integer of at least 1"),
    ],
)
def test_generative_rejects(data, name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, data, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@names
def test_generative_trains_on_a_device(data, name):
    model = make(name, data).eval()
    want = model.representation()[0]
    torch.testing.assert_close(model.to("cuda").representation()[0].cpu(), want, atol=1e-4, rtol=1e-4)
    run = fit(model, data, epochs=20, batch_size=16, lr=0.02, eval_every=5)
    assert run.history[-1]["terms"]["nll"] < run.history[0]["terms"]["nll"]
