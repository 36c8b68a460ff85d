"""The calls by which every kernel is checked: small, but with tails in every size that kernels cut into tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import prorec_fast
from prorec_fast import losses
from prorec_fast.graph import BipartiteGraph
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.ranking_metrics import METRICS

_USERS, _ITEMS, _DIM, _TEACHER_DIM = 70, 331, 33, 20
_PROFILES, _ENVIRONMENTS = 3, 4
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        operation: its name in backends.CUDA_LANGUAGE.
        form: which of its options, in words.
        tensors: float32 inputs by name; gradients by them are checked where results have any.
        ours, definition: functions of these that return a tensor or several.
        least: the size below which a result is rounding of larger terms that cancel.
        dtypes: which the call is made in.
    """

    operation: str
    form: str
    tensors: dict[str, Tensor]
    ours: Callable[..., Any]
    definition: Callable[..., Any]
    least: float = 1e-30
    dtypes: tuple[torch.dtype, ...] = _FLOATS


class _Inputs:
    """Random numbers on a device, the same on each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def whole(self, *shape: int) -> Tensor:
        """Small integers: every product of rows is exact in any order of summation, and many are equal."""
        return torch.randint(-2, 3, shape, generator=self.generator).float().to(self.device)

    def index(self, size: int, *shape: int) -> Tensor:
        return torch.randint(size, shape, generator=self.generator).to(self.device)

    def graph(self, edges: int = 1500, weighted: bool = False) -> BipartiteGraph:
        """Some nodes have no edges, and the first item has many."""
        users = torch.randint(1, _USERS - 1, (edges,), generator=self.generator)
        items = (torch.rand(edges, generator=self.generator) ** 3 * (_ITEMS - 1)).long()
        weights = torch.rand(edges, generator=self.generator) + 0.1 if weighted else None
        return BipartiteGraph.from_edges(users, items, _USERS, _ITEMS, weights=weights).to(self.device)


def cases(device: torch.device) -> Iterator[Case]:
    """Every operation's, on `device`."""
    for of in (
        _distribution_kl, _teacher_distribution, _info_nce, _cross_view_info_nce, _multinomial_nll, _bpr,
        _environment_bpr, _mix_environments, _profile_contrast, _gaussian_kl, _propagate, _topk, _ranking_metrics,
        _sample_negatives, _candidate_items, _pair_scores,
    ):  # fmt: skip
        yield from of(_Inputs(device))


def _definition(operation: str, file: str | None = None) -> Callable[..., Any]:
    return getattr(import_module(f"prorec_fast.reference.{file or operation}"), operation)


def _loss(operation: str, form: str, tensors: dict[str, Tensor], file: str | None = None, **options: Any) -> Case:
    """A loss that takes the same arguments as its definition."""
    ours, definition = getattr(losses, operation), _definition(operation, file)
    return Case(operation, form, tensors, lambda *t: ours(*t, **options), lambda *t: definition(*t, **options))


def _distribution_kl(inputs: _Inputs) -> Iterator[Case]:
    definition = _definition("distribution_kl")
    tensors = {"user": inputs.normal(_USERS, _DIM), "item": inputs.normal(_ITEMS, _DIM)}
    teacher = inputs.normal(_USERS, _TEACHER_DIM), inputs.normal(_ITEMS, _TEACHER_DIM)
    users = inputs.index(_USERS, 90)

    def case(form: str, **options: Any) -> Case:
        def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda u, i: function(u, i, *(t.to(u.dtype) for t in teacher), **options)

        return Case("distribution_kl", form, tensors, of(losses.distribution_kl), of(definition))

    def cached(user: Tensor, item: Tensor) -> Tensor:
        found = losses.TeacherDistribution(*(t.to(user.dtype) for t in teacher), temperature=0.3)
        return losses.distribution_kl(user, item, users=users, teacher=found)

    def cached_definition(user: Tensor, item: Tensor) -> Tensor:
        return definition(user, item, *(t.to(user.dtype) for t in teacher), users=users, teacher_temperature=0.3)

    yield case("cross entropy", reduction="none")
    yield case("cross entropy, eps 1e-8", eps=1e-8)
    yield case("kl of inner products", divergence="kl", normalize=False, temperature=2.0, weighting="none")
    yield case("reverse_kl", divergence="reverse_kl")
    yield case("js, eps 1e-3", divergence="js", eps=1e-3)
    yield Case("distribution_kl", "a teacher's statistics kept", tensors, cached, cached_definition)


