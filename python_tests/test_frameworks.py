"""Frameworks: the objective is the written formula, and the settings are the named presets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid, normalize
from training_data import tiny

from prorec_fast.data import load
from prorec_fast.frameworks import (
    FRAMEWORKS,
    PAPER,
    PRESETS,
    PUBLISHED_SETTINGS,
    RELEASED,
    Plain,
    ProEx,
    ProMax,
    get_preset,
)
from prorec_fast.frameworks.promax import whitened_profiles
from prorec_fast.models import MF, LightGCN


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("frameworks") / "tiny")


@pytest.fixture
def batch(data):
    users, items = data.train.edges()
    chosen = torch.randperm(users.shape[0], generator=torch.Generator().manual_seed(0))[:80]
    negatives = torch.randint(data.num_items, (80,), generator=torch.Generator().manual_seed(1))
    return users[chosen], items[chosen], negatives


def plain_bpr(user, item, batch):
    u, i, j = batch
    return -logsigmoid((user[u] * item[i]).sum(1) - (user[u] * item[j]).sum(1)).mean()


def plain_nce(a, b, tau, eps=0.0):
    scores = normalize(a, dim=1) @ normalize(b, dim=1).T / tau
    share = scores.softmax(1).diagonal()
    return -(share + eps).log().mean()


def plain_promax(model, data, config, batch):
    """The three terms in a few dense float64 lines; the teacher as `whitened_profiles` gives it."""
    u, i, _ = batch
    uniq_u, uniq_i = u.unique(), i.unique()
    user, item = (x.double() for x in model.representation())
    user_e, item_e = (x.double() for x in model.representation(data.enriched_graph))
    teacher = whitened_profiles(data.user_profiles, data.item_profiles, model.dim, config.whitening)
    teacher_user, teacher_item = (normalize(x.double(), dim=1) for x in teacher)
    p = (teacher_user[uniq_u] @ teacher_item.T / config.teacher_temperature).softmax(1)
    q = (normalize(user[uniq_u], dim=1) @ normalize(item, dim=1).T / config.temperature).softmax(1)
    entropy = -(p * p.log()).sum(1)
    weight = (1 - entropy / math.log(data.num_items)).clamp(*config.weight_range)
    sdr = (weight * -(p * (q + config.sdr_eps).log()).sum(1)).mean()
    tau, eps = config.temperature, config.contrast_eps
    s2dr = plain_nce(user[uniq_u], user_e[uniq_u], tau, eps) + plain_nce(item[uniq_i], item_e[uniq_i], tau, eps)
    s2dr = s2dr + 0.5 * (plain_nce(user[u], item_e[i], tau) + plain_nce(user_e[u], item[i], tau))
    return plain_bpr(user, item, batch), config.sdr_weight * sdr, config.s2dr_weight * s2dr


def test_frameworks_bpr_is_the_formula(data, batch):
    model = LightGCN(data, dim=8, init_scale=5.0)
    terms = Plain(reg=0.01).bind(model, data).terms(*batch)
    user, item = model.representation()
    torch.testing.assert_close(terms["bpr"], plain_bpr(user, item, batch), atol=1e-6, rtol=1e-5)
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    torch.testing.assert_close(terms["reg"], 0.01 * squares, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("whitening", ["separate", "joint"])
@pytest.mark.parametrize("make", [LightGCN, MF])
def test_frameworks_promax_is_the_formula(data, batch, preset, whitening, make):
    config = ProMax.preset(preset, whitening=whitening, temperature=0.3, teacher_temperature=0.15)
    model = make(data, dim=8, init_scale=3.0)
    terms = config.bind(model, data).terms(*batch)
    assert list(terms) == ["bpr", "sdr", "s2dr", "reg"]
    want = plain_promax(model, data, config, batch)
    got_grads = torch.autograd.grad(sum(terms.values()) - terms["reg"], list(model.parameters()))
    want_grads = torch.autograd.grad(sum(want), list(model.parameters()))
    for name, value in zip(("bpr", "sdr", "s2dr"), want, strict=True):
        torch.testing.assert_close(terms[name].double(), value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for got, expected in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)


def test_frameworks_promax_enriches_for_the_sparse(data):
    added = data.enriched_graph.num_edges - data.train_graph.num_edges
    assert added > 0
    before = set(zip(*(index.tolist() for index in data.train.edges()), strict=True))
    graph = data.enriched_graph
    users = torch.repeat_interleave(torch.arange(data.num_users), graph.user_indptr.diff())
    after = set(zip(users.tolist(), graph.user_indices.tolist(), strict=True))
    assert before < after


def test_frameworks_promax_prefers_the_published_enrichment(tmp_path):
    folder = tmp_path / "s"
    plain = tiny(folder)
    with np.load(folder / "interactions.npz") as archive:
        arrays = dict(archive)
    arrays |= {"train_enriched_indptr": plain.test.indptr, "train_enriched_indices": plain.test.indices}
    np.savez(folder / "interactions.npz", **arrays)
    data = load(folder)
    assert data.enriched_graph.num_edges == plain.test.num_edges
    notes = ProMax().bind(MF(data, dim=8), data).notes
    assert "as published" in notes["enriched graph"]


def test_frameworks_promax_without_profiles_says_so(tmp_path):
    data = tiny(tmp_path / "plain", profiles=False)
    objective = ProMax().bind(LightGCN(data, dim=8), data)
    assert "derived from the training matrix" in objective.notes["profiles"]
    assert all(
        torch.isfinite(term)
        for term in objective.terms(*(x[:20] for x in (*data.train.edges(), torch.ones(20).long()))).values()
    )


def test_frameworks_weights_of_zero_leave_terms_out(data, batch, monkeypatch):
    import prorec_fast.losses as losses

    def refuse(*_, **__):
        raise AssertionError("a term with weight 0 was computed")

    for name in ("distribution_kl", "info_nce", "cross_view_info_nce"):
        monkeypatch.setattr(losses, name, refuse)
    terms = ProMax(sdr_weight=0.0, s2dr_weight=0.0).bind(LightGCN(data, dim=8), data).terms(*batch)
    assert float(terms["sdr"]) == float(terms["s2dr"]) == 0


def test_frameworks_warmup_leaves_the_contrast_out(data, batch):
    model = LightGCN(data, dim=8)
    full = ProMax().bind(model, data).terms(*batch)
    objective = ProMax(warmup_epochs=4).bind(model, data)
    for epoch, share in ((0, 0.0), (3, 0.0), (4, 1.0), (9, 1.0)):
        objective.start_epoch(epoch)
        terms = objective.terms(*batch)
        torch.testing.assert_close(terms["s2dr"], share * full["s2dr"])
        torch.testing.assert_close(terms["sdr"], full["sdr"])


def test_frameworks_joint_whitening_keeps_users_and_items_in_one_space():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(200, 10, generator=generator) * torch.linspace(3, 1, 10)
    users, items = shared, shared + 0.01 * torch.randn(200, 10, generator=generator)
    joint = whitened_profiles(users, items, 6, "joint")
    assert torch.cosine_similarity(*joint).min() > 0.99
    both = torch.cat(joint)
    torch.testing.assert_close(both.T.cov(), torch.eye(6), atol=1e-3, rtol=0)
    separate = whitened_profiles(users, items, 6, "separate")
    for side in separate:
        torch.testing.assert_close(side.T.cov(), torch.eye(6), atol=1e-3, rtol=0)


def test_frameworks_presets():
    assert set(PRESETS) == {"released", "paper"} and set(FRAMEWORKS) == {"none", "proex", "promax"}
    assert (RELEASED.combine, RELEASED.promax.sdr_eps, RELEASED.promax.weight_range) == ("sum", 1e-8, (0.1, 1.0))
    assert (PAPER.combine, PAPER.promax.sdr_eps, PAPER.promax.contrast_eps) == ("mean", 0.0, 0.0)
    assert PAPER.promax.weight_range == (0.0, 1.0)
    assert ProMax() == RELEASED.promax
    assert ProMax.preset("paper", sdr_weight=2.0).sdr_weight == 2.0
    assert ProEx() == RELEASED.proex and ProEx.preset("paper", alpha=0.5) == replace(PAPER.proex, alpha=0.5)
    assert (RELEASED.proex.regularization, RELEASED.proex.variance_weight) == ("uniformity", 10.0)
    assert (PAPER.proex.regularization, PAPER.proex.variance_weight) == ("contrast", 1.0)
    assert PUBLISHED_SETTINGS["proex"]["yelp"] == {"num_environments": 3}
    assert PUBLISHED_SETTINGS["promax"]["amazon_book"] == {"sdr_weight": 1.5, "s2dr_weight": 0.05}
    with pytest.raises(ValueError, match="preset: want one of released, paper"):
        get_preset("other")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sdr_weight", -1.0),
        ("s2dr_weight", float("nan")),
        ("temperature", 0.0),
        ("teacher_temperature", float("inf")),
        ("weight_range", (0.5, 0.1)),
        ("profile_dim", 0),
        ("whitening", "both"),
        ("warmup_epochs", -1),
    ],
)
def test_frameworks_promax_rejects(field, value):
    with pytest.raises(ValueError, match=field):
        ProMax(**{field: value})


def test_frameworks_plain_rejects():
    for reg in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="reg: want a finite number of at least 0"):
            Plain(reg=reg)
