"""What compare.py times, and one case's measurement."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from bench_distribution_kl import CHUNKED
from sizes import AMAZON_BOOK, OURS, TINY, Provider, Setting, Unavailable, difference, precision
from timing import DeviceClock, WallClock, extra_memory, first_line, summary, time_providers

TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}
EVERY_PRECISION = ("float32", "tf32", "bfloat16")
MILLION = {"num_users": 4096, "num_items": 1_000_000, "dim": 64, "distinct_users": 4096}
DECODER = {"batch": 1024, "dim": 600}  # the last layer of Mult-VAE
HUNDRED_MILLION_EDGES = {
    "num_users": 1_000_000, "num_items": 1_000_000, "dim": 64, "train_edges": 100_000_000, "skew": 2.0
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A benchmark file's function, what it is called with, and in what precisions on a CUDA device.

    Attributes:
        setting: fields that differ from Amazon-Book's.
        compiled: whether torch.compile's providers are timed: a compilation takes many seconds.
        agree: whether providers give the same numbers; else the file's `check` looks at each one's.
        least_tolerance: where the precision's own is too narrow.
        definition: the provider that gives the truth, in float64; by default the first.
        cpu: whether it is timed on a CPU too.
        rounds: fewer than others, where a provider takes long.
        small: whether the inputs fit in a GPU's L2, so that it matters what is there.
    """

    file: str
    function: str = "providers"
    arguments: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("float32",)
    compiled: bool = False
    agree: bool = True
    least_tolerance: float = 0.0
    definition: str | None = None
    cpu: bool = True
    rounds: int | None = None
    small: bool = True


# Those with aims of their own come first: a device may not be at hand for long.
# fmt: off
CASES: dict[str, Case] = {
    "distribution_kl": Case("bench_distribution_kl", precisions=EVERY_PRECISION, compiled=True),
    "four InfoNCE blocks": Case("bench_info_nce", precisions=EVERY_PRECISION, compiled=True),
    "propagate": Case("bench_propagate", precisions=("float32", "bfloat16")),
    "propagate, both graphs": Case(
        "bench_propagate", arguments={"both": True}, precisions=("float32", "bfloat16"), cpu=False
    ),
    "ProMax step": Case("bench_step", precisions=("float32", "tf32")),
    "Mult-VAE step": Case("bench_mult_vae", setting={"batch": 1024}, precisions=("float32", "tf32")),
    # Where two scores differ by a rounding, either may come first.
    # Where a hidden unit's input is a rounding away from 0, its slope is one or the other.
    "profile MLP": Case("bench_proex", "head_providers", least_tolerance=2e-3, rounds=5),
    "profile MLP and its products": Case("bench_proex", "products_providers", agree=False),
    "batch uniformity, 8 blocks": Case("bench_proex", "uniformity_providers"),
    "ProEx step": Case("bench_proex", "step_providers", rounds=5),
    "ProEx evaluation": Case("bench_proex", "evaluation_providers", least_tolerance=1e-3, rounds=3),
    "full-ranking evaluation": Case(
        "bench_ranking_metrics", "evaluation_providers", precisions=EVERY_PRECISION, least_tolerance=1e-3
    ),
    "topk": Case("bench_topk", precisions=EVERY_PRECISION, compiled=True, cpu=False),
    "an epoch's negatives": Case("bench_sample_negatives", cpu=False),
    "an epoch's negatives and batches": Case("bench_epoch", agree=False),
    "distribution_kl, 4096 x 1 million, d 64": Case(
        "bench_distribution_kl", setting=MILLION, precisions=("tf32", "bfloat16"), definition=CHUNKED, cpu=False,
        small=False,
    ),
    "propagate, 100 million edges, d 64": Case(
        "bench_propagate", "large_providers", setting=HUNDRED_MILLION_EDGES, precisions=("float32", "bfloat16"),
        cpu=False, small=False,
    ),
    "propagate forward": Case("bench_propagate", arguments={"backward": False}, cpu=False),
    "distribution_kl, eps 1e-8": Case("bench_distribution_kl", arguments={"eps": 1e-8}, precisions=("float32", "tf32")),
    "distribution_kl, kl, unweighted": Case(
        "bench_distribution_kl", arguments={"divergence": "kl", "weighting": "none"}, precisions=EVERY_PRECISION,
        cpu=False,
    ),
    "four InfoNCE blocks, eps 0": Case(
        "bench_info_nce", arguments={"eps": 0.0}, precisions=EVERY_PRECISION, cpu=False
    ),
    "distribution_kl, d 64": Case("bench_distribution_kl", setting={"dim": 64}, precisions=EVERY_PRECISION),
    "distribution_kl, d 128": Case("bench_distribution_kl", setting={"dim": 128}, precisions=EVERY_PRECISION),
    "propagate, d 64": Case("bench_propagate", setting={"dim": 64}),
    "propagate, d 128": Case("bench_propagate", setting={"dim": 128}),
    "bpr": Case("bench_bpr", compiled=True),
    "mix_environments": Case("bench_mix_environments", precisions=("float32", "bfloat16"), compiled=True),
    "profile_contrast": Case("bench_profile_contrast", precisions=("float32", "bfloat16"), compiled=True),
    "gaussian_kl": Case(
        "bench_gaussian_kl", setting={"batch": 1024, "dim": 200}, precisions=("float32", "bfloat16"), compiled=True
    ),
    "multinomial_nll": Case(
        "bench_multinomial_nll", setting=DECODER, precisions=EVERY_PRECISION, compiled=True
    ),
    "multinomial_nll, 200,000 items": Case(
        "bench_multinomial_nll", setting=DECODER | {"num_items": 200_000}, precisions=EVERY_PRECISION, cpu=False,
        small=False,
    ),
    "environment_bpr": Case("bench_environment_bpr", precisions=("float32", "bfloat16"), compiled=True),
    "environment_bpr, d 64, K 8, E 8": Case(
        "bench_environment_bpr", arguments={"profiles": 8, "environments": 8}, setting={"dim": 64}, compiled=True
    ),
}
# fmt: on


