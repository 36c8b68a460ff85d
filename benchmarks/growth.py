"""What scaling.py lets grow: operations, the axes that matter to each, and what a call there is foretold to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from bench_topk import STOCK
from sizes import AMAZON_BOOK, EAGER, OURS, TINY, Provider, Setting
from work import WORK, costs

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
        operation: one of work.py's.
        axes: {axis: (the first value, the last one)}, each value twice the one before.
        setting: fields that differ from BASE's.
        arguments: {an argument of the benchmark's function: the field of a setting that is passed}.
        function: of the operation's benchmark file, whose providers are measured.
        baseline: the provider that ours is beside.
        held: the bytes that the baseline holds where it is not costs' "eager".
    """

    operation: str
    axes: dict[str, tuple[int, int]]
    setting: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    function: str = "providers"
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
        build = getattr(import_module(f"bench_{self.operation}"), self.function)
        found = build(at, **self._passed(at))
        return {name: found[name] for name in (self.baseline, OURS)}

    def foretold(self, at: Setting) -> dict[str, int]:
        """{provider: the most bytes that a call holds beyond its inputs}"""
        ((ours, eager),) = costs(WORK[self.operation](at, **self._passed(at)), at, True, torch.float32)
        return {self.baseline: eager.memory if self.held is None else self.held(at), OURS: ours.memory}

    def _passed(self, at: Setting) -> dict[str, Any]:
        return {argument: getattr(at, name) for argument, name in self.arguments.items()}


def _scores_of_all_users(at: Setting) -> int:
    return 4 * at.test_users * (at.num_items + at.dim)


_MIXTURES = {"profiles": "num_profiles", "environments": "num_environments"}
GROWTHS: dict[str, Growth] = {growth.operation: growth for growth in (
    Growth("distribution_kl", {"B": (256, 16384), "N": (2048, 1 << 20), "d": (16, 512)}),
    Growth("info_nce", {"B": (256, 16384), "d": (16, 512)}, function="nce_providers"),
    Growth(
        "propagate", {"edges": (1 << 16, 1 << 24), "nodes": (1 << 14, 1 << 22), "d": (16, 512)},
        {"num_users": 32768, "num_items": 32768, "train_edges": 1 << 18},
    ),
    Growth(
        "environment_bpr", {"B": (512, 1 << 17), "K": (2, 16), "E": (2, 32), "d": (16, 512)}, arguments=_MIXTURES
    ),
    Growth("multinomial_nll", {"B": (128, 16384), "N": (2048, 1 << 19)}, {"batch": 1024, "dim": 256}),
    Growth(
        "topk", {"M": (1024, 1 << 19), "N": (2048, 1 << 20), "d": (16, 512)}, baseline=STOCK, held=_scores_of_all_users
    ),
    Growth("ranking_metrics", {"M": (1024, 1 << 18)}, {"num_items": 2048}),
    Growth("sample_negatives", {"edges": (1 << 14, 1 << 24)}, {"num_users": 32768, "num_items": 32768}),
    Growth("profile_contrast", {"K": (2, 64)}, arguments={"profiles": "num_profiles"}),
    Growth("mix_environments", {"K": (2, 128), "E": (2, 128)}, arguments=_MIXTURES),
)}  # fmt: skip
