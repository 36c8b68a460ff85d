"""A benchmark's setting, its inputs, and what every benchmark file shares.

A benchmark file has one function `providers(at, ...)` that returns {name: callable}, the first of them the definition;
`test_*` times each under pytest-benchmark after `assert_agree`, and compare.py times them interleaved in one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prorec_fast import BipartiteGraph

EAGER = "eager reference"
COMPILED = "torch.compile"
OURS = "ours"
# A folder with Amazon-Book's interactions.npz; where it is absent, or sizes differ, graphs are synthetic.
DATA = Path(os.environ.get("PROREC_FAST_BENCH_DATA") or Path(__file__).parents[2] / "shared/data/amazon_book")

Provider = Callable[[], list[Tensor]]


class Unavailable(str):
    """Stands in for a provider that cannot run here: why."""


@dataclass(frozen=True)
class Setting:
    """Amazon-Book's sizes, on the CPU in float32.

    Attributes:
        distinct_users, distinct_items: in a batch.
        skew: a node is drawn as the power `skew` of a uniform number, so degrees follow a power law.
        precision: "float32", "tf32" (float32 with TF32 allowed) or "bfloat16".
        exact: the same inputs, converted to float64.
    """

    num_users: int = 11000
    num_items: int = 9332
    dim: int = 32
    batch: int = 4096
    distinct_users: int = 2978
    distinct_items: int = 3028
    train_edges: int = 123_000
    enriched_edges: int = 144_663
    test_users: int = 9860
    test_edges: int = 40_106
    profile_width: int = 1536
    num_profiles: int = 4
    num_environments: int = 4
    skew: float = 1.5
    device: str = "cpu"
    precision: str = "float32"
    exact: bool = False

    def table(self, rows: int, seed: int = 0, dim: int | None = None) -> Tensor:
        shape = (rows, self.dim if dim is None else dim)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        if self.precision == "bfloat16":
            values = values.bfloat16()
        return (values.double() if self.exact else values).requires_grad_()

    def profiles(self, num: int, seed: int = 0) -> Tensor:
        """[num, batch, dim]"""
        return self.table(num * self.batch, seed).detach().view(num, self.batch, self.dim).requires_grad_()

    def distinct(self, rows: int, count: int, seed: int = 0) -> Tensor:
        """`count` distinct sorted rows of `rows`."""
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values.to(self.device)

    def batch_of(self, rows: int, distinct_rows: int, seed: int = 0) -> Tensor:
        """A batch of rows with `distinct_rows` distinct ones."""
        generator = torch.Generator().manual_seed(seed)
        once = self.distinct(rows, distinct_rows, seed).cpu()
        again = once[torch.randint(distinct_rows, (self.batch - distinct_rows,), generator=generator)]
        return torch.cat([once, again])[torch.randperm(self.batch, generator=generator)].to(self.device)

    def graph(self) -> BipartiteGraph:
        """Amazon-Book's training edges, or synthetic ones."""
        graph = _stored_graph(self.device)
        if graph is not None and (graph.num_users, graph.num_items) == (self.num_users, self.num_items):
            return graph
        return _synthetic_graph(self.num_users, self.num_items, self.train_edges, self.skew, 0, self.device)

    def interactions(self, edges: int, seed: int) -> BipartiteGraph:
        """Other edges with long tails."""
        return _synthetic_graph(self.num_users, self.num_items, edges, 2.0, seed, self.device)


AMAZON_BOOK = Setting()
TINY = replace(
    AMAZON_BOOK, num_users=60, num_items=50, dim=8, batch=32, distinct_users=20, distinct_items=18, train_edges=300,
    enriched_edges=360, test_users=40, test_edges=90, profile_width=24,
)  # fmt: skip


@cache
def _stored_graph(device: str) -> BipartiteGraph | None:
    if not (DATA / "interactions.npz").exists():
        return None
    data = np.load(DATA / "interactions.npz", allow_pickle=False)
    graph = BipartiteGraph.from_csr(data["train_indptr"], data["train_indices"], int(data["shape"][1]))
    return graph.to(torch.device(device))


@cache
def _synthetic_graph(num_users: int, num_items: int, edges: int, skew: float, seed: int, device: str) -> BipartiteGraph:
    generator = torch.Generator(device).manual_seed(seed)
    users, items = (
        torch.randperm(rows, generator=generator, device=device)[
            (torch.rand(edges, generator=generator, device=device) ** skew * rows).long()
        ]
        for rows in (num_users, num_items)
    )
    return BipartiteGraph.from_edges(users, items, num_users, num_items)


@contextlib.contextmanager
def precision(at: Setting) -> Iterator[None]:
    """torch's own switch for TF32, for the providers and for the truth."""
    torch.set_float32_matmul_precision("high" if at.precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def compiled(function: Callable) -> Callable:
    """Wrapped when it is first called: torch's compiler takes seconds to import."""
    wrapped = cache(lambda: torch.compile(function, dynamic=False))
    return lambda *arguments, **options: wrapped()(*arguments, **options)


def loss_and_gradients(loss: Callable[[], Tensor], inputs: list[Tensor], backward: bool) -> Provider:
    """What a provider times: the loss, and with `backward` its gradients."""

    def run() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [loss()]
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    return run


def difference(got: list[Tensor], truth: list[Tensor]) -> float:
    """The largest ||got - truth|| / ||truth|| of the outputs; NaN where one is."""
    errors = []
    for a, b in zip(got, truth, strict=True):
        a, b = a.double(), b.double()
        errors.append(((a - b).norm() / b.norm().clamp_min(1e-300)).item())
    return float(np.max(errors))


def assert_agree(providers: dict[str, Provider], tolerance: float = 1e-4) -> None:
    """No speed on red: every provider gives what the first gives."""
    (_, first), *others = providers.items()
    truth = first()
    for name, run in others:
        error = difference(run(), truth)
        assert error < tolerance, f"{name}: differs by {error:.2g}"