def settings(name: str, device: str, tiny: bool) -> dict[str, Setting]:
    """{result's name: setting} of a case: on a CUDA device, and in a test, one for each precision."""
    case = CASES[name]
    base = TINY if tiny else replace(AMAZON_BOOK, **case.setting)
    if device == "cpu" and not tiny:
        return {name: base}
    at = {p: replace(base, device=device, precision=p) for p in case.precisions}
    return {name if p == "float32" else f"{name}, {p}": setting for p, setting in at.items()}


def measure(name: str, at: Setting, clock: WallClock | DeviceClock, rounds: int) -> dict[str, Any]:
    """{"modes": {mode: {provider: times and rates}}, "extra_mib": {provider: ...}, "skipped": {provider: why}}."""
    case = CASES[name]
    build = getattr(import_module(case.file), case.function)
    if case.compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled in a few forms
    with precision(at):
        built = build(at, **case.arguments)
        if not case.compiled:
            built = {provider: run for provider, run in built.items() if "torch.compile" not in provider}
        skipped = {provider: str(run) for provider, run in built.items() if isinstance(run, Unavailable)}
        found = {provider: run for provider, run in built.items() if provider not in skipped}
        accept = _acceptance(case, build, at)
        found, wrong = _those_that_work(found, accept)
        modes: dict[str, dict[str, dict]] = {}
        rate = _rates(case, at)
        for mode in clock.modes:
            runs, unfit = clock.runs(mode, found)
            runs, others = (runs, {}) if runs is found else _those_that_work(runs, accept)
            times = time_providers(runs, clock, mode, min(rounds, case.rounds or rounds))
            modes[mode] = {provider: {**summary(t), **rate(summary(t)["median_ms"])} for provider, t in times.items()}
            skipped |= {f"{provider} [{mode}]": why for provider, why in (unfit | others).items()}
        extra = {
            provider: extra_memory(run, "cuda" if isinstance(clock, DeviceClock) else "cpu")
            for provider, run in found.items()
        }
    extra_mib = {provider: size / 2**20 for provider, size in extra.items() if size is not None}
    return {"modes": modes, "extra_mib": extra_mib, "skipped": skipped | wrong}


def _acceptance(case: Case, build: Callable, at: Setting) -> Callable[[list], str]:
    """A function that says what is wrong with a provider's results; "" where nothing is."""
    if not case.agree:
        check = import_module(case.file).check

        def accept(results: list) -> str:
            check(at, results)
            return ""

        return accept
    exact = build(replace(at, exact=True), **case.arguments)
    truth = [t.double() for t in exact[case.definition or next(iter(exact))]()]
    tolerance = max(TOLERANCE[at.precision], case.least_tolerance)

    def accept(results: list) -> str:
        error = difference(results, truth)
        return "" if error < tolerance else f"differs from the definition in float64 by {error:.2g}"

    return accept


def _those_that_work(
    found: dict[str, Provider], accept: Callable[[list], str]
) -> tuple[dict[str, Provider], dict[str, str]]:
    """No speed on red. What is ours has to work; another provider is left out, and why is said."""
    working, skipped = {}, {}
    for name, run in found.items():
        try:
            problem = accept(run())
        except torch.OutOfMemoryError as error:
            problem = f"does not fit: {first_line(error)}"
        except Exception as error:
            if name.startswith(OURS):
                raise
            problem = first_line(error)
        if not problem:
            working[name] = run
        elif name.startswith(OURS):
            raise AssertionError(f"{name}: {problem}")
        else:
            skipped[name] = problem
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return working, skipped


def _rates(case: Case, at: Setting) -> Callable[[float], dict[str, float]]:
    """The work that has to be done over the time that it took, where the file counts it."""
    work = getattr(import_module(case.file), "work", None)
    if work is None:
        return lambda milliseconds: {}
    flop, size = work(at, **{key: value for key, value in case.arguments.items() if key in ("backward", "both")})
    return lambda milliseconds: {"tflops": flop / milliseconds / 1e9, "gb_per_s": size / milliseconds / 1e6}
