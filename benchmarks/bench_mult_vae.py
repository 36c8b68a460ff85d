"""One Mult-VAE step at Amazon-Book's size: encoder, decoder, likelihood over all items, backward, Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from sizes import AMAZON_BOOK, EAGER, OURS, Provider, Setting, adam
from torch import Tensor
from torch.nn.functional import dropout, linear, log_softmax, normalize

from prorec_fast.data import Dataset, Interactions
from prorec_fast.models import MultVAE

# It costs what any other costs and leaves nothing out; with the posterior as narrow as NARROW makes it, providers that
# draw other numbers give the same gradients.
DROPOUT = 1e-9
NARROW = -29.0  # log-variance
KL_WEIGHT = 0.2


def dataset(at: Setting) -> Dataset:
    graph = replace(at, device="cpu").graph()
    rows = Interactions(graph.user_indptr.numpy(), graph.user_indices.numpy())
    return Dataset("benchmark", "benchmark", at.num_users, at.num_items, rows, rows, rows)


def dense_loss(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """As the field's released code writes it, for dense rows x [B, num_items]."""
    hidden = torch.tanh(linear(dropout(normalize(x), DROPOUT), p["input.weight"].T, p["input.bias"]))
    mean, logvar = linear(hidden, p["encoder.weight"], p["encoder.bias"]).chunk(2, dim=1)
    latent = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    hidden = torch.tanh(linear(latent, p["decoder.weight"], p["decoder.bias"]))
    nll = -(log_softmax(linear(hidden, p["output.weight"], p["output.bias"]), dim=1) * x).sum(1).mean()
    return nll - KL_WEIGHT * 0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1).mean()


def providers(at: Setting = AMAZON_BOOK) -> dict[str, Provider]:
    """{name: one step}, each returning the gradients that it hands to Adam."""
    data, users = dataset(at), at.distinct(at.num_users, at.batch, 5)

    def make() -> MultVAE:
        model = MultVAE(data, dropout=DROPOUT, anneal_cap=KL_WEIGHT, anneal_steps=1).to(at.device)
        with torch.no_grad():
            model.encoder.bias[model.dim :] = NARROW
        return model

    def step(parameters: list[Tensor], loss: Callable[[], Tensor]) -> Provider:
        optimizer = adam(parameters, at.device)

        def run() -> list[Tensor]:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
            return [p.grad for p in parameters]

        return run

    exact = make().double() if at.exact else make()
    parameters = dict(exact.named_parameters())
    owners, items = data.train_graph.to(users.device).edges()
    place = torch.full((at.num_users,), -1, device=at.device).scatter_(
        0, users, torch.arange(at.batch, device=at.device)
    )
    chosen = place[owners] >= 0
    entries = place[owners[chosen]], items[chosen]

    def dense_rows() -> Tensor:
        x = torch.zeros(at.batch, at.num_items, dtype=parameters["input.bias"].dtype, device=at.device)
        x[entries] = 1
        return x

    found = {EAGER: step(list(parameters.values()), lambda: dense_loss(parameters, dense_rows()))}
    if at.exact:
        return found
    model = make()
    found[OURS] = step(list(model.parameters()), lambda: sum(model.loss_terms(users).values()))
    return found
