"""What scaling.py lets grow: operations, the axes that matter to each, and what a call there is foretold to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from bench_topk import STOCK
from sizes import AMAZON_BOOK, EAGER, OURS, TINY, Provider, Setting

from prorec_fast.costs import FORMULAS, Call

# About Amazon-Book's, in powers of 2; degrees are alike, so that edges grow without repetitions.
BASE = replace(
    AMAZON_BOOK, num_users=16384, num_items=16384, batch=2048, distinct_users=2048, distinct_items=2048,
    train_edges=131_072, test_users=4096, test_edges=16384, skew=1.0,
)  # fmt: skip
SMALL = replace(TINY, num_users=200, num_items=150, skew=1.0)
AXES: dict[str, Callable[[Setting, int], Setting]] = {
    "N": lambda at, n: replace(at, num_items=n),
    "M": lambda at, n: replace(at, num_users=n, test_users=n, test_edges=4 * n),
    "nodes": lambda at, n: replace(at, num_users=n // 2, num_items=n // 2),
    "edges": lambda at, n: replace(at, train_edges=n),
    "d": lambda at, n: replace(at, dim=n),
    "B": lambda at, n: replace(
        at, batch=n, distinct_users=min(n, at.num_users), distinct_items=min(n, at.num_items)
    ),
    "K": lambda at, n: replace(at, num_profiles=n),
    "E": lambda at, n: replace(at, num_environments=n),
}  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """An operation as it grows.

    Attributes:
        file: the benchmark's, whose providers are measured.
        axes: {axis: (the first value, the last one)}, each value twice the one before.
        calls: the operations of prorec_fast.costs that a call makes, with their sizes.
        setting: fields that differ from BASE's.
        arguments: of the file's `providers`.
        baseline: the provider that ours is beside.
        held: the bytes that the baseline holds where it is not costs' "eager".
    """

    file: str
    axes: dict[str, tuple[int, int]]
    calls: Callable[[Setting], list[tuple[str, dict[str, int]]]]
    setting: dict[str, Any] = field(default_factory=dict)
    arguments: Callable[[Setting], dict[str, Any]] = lambda at: {}
    baseline: str = EAGER
    held: Callable[[Setting], int] | None = None

    def at(self, axis: str, value: int, device: str, tiny: bool) -> Setting:
        base = SMALL if tiny else replace(BASE, **self.setting)
        return AXES[axis](replace(base, device=device), value)

    def values(self, axis: str, tiny: bool) -> list[int]:
        first, last = self.axes[axis]
        if tiny:
            first, last = max(2, first // 64), 4 * max(2, first // 64)
        return [first << step for step in range((last // first).bit_length())]

    def providers(self, at: Setting) -> dict[str, Provider]:
        found = import_module(self.file).providers(at, **self.arguments(at))
        return {name: found[name] for name in (self.baseline, OURS)}

    def foretold(self, at: Setting) -> dict[str, int]:
        """{provider: the most bytes that a call holds beyond its inputs}"""
        call = Call(cuda=at.device == "cuda", threads=torch.get_num_threads())
        costs = [FORMULAS[name](call, **sizes) for name, sizes in self.calls(at)]
        ours, eager = (sum(cost[which].memory for cost in costs) for which in (0, 1))
        return {self.baseline: eager if self.held is None else self.held(at), OURS: ours}


def _tables(at: Setting) -> dict[str, int]:
    return {"num_users": at.num_users, "num_items": at.num_items, "dim": at.dim}


def _info_nce(at: Setting) -> list[tuple[str, dict[str, int]]]:
    views = {"distinct_users": at.distinct_users, "distinct_items": at.distinct_items}
    return [
        ("info_nce", {"batch": at.distinct_users, "dim": at.dim}),
        ("info_nce", {"batch": at.distinct_items, "dim": at.dim}),
        ("cross_view_info_nce", {"batch": at.batch, **_tables(at), **views}),
    ]


def _info_nce_held(at: Setting) -> int:
    """Of all blocks one table of scores, of those between users and items three more when gradients begin; or the
    gradients of whole tables."""
    scores = at.distinct_users**2 + at.distinct_items**2 + 4 * at.batch**2
    return 4 * max(scores + 17 * at.batch * at.dim, 5 * (at.num_users + at.num_items) * at.dim // 2)


def _mixtures(at: Setting) -> dict[str, int]:
    return {"num_profiles": at.num_profiles, "num_environments": at.num_environments}


def _topk_held(at: Setting) -> int:
    return 4 * at.test_users * (at.num_items + at.dim)


GROWTHS: dict[str, Growth] = {
    "distribution_kl": Growth(
        "bench_distribution_kl",
        {"B": (256, 16384), "N": (2048, 1 << 20), "d": (16, 512)},
        lambda at: [("distribution_kl", {"batch": at.distinct_users, **_tables(at)})],
    ),
    "info_nce": Growth("bench_info_nce", {"B": (256, 16384), "d": (16, 512)}, _info_nce, held=_info_nce_held),
    "propagate": Growth(
        "bench_propagate",
        {"edges": (1 << 16, 1 << 24), "nodes": (1 << 14, 1 << 22), "d": (16, 512)},
        lambda at: [("propagate", {"num_edges": at.train_edges, **_tables(at)})],
        {"num_users": 32768, "num_items": 32768, "train_edges": 1 << 18},
    ),
    "environment_bpr": Growth(
        "bench_environment_bpr",
        {"B": (512, 1 << 17), "K": (2, 16), "E": (2, 32), "d": (16, 512)},
        lambda at: [("environment_bpr", {"batch": at.batch, **_tables(at), **_mixtures(at)})],
        arguments=lambda at: {"profiles": at.num_profiles, "environments": at.num_environments},
    ),
    "multinomial_nll": Growth(
        "bench_multinomial_nll",
        {"B": (128, 16384), "N": (2048, 1 << 19)},
        lambda at: [
            (
                "multinomial_nll",
                {"batch": at.batch, "num_items": at.num_items, "dim": at.dim,
                 "num_targets": at.train_edges * at.batch // at.num_users},
            )
        ],
        {"batch": 1024, "dim": 256},
    ),
    "topk": Growth(
        "bench_topk",
        {"M": (1024, 1 << 19), "N": (2048, 1 << 20), "d": (16, 512)},
        lambda at: [("topk", {"batch": at.test_users, "num_items": at.num_items, "dim": at.dim, "k": 20})],
        baseline=STOCK,
        held=_topk_held,
    ),
    "ranking_metrics": Growth(
        "bench_ranking_metrics",
        {"M": (1024, 1 << 18)},
        lambda at: [
            (
                "ranking_metrics",
                {"num_users": at.test_users, "num_items": at.num_items, "num_ranks": 20, "num_truth": at.test_edges},
            )
        ],
        {"num_items": 2048},
    ),
    "sample_negatives": Growth(
        "bench_sample_negatives",
        {"edges": (1 << 14, 1 << 24)},
        lambda at: [
            ("sample_negatives", {"batch": at.train_edges, "num_users": at.num_users, "num_edges": at.train_edges})
        ],
        {"num_users": 32768, "num_items": 32768},
    ),
    "profile_contrast": Growth(
        "bench_profile_contrast",
        {"K": (2, 64)},
        lambda at: [("profile_contrast", {"batch": at.batch, "dim": at.dim, "num_profiles": at.num_profiles})],
        arguments=lambda at: {"profiles": at.num_profiles, "normalize": False},
    ),
    "mix_environments": Growth(
        "bench_mix_environments",
        {"K": (2, 128), "E": (2, 128)},
        lambda at: [("mix_environments", {"num_rows": at.batch, "dim": at.dim, **_mixtures(at)})],
        arguments=lambda at: {"profiles": at.num_profiles, "environments": at.num_environments},
    ),
}  # fmt: skip
