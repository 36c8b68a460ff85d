"""L-DiffRec: the loss against dense float64 lines, the ranking by its chain walked back, and what training needs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from training_data import tiny, with_gaps, with_random_biases, write_tiny

from prorec_fast.data import Interactions, load
from prorec_fast.models import LDiffRec, build
from prorec_fast.models.l_diffrec import item_clusters
from prorec_fast.train import evaluate, fit, read_weights

SMALL = {"dim": 6, "num_clusters": 3, "hidden_dim": 9, "time_dim": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return with_gaps(tiny(tmp_path_factory.mktemp("l_diffrec") / "tiny"))


def make(data, **options) -> LDiffRec:
    return LDiffRec(data, **{**SMALL, **options})


class Oracle(torch.nn.Module):
    """Knows what was noised, and notes when it was asked."""

    def __init__(self, start):
        super().__init__()
        self.start, self.asked = start, []

    def forward(self, noisy, step):
        self.asked += step.unique().tolist()
        return self.start


@pytest.mark.parametrize("sampling_steps", [0, 2, 5])
def test_l_diffrec_perfect_denoiser_recovers_the_latent(data, sampling_steps):
    model = make(data, sampling_steps=sampling_steps).eval()
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    model.denoiser = Oracle(latent)
    torch.testing.assert_close(model.hidden(latent + 0.3), latent, rtol=0, atol=1e-6)
    assert model.denoiser.asked == [4, 3, 2, 1, 0]


def chain_back(model, latent):
    """From the schedule's own coefficients, which have tests of their own."""
    coefficients = zip(model.schedule.of_start.tolist(), model.schedule.of_noisy.tolist(), strict=True)
    for t, (of_start, of_noisy) in reversed(list(enumerate(coefficients))):
        predicted = model.denoiser(latent, torch.full((len(latent),), t))
        latent = of_start * predicted + of_noisy * latent
    return latent


def test_l_diffrec_ranks_by_the_chain_walked_back(data):
    model = with_random_biases(make(data, noise_scale=1.0, noise_min=0.1, noise_max=0.9)).eval()
    latent = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(latent), chain_back(model, latent))
        users, items = model.representation()
        want = model.decoded(model.posterior(torch.arange(60)).mean)[0]
    assert torch.equal(users, want) and users.shape == (60, 7) and items.shape == (50, 7)
    noised = make(data, sampling_steps=5, noise_scale=1.0, noise_min=0.1, noise_max=0.9).eval()
    noised.load_state_dict(model.state_dict())
    torch.manual_seed(4)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again = noised.hidden(latent), noised.hidden(latent)
        generator = torch.Generator().manual_seed(noised.seed)
        far = math.sqrt(0.1) * latent + math.sqrt(0.9) * torch.randn(8, 6, generator=generator)
        torch.testing.assert_close(first, chain_back(noised, far))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())


def plain_encoder(model, data, p):
    """(mean, logvar) of all users from dense float64 rows, a cluster at a time."""
    x = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    x[data.train.edges()] = 1
    x = x / x.sum(1, keepdim=True).clamp(min=1).sqrt()
    means, logvars = [], []
    for c, bias in enumerate(p["input_bias"].chunk(model.num_clusters)):
        items = model.clusters == c
        mean, logvar = torch.tanh(x[:, items] @ p["input.weight"][items] + bias).chunk(2, dim=1)
        means.append(mean)
        logvars.append(logvar)
    return torch.cat(means, 1), torch.cat(logvars, 1)


def plain_logits(model, hidden, p):
    logits = p["output.bias"].expand(len(hidden), -1).clone()
    for c, part in enumerate(hidden.chunk(model.num_clusters, dim=1)):
        items = model.clusters == c
        logits[:, items] = logits[:, items] + part @ p["output.weight"][items].T
    return logits


def test_l_diffrec_loss_is_the_plain_formula(data):
    options = {"dropout": 0.0, "denoiser_dropout": 0.0, "anneal_cap": 0.3, "anneal_steps": 4, "diffusion_weight": 0.7}
    options |= {"num_steps": 5, "noise_scale": 0.9, "noise_min": 0.01, "noise_max": 0.4}
    model = with_random_biases(make(data, **options)).train()
    users = torch.tensor([3, 7, 0, 59, 12, 12, 31])
    torch.manual_seed(5)
    draw, step, noise = torch.randn(7, 6).double(), torch.randint(5, (7,)), torch.randn(7, 6).double()
    torch.manual_seed(5)
    terms = model.loss_terms(users)
    assert set(terms) == {"nll", "kl"} and len(step.unique()) > 2

    p = {name: q.detach().double().requires_grad_() for name, q in model.named_parameters()}
    mean, logvar = (t[users] for t in plain_encoder(model, data, p))
    start = mean + (0.5 * logvar).exp() * draw
    variance = 0.9 * torch.linspace(0.01, 0.4, 5, dtype=torch.float64)
    spread = variance[step, None]
    noisy = (1 - spread).sqrt() * start + spread.sqrt() * noise
    time = linear(model.denoiser.sinusoids[step].double(), p["denoiser.time.weight"], p["denoiser.time.bias"])
    inner = torch.tanh(linear(torch.cat([noisy, time], 1), p["denoiser.inner.weight"], p["denoiser.inner.bias"]))
    predicted = linear(inner, p["denoiser.outer.weight"], p["denoiser.outer.bias"])
    snr = 1 / variance - 1
    weight = torch.where(step == 0, 1.0, snr[step - 1] - snr[step])
    diffusion = (weight[:, None] * (predicted - start).square()).mean()
    x = torch.zeros(60, 50, dtype=torch.float64)
    x[data.train.edges()] = 1
    nll = -(x[users] * plain_logits(model, predicted, p).log_softmax(1)).sum(1).mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
    want = {"nll": nll + 0.7 * diffusion, "kl": 0.3 * 1 / 4 * kl}  # after one step
    for name, value in want.items():
        torch.testing.assert_close(terms[name].double(), value, rtol=1e-5, atol=0)
    sum(terms.values()).backward()
    sum(want.values()).backward()
    for name, parameter in model.named_parameters():
        error = (parameter.grad.double() - p[name].grad).abs().max() / p[name].grad.abs().max()
        assert error < 2e-5, name


