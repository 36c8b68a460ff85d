"""Every operation called at given sizes, by the library and by the definition, and what torch does in such a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prorec_fast
from prorec_fast import BipartiteGraph, losses, retrieval
from prorec_fast.ops.distribution_kl import teacher_stats
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference import distribution_kl as kl
from prorec_fast.reference.bpr import bpr
from prorec_fast.reference.candidate_items import candidate_items
from prorec_fast.reference.environment_bpr import environment_bpr
from prorec_fast.reference.gaussian_kl import gaussian_kl
from prorec_fast.reference.info_nce import cross_view_info_nce, info_nce
from prorec_fast.reference.mix_environments import mix_environments
from prorec_fast.reference.multinomial_nll import multinomial_nll
from prorec_fast.reference.pair_scores import pair_scores as pair_scores_reference
from prorec_fast.reference.profile_contrast import profile_contrast
from prorec_fast.reference.propagate import propagate
from prorec_fast.reference.ranking_metrics import ranking_metrics
from prorec_fast.reference.sample_negatives import sample_negatives
from prorec_fast.reference.similar_users import similar_users
from prorec_fast.reference.topk import topk


class Made(NamedTuple):
    """An operation's call, ready to run: `leaves` have gradients, `inputs` are all that is read."""

    ours: Callable[[], Any]
    eager: Callable[[], Any]
    leaves: list[Tensor]
    inputs: list[Tensor]
    grad_out: Tensor | list[Tensor] | None = None


def run(made: Made, eager: bool, gradients: bool) -> Any:
    """Results, and gradients with them."""
    function = made.eager if eager else made.ours
    if not (gradients and made.leaves):
        with torch.no_grad():
            return function()
    out = function()
    return out, torch.autograd.grad(out, made.leaves, made.grad_out)


