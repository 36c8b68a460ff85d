"""A benchmark's setting, its inputs, and what every benchmark file shares.

A benchmark file has functions `providers(at, ...)` that return {name: callable or why there is none}, the first of them
the definition; cases.py lists them, bench.py and test_cases.py time them.
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
from prorec_fast.cli import bench_options

EAGER = "eager reference"
COMPILED = "torch.compile"
OURS = "ours"
# A folder with an interactions.npz, or of such folders: a graph of a setting's size is taken from there.
DATA = Path(folder) if (folder := os.environ.get("PROREC_FAST_BENCH_DATA")) else None

graphs_of: set[str] = set()  # the data sets whose training edges were asked for; cleared by whoever reads it

Provider = Callable[[], list[Tensor]]


class Unavailable(str):
    """Stands in for a provider that cannot run here: why."""


@dataclass(frozen=True)
class Setting:
    """Sizes, by default Amazon-Book's, on the CPU in float32.

    Attributes:
        distinct_users, distinct_items: in a batch.
        num_similar: other users whose items are a user's candidates.
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
    train_edges: int = 120_464
    enriched_edges: int = 144_663
    test_users: int = 9860
    test_edges: int = 40_106
    profile_width: int = 1536
    num_profiles: int = 4
    num_environments: int = 4
    num_similar: int = 10
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
        """The training edges of a data set of this size, or synthetic ones."""
        sizes = self.num_users, self.num_items, self.train_edges
        file = None if DATA is None else _stored_file(DATA, *sizes)
        graphs_of.add(file.parent.name if file else "synthetic")
        return _stored_graph(file, self.device) if file else _synthetic_graph(*sizes, self.skew, 0, self.device)

    def interactions(self, edges: int, seed: int) -> BipartiteGraph:
        """Other edges with long tails."""
        return _synthetic_graph(self.num_users, self.num_items, edges, 2.0, seed, self.device)


AMAZON_BOOK = Setting()
YELP = replace(
    AMAZON_BOOK, num_users=11_091, num_items=11_010, distinct_users=3032, distinct_items=3103, train_edges=166_620,
    enriched_edges=196_452, test_users=10_593, test_edges=55_436,
)  # fmt: skip
# Steam's own edges are not used: a batch has distinct what uniform draws of the synthetic graph's edges have.
STEAM = replace(
    AMAZON_BOOK, num_users=23_310, num_items=5237, distinct_users=3660, distinct_items=2706, train_edges=316_190,
    enriched_edges=379_428, test_users=22_000, test_edges=105_397,
)  # fmt: skip
# One users x items matrix of a batch has 1.6 GB. Two similar users have 10 million candidates already.
LARGE = replace(
    AMAZON_BOOK, num_users=200_000, num_items=100_000, dim=64, distinct_users=4040, distinct_items=3988,
    train_edges=5_000_000, enriched_edges=6_000_000, test_users=10_000, test_edges=100_000, num_similar=2,
)  # fmt: skip
SIZES = dict(zip(bench_options.SIZES, (AMAZON_BOOK, YELP, STEAM, LARGE), strict=True))
TINY = replace(
    AMAZON_BOOK, num_users=60, num_items=50, dim=8, batch=32, distinct_users=20, distinct_items=18, train_edges=300,
    enriched_edges=360, test_users=40, test_edges=90, profile_width=24,
)  # fmt: skip


@cache
def _stored_file(folder: Path, *sizes: int) -> Path | None:
    """Of numbers of users, items and training edges."""
    for file in (folder / "interactions.npz", *sorted(folder.glob("*/interactions.npz"))):
        if file.exists():
            with np.load(file, allow_pickle=False) as data:
                if (*data["shape"], data["train_indices"].size) == sizes:
                    return file
    return None


@cache
def _stored_graph(file: Path, device: str) -> BipartiteGraph:
    with np.load(file, allow_pickle=False) as data:
        graph = BipartiteGraph.from_csr(data["train_indptr"], data["train_indices"], int(data["shape"][1]))
    return graph.to(torch.device(device))


@cache
def _synthetic_graph(num_users: int, num_items: int, edges: int, skew: float, seed: int, device: str) -> BipartiteGraph:
    """Exactly so many edges."""
    generator = torch.Generator(device).manual_seed(seed)
    order = [torch.randperm(rows, generator=generator, device=device) for rows in (num_users, num_items)]
    keys = torch.empty(0, dtype=torch.int64, device=device)
    while keys.numel() < edges:
        drawn = torch.rand(2, edges - keys.numel() + 1000, generator=generator, device=device) ** skew
        users, items = (rows[(place * rows.numel()).long()] for rows, place in zip(order, drawn, strict=True))
        keys = torch.cat([keys, users * num_items + items]).unique()
    keys = keys[torch.randperm(keys.numel(), generator=generator, device=device)[:edges]]
    return BipartiteGraph.from_edges(keys // num_items, keys % num_items, num_users, num_items)


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


def adam(parameters: list[Tensor], device: str) -> torch.optim.Optimizer:
    """torch's fused Adam for every provider of a step, which stays where it is so that every step is the same."""
    return torch.optim.Adam(parameters, lr=0.0, fused=True, capturable=device == "cuda")


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
