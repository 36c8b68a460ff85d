"""What has to be computed and moved, by the formulas of prorec_fast/costs.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from bench_retrieval import candidates
from sizes import Setting

from prorec_fast.costs import FORMULAS, Call, Cost

Calls = list[tuple[str, dict[str, int]]]  # of operations: their names and sizes


def _graph(at: Setting) -> dict[str, int]:
    return {"num_users": at.num_users, "num_items": at.num_items, "num_edges": at.train_edges}


def distribution_kl(at: Setting) -> Calls:
    sizes = {"batch": at.distinct_users, "num_items": at.num_items, "dim": at.dim, "num_users": at.num_users}
    return [("distribution_kl", sizes)]


def teacher_distribution(at: Setting) -> Calls:
    return [("teacher_distribution", {"num_users": at.num_users, "num_items": at.num_items, "dim": at.dim})]


def info_nce(at: Setting) -> Calls:
    return [("info_nce", {"batch": at.distinct_users, "dim": at.dim})]


def cross_view_info_nce(at: Setting) -> Calls:
    distinct = {"distinct_users": at.distinct_users, "distinct_items": at.distinct_items}
    tables = {"num_users": at.num_users, "num_items": at.num_items}
    return [("cross_view_info_nce", {"batch": at.batch, "dim": at.dim, **distinct, **tables})]


def info_nce_blocks(at: Setting) -> Calls:
    return [*info_nce(at), ("info_nce", {"batch": at.distinct_items, "dim": at.dim}), *cross_view_info_nce(at)]


def batch_uniformity(at: Setting) -> Calls:
    sides = (at.distinct_users, at.distinct_items) * at.num_profiles
    return [("info_nce", {"batch": batch, "dim": at.dim}) for batch in sides]


def multinomial_nll(at: Setting) -> Calls:
    targets = at.batch * at.train_edges // at.num_users  # on average
    return [("multinomial_nll", {"batch": at.batch, "num_items": at.num_items, "dim": at.dim, "num_targets": targets})]


def bpr(at: Setting) -> Calls:
    return [("bpr", {"batch": at.batch, "dim": at.dim})]


def environment_bpr(at: Setting, profiles: int = 4, environments: int = 4) -> Calls:
    sizes = {"num_users": at.num_users, "num_items": at.num_items, "dim": at.dim}
    mixed = {"num_profiles": profiles, "num_environments": environments}
    return [("environment_bpr", {"batch": at.batch, **sizes, **mixed})]


def mix_environments(at: Setting, profiles: int = 4, environments: int = 4) -> Calls:
    sizes = {"num_rows": at.batch, "dim": at.dim, "num_profiles": profiles, "num_environments": environments}
    return [("mix_environments", sizes)]


def profile_contrast(at: Setting, profiles: int = 4) -> Calls:
    return [("profile_contrast", {"batch": at.batch, "dim": at.dim, "num_profiles": profiles})]


def gaussian_kl(at: Setting) -> Calls:
    return [("gaussian_kl", {"batch": at.batch, "dim": at.dim})]


def propagate(at: Setting, both: bool = False) -> Calls:
    edges = [at.train_edges, *([at.enriched_edges] if both else [])]
    return [("propagate", {**_graph(at), "num_edges": count, "dim": at.dim}) for count in edges]


def topk(at: Setting, k: int = 20) -> Calls:
    return [("topk", {"batch": at.test_users, "num_items": at.num_items, "dim": at.dim, "k": k})]


def ranking_metrics(at: Setting) -> Calls:
    sizes = {"num_users": at.test_users, "num_items": at.num_items, "num_ranks": 20, "num_truth": at.test_edges}
    return [("ranking_metrics", sizes)]


def sample_negatives(at: Setting) -> Calls:
    return [("sample_negatives", {"batch": at.train_edges, "num_users": at.num_users, "num_edges": at.train_edges})]


@cache
def _num_candidates(at: Setting) -> int:
    return candidates(at).indices.numel()


def candidate_items(at: Setting) -> Calls:
    sizes = {"num_similar": at.num_similar, "num_candidates": _num_candidates(at)}
    return [("candidate_items", {**_graph(at), **sizes})]


def similar_users(at: Setting, dim: int = 384) -> Calls:
    return [("similar_users", {"num_users": at.num_users, "dim": dim, "k": at.num_similar})]


def pair_scores(at: Setting, dim: int = 384) -> Calls:
    return [("pair_scores", {"num_pairs": _num_candidates(at), "num_users": at.num_users, "dim": dim})]


def costs(calls: Calls, at: Setting, backward: bool, dtype: torch.dtype) -> list[tuple[Cost, Cost]]:
    """(the kernels', eager's) of each call."""
    cuda = at.device == "cuda"
    processors = torch.cuda.get_device_properties(at.device).multi_processor_count if cuda else 1
    call = Call(dtype, cuda, backward, torch.get_num_threads(), processors)
    return [FORMULAS[operation](call, **sizes) for operation, sizes in calls]


def eager_memory(calls: Calls, at: Setting, backward: bool, dtype: torch.dtype) -> int:
    """Bytes that eager PyTorch holds at once: for a backward pass of all calls together."""
    held = [eager.memory for _, eager in costs(calls, at, backward, dtype)]
    return sum(held) if backward else max(held)


WORK: dict[str, Callable[..., Calls]] = {
    of.__name__: of
    for of in (
        batch_uniformity, bpr, candidate_items, cross_view_info_nce, distribution_kl, environment_bpr, gaussian_kl,
        info_nce, info_nce_blocks, mix_environments, multinomial_nll, pair_scores, profile_contrast, propagate,
        ranking_metrics, sample_negatives, similar_users, teacher_distribution, topk,
    )
}  # fmt: skip