def test_l_diffrec_clusters_part_the_items(data):
    model = make(data)
    sizes = model.clusters.bincount(minlength=3)
    assert model.clusters.shape == (50,) and sizes.sum() == 50 and (sizes > 0).all()
    assert torch.equal(model.clusters, item_clusters(data, 3, seed=0))
    owners, items = data.train.edges()
    rows, bag_items = model.bags.edges()
    assert torch.equal(torch.stack([rows // 3, bag_items]).unique(dim=1), torch.stack([owners, items]).unique(dim=1))
    assert torch.equal(rows % 3, model.clusters[bag_items])


def test_l_diffrec_clusters_are_those_of_tastes(data):
    """Two worlds that share little: all but one of a user's items are of one."""
    generator = np.random.default_rng(0)
    worlds = np.arange(50).reshape(2, 25)
    rows = []
    for user in range(600):
        own, other = worlds[user % 2], worlds[1 - user % 2]
        rows.append(np.sort(np.append(generator.choice(own, 7, replace=False), generator.choice(other))))
    indptr = np.arange(0, 8 * 601, 8)
    apart = replace(
        data,
        num_users=600,
        user_profiles=None,
        item_profiles=None,
        train=Interactions(indptr, np.concatenate(rows).astype(np.int32)),
    )
    clusters = item_clusters(apart, 2, seed=0)
    assert clusters[0] != clusters[25] and (clusters == clusters[[0, 25]].repeat_interleave(25)).all()


def test_l_diffrec_scores_see_the_items_own_cluster(data):
    model = with_random_biases(make(data)).eval()
    p = {name: q.double() for name, q in model.named_parameters()}
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(6))
    model.denoiser = Oracle(latent)
    users, items = model.decoded(latent)
    want = plain_logits(model, latent.double(), p)
    torch.testing.assert_close((users @ items.T).double(), want, rtol=1e-5, atol=1e-5)
    weights = items[:, :6].view(50, 3, 2)
    for c in range(3):
        assert (weights[model.clusters == c, c] != 0).all() and not weights[model.clusters != c, c].any()
    # a posterior's part is made of its cluster's items alone
    mean, logvar = (t.view(60, 3, 2) for t in model.posterior(torch.arange(60)))
    one = int(model.clusters[data.train.indices[0]])
    model.input.weight.data[data.train.indices[0]] += 1
    for before, after in zip((mean, logvar), model.posterior(torch.arange(60)), strict=True):
        changed = (before != after.view(60, 3, 2))[0].all(1)
        assert changed.tolist() == [c == one for c in range(3)]
    want = plain_encoder(model, data, {name: q.double() for name, q in model.named_parameters()})
    for got, plain in zip(model.posterior(torch.arange(60)), want, strict=True):
        torch.testing.assert_close(got.double(), plain, rtol=1e-5, atol=1e-5)


def test_l_diffrec_runs_in_float64(data):
    model = make(data).double()
    assert all(value.dtype == torch.float64 for value in model.loss_terms(torch.arange(60)).values())


def test_l_diffrec_survives_extreme_weights(data):
    model = make(data).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    terms = model.loss_terms(torch.arange(60))
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_l_diffrec_learns(data):
    model = make(data, dim=8, num_clusters=2, hidden_dim=32, anneal_steps=50)
    before = evaluate(model, data)
    run = fit(model, data, epochs=40, batch_size=16, lr=0.03, eval_every=10)
    losses = [record["terms"]["nll"] for record in run.history]
    assert losses[-1] < 0.95 * losses[0] and run.test["recall@10"] > 1.2 * before["recall@10"]


class Stop(Exception):
    pass


def test_l_diffrec_resume_equals_uninterrupted(data, tmp_path):
    settings = {"batch_size": 16, "lr": 0.01, "eval_every": 2, "seed": 3}
    whole_model, resumed_model = (make(data, anneal_steps=11, sampling_steps=3) for _ in range(2))
    whole = fit(whole_model, data, epochs=4, **settings)

    def interrupt(record):
        if record["epoch"] == 3:
            raise Stop

    with pytest.raises(Stop):
        first = make(data, anneal_steps=11, sampling_steps=3)
        fit(first, data, epochs=4, out=tmp_path, on_epoch=interrupt, **settings)
    resumed = fit(resumed_model, data, epochs=4, out=tmp_path, resume=True, **settings)
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert (a["terms"], a.get("valid")) == (b["terms"], b.get("valid"))
    assert whole.test == resumed.test
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[key]), key


def test_l_diffrec_weights_bring_their_clusters(data, tmp_path):
    """Where the items would be parted otherwise (another seed stands for another machine), they still mean the same."""
    model = make(data, seed=1)
    with torch.no_grad():
        model.clusters.copy_(model.clusters.roll(1))
    model.load_state_dict(model.state_dict())
    run = fit(model, data, epochs=1, out=tmp_path)
    other = make(data, seed=1)
    assert not torch.equal(other.clusters, model.clusters)
    other.load_state_dict(read_weights(tmp_path))
    assert evaluate(other, data) == run.test
    rows, items = other.bags.edges()
    assert torch.equal(rows % 3, model.clusters[items])


def test_l_diffrec_does_not_depend_on_torch_defaults(tmp_path):
    settings = {"epochs": 2, "batch_size": 32, "lr": 0.01}
    data = load(write_tiny(tmp_path / "tiny", profiles=False))
    usual = fit(make(data, sampling_steps=2), data, **settings)
    for change, restore in (
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ):
        change()
        try:
            model = make(data, sampling_steps=2)
            changed = fit(model, data, **settings)
        finally:
            restore()
        assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        assert changed.test == usual.test
        assert [record["terms"] for record in changed.history] == [record["terms"] for record in usual.history]


def test_l_diffrec_config_has_every_option(data):
    options = {
        "dim": 8, "num_clusters": 4, "num_steps": 7, "sampling_steps": 2, "noise_scale": 0.25, "noise_min": 0.125,
        "noise_max": 0.5, "diffusion_weight": 0.75, "hidden_dim": 11, "time_dim": 3, "dropout": 0.25,
        "denoiser_dropout": 0.125, "anneal_cap": 0.5, "anneal_steps": 7, "seed": 9,
    }  # fmt: skip
    model = LDiffRec(data, **options)
    assert model.config() == {"name": "l_diffrec", **options}
    again = build(data=data, **model.config())
    assert again.config() == model.config()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        model.input_bias.fill_(1)
    model.reset_parameters()
    assert torch.equal(model.input_bias, again.input_bias)
    assert not torch.equal(model.input.weight, LDiffRec(data, **{**options, "seed": 8}).input.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 7}, r"dim: want a multiple of num_clusters \(3\), got 7"),
        ({"dim": 0}, "dim: want an integer of at least 1"),
        ({"num_clusters": 0}, "num_clusters: want an integer of at least 1"),
        ({"num_steps": 0}, "num_steps: want an integer of at least 1"),
        ({"noise_scale": 0.0}, "noise_scale: want a finite number above 0"),
        ({"noise_min": -1}, "noise_min: want a finite number above 0"),
        ({"noise_max": float("nan")}, "noise_max: want a finite number above 0"),
        ({"noise_min": 0.5, "noise_max": 0.4}, r"noise_max: want at least noise_min \(0.5\)"),
        ({"noise_scale": 4, "noise_max": 0.25}, r"below 1 times noise_scale \(4\), got 0.25"),
        ({"sampling_steps": 6}, r"sampling_steps: want an integer in \[0, 5\], got 6"),
        ({"sampling_steps": 1.5}, "sampling_steps: want an integer"),
        ({"sampling_steps": True}, "sampling_steps: want an integer"),
        ({"diffusion_weight": -0.1}, "diffusion_weight: want a finite number of at least 0"),
        ({"hidden_dim": 0}, "hidden_dim: want an integer of at least 1"),
        ({"time_dim": 0}, "time_dim: want an integer of at least 1"),
        ({"dropout": 1.0}, "dropout: want a number of at least 0 and below 1"),
        ({"denoiser_dropout": 1.0}, "denoiser_dropout: want a number of at least 0 and below 1"),
        ({"anneal_steps": 0}, "anneal_steps: want an integer of at least 1"),
    ],
)
def test_l_diffrec_rejects(data, options, message):
    with pytest.raises(ValueError, match=message):
        make(data, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_l_diffrec_trains_on_a_device(data):
    model = make(data).eval()
    want = model.representation()[0]
    torch.testing.assert_close(model.to("cuda").representation()[0].cpu(), want, atol=1e-4, rtol=1e-4)
    run = fit(model, data, epochs=20, batch_size=16, lr=0.02, eval_every=5)
    assert run.history[-1]["terms"]["nll"] < run.history[0]["terms"]["nll"]
