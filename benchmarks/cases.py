"""What is timed. A cell is a case at one size, in one pass and one precision; measure.py measures it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from bench_distribution_kl import CHUNKED
from bench_propagate import CSR
from sizes import COMPILED, SIZES, TINY, Provider, Setting, Unavailable
from torch import Tensor
from work import WORK, Calls

from prorec_fast.cli.bench_options import PASSES

TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}
EVERY_PRECISION = ("float32", "tf32", "bfloat16")
WIDE_AND_NARROW = ("float32", "bfloat16")
FORWARD, BACKWARD = PASSES
PAPERS = ("amazon_book", "yelp", "steam")
ONE = ("amazon_book",)
MILLION = {"num_users": 4096, "num_items": 1_000_000, "dim": 64, "distinct_users": 4096}
DECODER = {"batch": 1024, "dim": 600}  # the last layer of Mult-VAE
HUNDRED_MILLION_EDGES = {
    "num_users": 1_000_000, "num_items": 1_000_000, "dim": 64, "train_edges": 100_000_000, "skew": 2.0
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A benchmark file's function, what it is called with, and where it is timed.

    Attributes:
        operation: one of prorec_fast/costs.py, or something made of several.
        variant: what it has of its own, beside the operation's usual options and sizes.
        setting: fields that differ from the size's.
        passes: those that there are.
        precisions: on a CUDA device.
        compiled: whether torch.compile's providers are timed: a compilation takes many seconds.
        agree: whether providers give the same numbers; else the file's `check` looks at each one's.
        seen: the file's function that makes of results, outside of the time, what is compared.
        least_tolerance: where the precision's own is too narrow.
        instead: how the provider's name begins that gives the truth where the definition in float64 does not fit.
        cpu: whether it is timed on a CPU too.
        rounds: fewer than others, where a provider takes long.
        small: whether the inputs fit in a GPU's L2, so that it matters what is there.
    """

    operation: str
    file: str
    function: str = "providers"
    variant: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = PASSES
    sizes: tuple[str, ...] = tuple(SIZES)
    precisions: tuple[str, ...] = ("float32",)
    compiled: bool = False
    agree: bool = True
    seen: str = ""
    least_tolerance: float = 0.0
    instead: str | None = None
    cpu: bool = True
    rounds: int | None = None
    small: bool = True

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.variant}" if self.variant else self.operation

    def compared(self, at: Setting, results: list[Tensor]) -> list[Tensor]:
        """What is compared of results."""
        return getattr(import_module(self.file), self.seen)(at, results) if self.seen else results


def _variant(of: Case, variant: str, **fields: Any) -> Case:
    return replace(of, variant=variant, **{"sizes": ONE, **fields})


# Where two scores differ by a rounding, either may come first; where a hidden unit's input is a rounding away from 0,
# its slope is one or the other: hence some tolerances.
_SHAPING = Case("distribution_kl", "bench_distribution_kl", precisions=EVERY_PRECISION, compiled=True, instead=CHUNKED)
_BLOCKS = Case(
    "info_nce_blocks", "bench_info_nce", passes=PASSES[1:], sizes=PAPERS, precisions=EVERY_PRECISION, compiled=True
)
_PROPAGATE = Case("propagate", "bench_propagate", precisions=WIDE_AND_NARROW, compiled=True, instead=CSR)
_ENVIRONMENTS = Case("environment_bpr", "bench_environment_bpr", precisions=WIDE_AND_NARROW, compiled=True)
_DECODER = Case("multinomial_nll", "bench_multinomial_nll", setting=DECODER, precisions=EVERY_PRECISION, compiled=True)
_TEACHER = Case("teacher_distribution", "bench_distribution_kl", "teacher_providers", passes=PASSES[:1], compiled=True)
_SIMILAR = Case("similar_users", "bench_retrieval", "similar_users_providers", passes=PASSES[:1], compiled=True,
                seen="similar_users_seen", instead=CHUNKED)  # fmt: skip