def _teacher_distribution(inputs: _Inputs) -> Iterator[Case]:
    tensors = {"user": inputs.normal(_USERS, _TEACHER_DIM), "item": inputs.normal(_ITEMS, _TEACHER_DIM)}

    def ours(user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        found = losses.TeacherDistribution(user, item, temperature=0.3)
        return found.lse, found.entropy

    def definition(user: Tensor, item: Tensor) -> tuple[Tensor, ...]:
        wide = torch.promote_types(user.dtype, torch.float32)  # which statistics have at least
        t = _definition("scores", "distribution_kl")(user.detach().to(wide), item.detach().to(wide), 0.3, True)
        return t.logsumexp(1), _definition("entropy", "distribution_kl")(t.log_softmax(1))

    yield Case("teacher_distribution", "statistics", tensors, ours, definition)


def _info_nce(inputs: _Inputs) -> Iterator[Case]:
    shared = inputs.normal(130, _DIM)  # so that positives stand out
    tensors = {name: shared + inputs.normal(130, _DIM) for name in ("anchor", "positive")}
    yield _loss("info_nce", "cosines", tensors, reduction="none")
    yield _loss("info_nce", "both directions of inner products, eps 1e-5", tensors, symmetric=True, normalize=False,
                temperature=2.0, eps=1e-5)  # fmt: skip
    yield _loss("info_nce", "some rows", tensors, rows=inputs.index(130, 90))


def _cross_view_info_nce(inputs: _Inputs) -> Iterator[Case]:
    sizes = {"user_a": _USERS, "item_a": _ITEMS, "user_b": _USERS, "item_b": _ITEMS}
    tensors = {name: inputs.normal(size, _DIM) for name, size in sizes.items()}
    batch = {"users": inputs.index(_USERS, 130), "items": inputs.index(_ITEMS // 4, 130)}
    yield _loss("cross_view_info_nce", "repeated rows", tensors, "info_nce", **batch)


def _multinomial_nll(inputs: _Inputs) -> Iterator[Case]:
    graph, values = inputs.graph(), inputs.uniform(1500)
    shapes = {"hidden": (90, _DIM), "weight": (_ITEMS, _DIM), "bias": (_ITEMS,)}
    tensors = {name: inputs.normal(*shape) for name, shape in shapes.items()}
    targets = *graph.csr(), values[: graph.num_edges]
    options = {"targets": targets, "rows": inputs.index(_USERS, 90)}
    yield _loss("multinomial_nll", "targets with values", tensors, **options)


def _bpr(inputs: _Inputs) -> Iterator[Case]:
    tensors = {name: inputs.normal(300, _DIM, scale=0.5) for name in ("user", "positive", "negative")}
    yield _loss("bpr", "rows", tensors, reduction="none")


def _environment_bpr(inputs: _Inputs) -> Iterator[Case]:
    definition = _definition("environment_bpr")
    shapes = {
        "user": (_USERS, _DIM), "item": (_ITEMS, _DIM), "user_profiles": (_PROFILES, _USERS, _DIM),
        "item_profiles": (_PROFILES, _ITEMS, _DIM), "alignment": (_ENVIRONMENTS,),
    }  # fmt: skip
    tensors = {name: inputs.normal(*shape, scale=0.5) for name, shape in shapes.items()}
    triplets = tuple(inputs.index(size, 130) for size in (_USERS, _ITEMS, _ITEMS))
    weights = inputs.uniform(_ENVIRONMENTS, _PROFILES)

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *t: tuple(function(*t[:4], triplets, weights, alignment=t[4]))

    yield Case("environment_bpr", "with an alignment", tensors, of(losses.environment_bpr), of(definition))


def _mix_environments(inputs: _Inputs) -> Iterator[Case]:
    tensors = {
        "profiles": inputs.normal(_PROFILES, 700, _DIM),
        "weights": inputs.uniform(_ENVIRONMENTS + 1, _PROFILES),
    }
    yield _loss("mix_environments", "tables", tensors)


def _profile_contrast(inputs: _Inputs) -> Iterator[Case]:
    tensors = {"profiles": inputs.normal(_PROFILES + 2, 130, _DIM, scale=_DIM**-0.5)}
    yield _loss("profile_contrast", "inner products", tensors, reduction="none")
    yield _loss("profile_contrast", "cosines", tensors, normalize=True)


def _gaussian_kl(inputs: _Inputs) -> Iterator[Case]:
    tensors = {name: inputs.normal(90, _DIM) for name in ("mean", "logvar", "prior_mean", "prior_logvar")}
    yield _loss("gaussian_kl", "with a prior", tensors, beta=0.3, reduction="none")
    yield _loss("gaussian_kl", "alone", {name: tensors[name] for name in ("mean", "logvar")})


def _propagate(inputs: _Inputs) -> Iterator[Case]:
    tensors = {"user": inputs.normal(_USERS, _DIM), "item": inputs.normal(_ITEMS, _DIM)}
    plain, weighted = inputs.graph(), inputs.graph(weighted=True)
    definition = _definition("propagate")

    def case(form: str, graph: BipartiteGraph, **options: Any) -> Case:
        def of(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *t: function(graph, *t, **options)

        return Case("propagate", form, tensors, of(prorec_fast.propagate), of(definition))

    yield case("mean of layers", plain)
    yield case("weighted, self loops, edges dropped", weighted, self_loops=True, keep_prob=0.7, seed=1)
    yield case("layers side by side, with noise", plain, combine="concat", noise=0.2, seed=2)
    yield case("sum of layers, with noise", plain, combine="sum", noise=0.2, seed=3)


def _topk(inputs: _Inputs) -> Iterator[Case]:
    definition = _definition("topk")
    graph, users = inputs.graph(), inputs.index(_USERS, 90)

    def scores(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *t: function(*t, 20, exclude=graph.csr(), users=users)[0]

    def places(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *t: function(*t, 50, exclude=graph.csr())[1]

    shapes = {"user": (_USERS, _DIM), "item": (_ITEMS, _DIM)}
    tables = {name: inputs.normal(*shape) for name, shape in shapes.items()}
    yield Case("topk", "scores", tables, scores(prorec_fast.topk), scores(definition))
    tied = {name: inputs.whole(*shape) for name, shape in shapes.items()}
    yield Case("topk", "order, with ties", tied, places(prorec_fast.topk), places(definition))


def _ranking_metrics(inputs: _Inputs) -> Iterator[Case]:
    graph, ks = inputs.graph(), (5, 20)
    items = inputs.uniform(_USERS, _ITEMS).argsort(1)[:, :20]
    items[3, 7:] = -1  # as topk pads

    def ours() -> list[Tensor]:
        return list(prorec_fast.ranking_metrics(items, graph, ks).values())

    def definition() -> list[Tensor]:
        table = _definition("ranking_metrics")(items, graph.csr(), _ITEMS, ks)
        return [table[k, metric].float() for k in range(len(ks)) for metric in range(len(METRICS))]

    yield Case("ranking_metrics", "two cut-offs", {}, ours, definition, dtypes=_FLOATS[:1])


def _sample_negatives(inputs: _Inputs) -> Iterator[Case]:
    graph, users = inputs.graph(), inputs.index(_USERS, 700)
    for form, popularity in (("uniform", 0.0), ("by popularity", 0.75)):

        def of(function: Callable[..., Any], popularity: float = popularity) -> Callable[..., Any]:
            return lambda: function(graph, users, 3, seed=4, popularity=popularity)

        ours, definition = of(prorec_fast.sample_negatives), of(_definition("sample_negatives"))
        yield Case("sample_negatives", form, {}, ours, definition, dtypes=_FLOATS[:1])


def _candidate_items(inputs: _Inputs) -> Iterator[Case]:
    from prorec_fast import retrieval

    graph, similar = inputs.graph(), inputs.index(_USERS, _USERS, 4)
    similar[5, 2:] = -1

    def definition() -> tuple[Tensor, ...]:
        return _definition("candidate_items")(*graph.csr(), _ITEMS, similar)

    yield Case("candidate_items", "four similar users", {}, lambda: retrieval.candidate_items(graph, similar),
               definition, dtypes=_FLOATS[:1])  # fmt: skip


def _pair_scores(inputs: _Inputs) -> Iterator[Case]:
    graph = inputs.graph()
    tensors = {"user": inputs.normal(_USERS, _DIM), "item": inputs.normal(_ITEMS, _DIM)}

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *t: function(*(x.detach() for x in t), *graph.csr())

    yield Case("pair_scores", "a graph's edges", tensors, of(pair_scores), of(_definition("pair_scores")))