def _table(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def _graph(num_users: int, num_items: int, num_edges: int) -> BipartiteGraph:
    """Exactly so many edges, as many for each user as for any other, give or take one."""
    edges = torch.arange(num_edges)
    users = edges * num_users // num_edges
    step = num_items // (num_edges // num_users + 2)  # an item comes once a user
    return BipartiteGraph.from_edges(users, (131 * users + step * edges) % num_items, num_users, num_items)


def _distinct(size: int, count: int, batch: int) -> Tensor:
    """A batch with `count` distinct rows of `size`."""
    return torch.cat([torch.arange(count), torch.randint(count, (batch - count,))])[torch.randperm(batch)] % size


def make(operation: str, dtype: torch.dtype = torch.float32, **sizes: int) -> Made:
    return globals()[f"make_{operation}"](dtype, **sizes)


def make_distribution_kl(dtype, *, batch, num_items, dim, teacher_dim=None, num_users=None):
    t = teacher_dim or dim
    user, item = _table(num_users or batch, dim, dtype=dtype), _table(num_items, dim, dtype=dtype)
    own = user.detach()[:, :1].expand(-1, t).contiguous(), item.detach()[:, :1].expand(-1, t).contiguous()
    teacher = losses.TeacherDistribution(*own)
    users = None if num_users is None else torch.randperm(num_users)[:batch]
    read = [user[:batch], item, own[0][:batch], own[1], *([] if users is None else [users])]
    return Made(
        lambda: losses.distribution_kl(user, item, None, None, users=users, teacher=teacher),
        lambda: kl.distribution_kl(user, item, *own, users=users),
        [user, item],
        [*read, teacher.lse[:batch], teacher.entropy[:batch]],
    )


def make_teacher_distribution(dtype, *, num_users, num_items, dim):
    user, item = (_table(n, dim, dtype=dtype).detach() for n in (num_users, num_items))

    def eager():
        for rows in user.split(1024):
            t = kl.scores(rows.float(), item.float(), 0.2, True)
            t.logsumexp(1), kl.entropy(t.log_softmax(1))

    return Made(lambda: teacher_stats(user, item, 0.2, True), eager, [], [user, item])


def make_info_nce(dtype, *, batch, dim):
    tables = [_table(batch, dim, dtype=dtype) for _ in range(2)]
    return Made(lambda: losses.info_nce(*tables), lambda: info_nce(*tables), tables, tables)


def make_cross_view_info_nce(
    dtype, *, batch, dim, distinct_users=None, distinct_items=None, num_users=None, num_items=None
):
    distinct_users, distinct_items = distinct_users or batch, distinct_items or batch
    num_users, num_items = num_users or distinct_users, num_items or distinct_items
    tables = [_table(n, dim, dtype=dtype) for n in (num_users, num_items) * 2]
    index = {
        "users": _distinct(num_users, distinct_users, batch),
        "items": _distinct(num_items, distinct_items, batch),
    }
    read = [t[:n] for t, n in zip(tables, (distinct_users, distinct_items) * 2, strict=True)]
    return Made(
        lambda: losses.cross_view_info_nce(*tables, **index),
        lambda: cross_view_info_nce(*tables, **index),
        tables,
        [*read, *index.values()],
    )


def make_multinomial_nll(dtype, *, batch, num_items, dim, num_targets):
    tables = [_table(batch, dim, dtype=dtype), _table(num_items, dim, dtype=dtype), _table(num_items, dtype=dtype)]
    indptr, indices = _graph(batch, num_items, num_targets).csr()
    return Made(
        lambda: losses.multinomial_nll(*tables, (indptr, indices)),
        lambda: multinomial_nll(*tables, (indptr, indices, None)),
        tables,
        [*tables, indptr[:-1], indices],
    )


def make_bpr(dtype, *, batch, dim):
    tables = [_table(batch, dim, dtype=dtype) for _ in range(3)]
    return Made(lambda: losses.bpr(*tables), lambda: bpr(*tables), tables, tables)


def make_environment_bpr(dtype, *, batch, num_users, num_items, dim, num_profiles, num_environments):
    shapes = (num_users,), (num_items,), (num_profiles, num_users), (num_profiles, num_items)
    tables = [_table(*shape, dim, dtype=dtype) for shape in shapes]
    triplets = tuple(torch.randint(n, (batch,)) for n in (num_users, num_items, num_items))
    weights = torch.rand(num_environments, num_profiles)
    return Made(
        lambda: losses.environment_bpr(*tables, triplets, weights).total,
        lambda: environment_bpr(*tables, triplets, weights).total,
        tables,
        [],
    )


def make_mix_environments(dtype, *, num_rows, dim, num_profiles, num_environments):
    profiles, weights = _table(num_profiles, num_rows, dim, dtype=dtype), torch.rand(num_environments, num_profiles)
    grad_out = torch.randn(num_environments, num_rows, dim).to(dtype)
    return Made(
        lambda: losses.mix_environments(profiles, weights),
        lambda: mix_environments(profiles, weights),
        [profiles],
        [profiles],
        grad_out,
    )


def make_profile_contrast(dtype, *, batch, dim, num_profiles):
    profiles = _table(num_profiles, batch, dim, dtype=dtype)
    return Made(
        lambda: losses.profile_contrast(profiles),
        lambda: profile_contrast(profiles),
        [profiles],
        [profiles],
    )


def make_gaussian_kl(dtype, *, batch, dim):
    tables = [_table(batch, dim, dtype=dtype) for _ in range(4)]
    return Made(
        lambda: losses.gaussian_kl(*tables, beta=0.5),
        lambda: gaussian_kl(*tables, beta=0.5),
        tables,
        tables,
    )


def make_propagate(dtype, *, num_users, num_items, num_edges, dim, num_layers):
    graph = _graph(num_users, num_items, num_edges)
    tables = [_table(n, dim, dtype=dtype) for n in (num_users, num_items)]
    grad_out = [torch.randn(n, dim).to(dtype) for n in (num_users, num_items)]
    return Made(
        lambda: prorec_fast.propagate(graph, *tables, num_layers),
        lambda: propagate(graph, *tables, num_layers),
        tables,
        [],
        grad_out,
    )


def make_topk(dtype, *, batch, num_items, dim, k):
    tables = [_table(n, dim, dtype=dtype).detach() for n in (batch, num_items)]
    return Made(lambda: prorec_fast.topk(*tables, k), lambda: topk(*tables, k), [], tables)


def make_ranking_metrics(dtype, *, num_users, num_items, num_ranks, num_truth):
    graph = _graph(num_users, num_items, num_truth)
    items = (torch.arange(num_users)[:, None] + torch.arange(num_ranks) * (num_items // num_ranks)) % num_items
    ks = (num_ranks // 2, num_ranks)
    return Made(
        lambda: prorec_fast.ranking_metrics(items, graph, ks),
        lambda: ranking_metrics(items, graph.csr(), num_items, ks),
        [],
        [items, graph.user_indptr[1:], graph.user_indices],
    )


def make_sample_negatives(dtype, *, batch, num_users, num_edges, num):
    graph, users = _graph(num_users, 1000, num_edges), torch.randint(num_users, (batch,))
    return Made(
        lambda: prorec_fast.sample_negatives(graph, users, num, seed=1),
        lambda: sample_negatives(graph, users, num, seed=torch.tensor(1)),
        [],
        [],
    )


def make_candidate_items(dtype, *, num_users, num_items, num_edges, num_similar, num_candidates):
    graph = _graph(num_users, num_items, num_edges)
    similar = (torch.arange(num_users)[:, None] + 1 + torch.arange(num_similar)) % num_users
    return Made(
        lambda: retrieval.candidate_items(graph, similar),
        lambda: candidate_items(*graph.csr(), num_items, similar),
        [],
        [],
    )


def make_pair_scores(dtype, *, num_pairs, num_users, dim):
    user, item = (_table(num_users, dim, dtype=dtype).detach() for _ in range(2))
    graph = _graph(num_users, num_users, num_pairs)
    return Made(
        lambda: pair_scores(user, item, *graph.csr()),
        lambda: pair_scores_reference(user, item, *graph.csr()),
        [],
        [],
    )


def make_similar_users(dtype, *, num_users, dim, k):
    profiles = _table(num_users, dim, dtype=dtype).detach()
    unit, alone = profiles.float(), torch.arange(num_users)
    return Made(
        lambda: retrieval.similar_users(profiles, k),
        lambda: similar_users(profiles, k),
        [],
        [*[profiles] * 3, unit, unit, alone, alone.int()],
    )


class Counter(TorchDispatchMode):
    """Counts what torch's operations do while it is on.

    Attributes:
        products: 2 for every product of matrices' entries, and for every product of two tensors' that is summed next.
        matrix_products: the former alone.
        read, written: bytes; of a gathered tensor, what is gathered. A view moves nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.matrix_products = self.read = self.written = 0
        self._multiplied: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        inputs, outputs = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in ((args, kwargs), out))
        memory = {t.untyped_storage().data_ptr() for t in inputs}
        is_view = not func._schema.is_mutable and all(t.untyped_storage().data_ptr() in memory for t in outputs)
        if is_view or name in ("empty", "empty_like", "new_empty"):
            return out
        self._count_products(name, inputs, outputs)
        written = sum(map(_bytes, outputs))
        read = sum({t.data_ptr(): _bytes(t) for t in inputs}.values())
        if name in ("zeros", "new_zeros", "zeros_like", "ones_like", "full", "new_full", "full_like", "arange"):
            read = 0
        elif name in ("index", "index_select"):
            read = written + sum(map(_bytes, inputs[1:]))
        elif name.startswith(("index_add", "index_put", "_index_put")):
            read += _bytes(inputs[-1])
        self.read, self.written = self.read + read, self.written + written
        return out

    def _count_products(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            products = 2 * outputs[0].numel() * inputs[-2].size(-1)
            self.matrix_products += products
            self.products += products
        elif name == "mul" and len(inputs) == 2:
            self._multiplied[id(outputs[0])] = outputs[0]
        elif name == "sum" or name.startswith(("index_add", "index_put", "_index_put")):
            self.products += sum(2 * t.numel() for t in inputs if id(t) in self._multiplied)


def _bytes(t: Tensor) -> int:
    """Of the entries that differ in their place: those of an expanded dimension are one."""
    size = t.element_size() if t.numel() else 0
    for length, stride in zip(t.shape, t.stride(), strict=True):
        size *= length if stride else 1
    return size


def peak_of_torch(function: Callable[[], Any]) -> int:
    """The most bytes that torch's own tensors took at once while `function` ran, its results among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del kept
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