_STEP = {"passes": PASSES[1:], "sizes": PAPERS}
_WHOLE = {"passes": PASSES[:1], "sizes": PAPERS}
# Those with aims of their own come first: a device may not be at hand for long.
# fmt: off
CASES: dict[str, Case] = {case.name: case for case in (
    _SHAPING,
    _BLOCKS,
    _PROPAGATE,
    _variant(_PROPAGATE, "both graphs", arguments={"both": True}, compiled=False, cpu=False),
    Case("promax_step", "bench_step", precisions=("float32", "tf32"), **_STEP),
    Case("mult_vae_step", "bench_mult_vae", setting={"batch": 1024}, precisions=("float32", "tf32"), **_STEP),
    Case("profile_mlp", "bench_proex", "head_providers", least_tolerance=2e-3, rounds=5, **_STEP),
    Case("profile_mlp", "bench_proex", "products_providers", "and its products", agree=False, passes=PASSES[1:],
         sizes=ONE),
    Case("batch_uniformity", "bench_proex", "uniformity_providers", **_STEP),
    Case("proex_step", "bench_proex", "step_providers", rounds=5, **_STEP),
    Case("proex_evaluation", "bench_proex", "evaluation_providers", seen="seen", least_tolerance=1e-3, rounds=3,
         **_WHOLE),
    Case("evaluation", "bench_ranking_metrics", "evaluation_providers", precisions=EVERY_PRECISION, seen="seen",
         least_tolerance=1e-3, **_WHOLE),
    Case("topk", "bench_topk", passes=PASSES[:1], precisions=EVERY_PRECISION, compiled=True, seen="seen"),
    Case("sample_negatives", "bench_sample_negatives", passes=PASSES[:1], compiled=True),
    Case("sample_negatives", "bench_sample_negatives", "other_providers", "other samplers", agree=False,
         passes=PASSES[:1], sizes=ONE),
    Case("epoch_batches", "bench_epoch", agree=False, **_WHOLE),
    _variant(_SHAPING, "4096 x 1 million, d 64", passes=PASSES[1:], setting=MILLION, precisions=("tf32", "bfloat16"),
             compiled=False, cpu=False, small=False),
    _variant(_PROPAGATE, "100 million edges, d 64", passes=PASSES[1:], setting=HUNDRED_MILLION_EDGES,
             compiled=False, cpu=False, small=False),
    _variant(_SHAPING, "eps 1e-8", arguments={"eps": 1e-8}, precisions=("float32", "tf32")),
    _variant(_SHAPING, "kl, unweighted", arguments={"divergence": "kl", "weighting": "none"}, cpu=False),
    _variant(_BLOCKS, "eps 0", arguments={"eps": 0.0}),
    *(_variant(_SHAPING, f"d {dim}", setting={"dim": dim}, compiled=False) for dim in (64, 128)),
    *(_variant(_PROPAGATE, f"d {dim}", setting={"dim": dim}, precisions=("float32",), compiled=False)
      for dim in (64, 128)),
    replace(_TEACHER, sizes=PAPERS),
    _variant(_TEACHER, "4096 x 100,000, d 64", setting={"num_users": 4096, "num_items": 100_000, "dim": 64},
             compiled=False, small=False),
    Case("info_nce", "bench_info_nce", "nce_providers", precisions=EVERY_PRECISION, compiled=True),
    Case("cross_view_info_nce", "bench_info_nce", "cross_view_providers", precisions=EVERY_PRECISION, compiled=True),
    Case("bpr", "bench_bpr", compiled=True),
    Case("mix_environments", "bench_mix_environments", precisions=WIDE_AND_NARROW, compiled=True),
    Case("profile_contrast", "bench_profile_contrast", precisions=WIDE_AND_NARROW, compiled=True),
    Case("gaussian_kl", "bench_gaussian_kl", setting={"batch": 1024, "dim": 200}, precisions=WIDE_AND_NARROW,
         compiled=True),
    _DECODER,
    _variant(_DECODER, "200,000 items", setting=DECODER | {"num_items": 200_000}, cpu=False, small=False),
    _ENVIRONMENTS,
    _variant(_ENVIRONMENTS, "d 64, K 8, E 8", arguments={"profiles": 8, "environments": 8}, setting={"dim": 64},
             precisions=("float32",)),
    Case("ranking_metrics", "bench_ranking_metrics", passes=PASSES[:1], compiled=True, seen="seen"),
    Case("candidate_items", "bench_retrieval", "candidate_items_providers", passes=PASSES[:1], compiled=True),
    Case("pair_scores", "bench_retrieval", "pair_scores_providers", passes=PASSES[:1], compiled=True),
    replace(_SIMILAR, sizes=PAPERS),
    _variant(_SIMILAR, "40,000 users", setting={"num_users": 40_000}, compiled=False, small=False),
)}
# fmt: on


@dataclass(frozen=True)
class Cell:
    """A case where it is timed; `size` is one of SIZES, or "tiny"."""

    name: str
    size: str
    passing: str
    precision: str = "float32"
    device: str = "cpu"

    @property
    def case(self) -> Case:
        return CASES[self.name]

    @property
    def at(self) -> Setting:
        base = TINY if self.size == "tiny" else replace(SIZES[self.size], **self.case.setting)
        return replace(base, device=self.device, precision=self.precision)

    @property
    def label(self) -> str:
        parts = (self.name, self.size, self.passing, self.precision.replace("float32", ""))
        return ", ".join(filter(None, parts))

    @property
    def small(self) -> bool:
        return self.case.small and self.size != "large"

    @property
    def calls(self) -> Calls | None:
        """Those of operations with formulas; None where there is more to it."""
        of = WORK.get(self.case.operation)
        if of is None:
            return None
        known = inspect.signature(of).parameters
        return of(self.at, **{key: value for key, value in self.case.arguments.items() if key in known})

    def build(self, at: Setting) -> dict[str, Provider | Unavailable]:
        """The providers; where the case is not for torch.compile, why in place of its."""
        passing = {} if len(self.case.passes) == 1 else {"backward": self.passing == BACKWARD}
        built = getattr(import_module(self.case.file), self.case.function)(at, **self.case.arguments, **passing)
        if self.case.compiled:
            return built
        left = Unavailable("not compiled: it would take long and say no more than other variants")
        return {name: left if COMPILED in name else run for name, run in built.items()}

    def small_build(self) -> dict[str, Provider | Unavailable]:
        """The same for inputs that take no time."""
        return self.build(replace(TINY, device=self.device, precision=self.precision))


def cells(
    operations: list[str] | None = None, sizes: list[str] | None = None, passes: list[str] | None = None,
    device: str = "cpu",
) -> list[Cell]:  # fmt: skip
    """All of some operations or cases, by default of all, at some sizes, by default Amazon-Book's, in some passes, by
    default a case's last; in every precision on a CUDA device and at size "tiny"."""
    found = []
    for name, case in CASES.items():
        if operations and not {name, case.operation} & set(operations):
            continue
        for size in sizes or ONE:
            if size != "tiny" and (size not in case.sizes or (device == "cpu" and not case.cpu)):
                continue
            kinds = case.precisions if device == "cuda" or size == "tiny" else ("float32",)
            which = [p for p in case.passes if p in passes] if passes else case.passes[-1:]
            found += [Cell(name, size, p, kind, device) for p in which for kind in kinds]
    return found
