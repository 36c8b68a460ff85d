"""Inputs at Amazon-Book's size, and what every benchmark file shares.

A benchmark file has one function `providers(...)` that returns {name: callable}; `test_*` times each under
pytest-benchmark after `assert_agree`, and compare.py times them interleaved in one process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NUM_USERS, NUM_ITEMS, DIM = 11000, 9332, 32
BATCH, DISTINCT_USERS, DISTINCT_ITEMS = 4096, 2978, 3028  # a batch of Amazon-Book's training edges
EAGER = "eager reference"
COMPILED = "torch.compile"
OURS = "ours"


def table(rows: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def distinct(rows: int, count: int, seed: int = 0) -> Tensor:
    """`count` distinct sorted rows of `rows`."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def batch_of(rows: int, distinct_rows: int, seed: int = 0) -> Tensor:
    """A batch of BATCH rows with `distinct_rows` distinct ones."""
    generator = torch.Generator().manual_seed(seed)
    once = distinct(rows, distinct_rows, seed)
    again = once[torch.randint(distinct_rows, (BATCH - distinct_rows,), generator=generator)]
    return torch.cat([once, again])[torch.randperm(BATCH, generator=generator)]


def loss_and_gradients(loss: Callable[[], Tensor], inputs: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """What a provider times: the loss, and with `backward` its gradients."""

    def run() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [loss()]
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    return run


def assert_agree(providers: dict[str, Callable[[], list[Tensor]]], tolerance: float = 1e-4) -> None:
    """No speed on red: every provider gives what the first gives, relative to its largest entry."""
    (_, first), *others = providers.items()
    truth = first()
    for name, run in others:
        for got, want in zip(run(), truth, strict=True):
            error = ((got - want).abs().max() / want.abs().max()).item()
            assert error < tolerance, f"{name}: differs by {error:.2g}"
