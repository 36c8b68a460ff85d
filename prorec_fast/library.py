"""torch.library registrations, all in one place: what torch.compile traces in place of the eager autograd functions.

Each differentiable operator returns its result and the gradients that the same pass computes; its backward only scales
them. The eager path never comes here: dispatching through torch.library costs a hundred microseconds a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prorec_fast.ops.bpr import bpr_cpu
from prorec_fast.ops.candidate_items import candidate_items_cpu
from prorec_fast.ops.propagate import propagate_cpu, transposed
from prorec_fast.ops.distribution_kl import distribution_kl_cpu, distribution_kl_rows_cpu
from prorec_fast.ops.distribution_kl import teacher_stats as teacher_stats_cpu
from prorec_fast.ops.ranking_metrics import ranking_metrics_cpu
from prorec_fast.ops.topk import topk_cpu
from prorec_fast.reference.ranking_metrics import METRICS


def _reduced(rows: int, reduction: str, like: Tensor) -> Tensor:
    return like.new_empty((rows,) if reduction == "none" else ())


def _broadcast_rows(grad: Tensor, grad_out: Tensor) -> Tensor:
    """Scales gradient rows by grad_out: 0-d, or one a row."""
    return grad * (grad_out if grad_out.dim() == 0 else grad_out[:, None])


@torch.library.custom_op("prorec_fast::bpr", mutates_args=())
def bpr(user: Tensor, positive: Tensor, negative: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return bpr_cpu(user, positive, negative, reduction, (True, True, True))


@bpr.register_fake
def _(user: Tensor, positive: Tensor, negative: Tensor, reduction: str):
    grads = (user.new_empty(user.shape) for _ in range(3))
    return _reduced(user.size(0), reduction, user), *grads


def _bpr_setup(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _bpr_backward(ctx, grad_out, *_):
    if grad_out is None:
        return None, None, None, None
    return *(_broadcast_rows(grad, grad_out) for grad in ctx.saved_tensors), None


bpr.register_autograd(_bpr_backward, setup_context=_bpr_setup)


@torch.library.custom_op("prorec_fast::teacher_stats", mutates_args=())
def teacher_stats(user: Tensor, item: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor]:
    lse, entropy = teacher_stats_cpu(user, item, temperature, normalize)
    return lse.clone(), entropy.clone()


@teacher_stats.register_fake
def _(user: Tensor, item: Tensor, temperature: float, normalize: bool):
    wide = torch.float64 if user.dtype == torch.float64 else torch.float32
    return tuple(user.new_empty(user.size(0), dtype=wide) for _ in range(2))


@torch.library.custom_op("prorec_fast::distribution_kl", mutates_args=())
def distribution_kl(
    user: Tensor,
    item: Tensor,
    users: Tensor | None,
    teacher_user: Tensor,
    teacher_item: Tensor,
    teacher_rows: Tensor | None,
    teacher_lse: Tensor,
    teacher_entropy: Tensor,
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    eps: float,
    normalize: bool,
    coefficient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """coefficient . loss_rows (0-d), and its gradients by user and item."""
    total, grad_user, grad_item = distribution_kl_cpu(
        user, item, users, teacher_user, teacher_item, teacher_rows, teacher_lse, teacher_entropy, temperature,
        teacher_temperature, divergence, eps, normalize, coefficient,
    )  # fmt: skip
    return total, grad_user, grad_item.clone() if grad_item.untyped_storage().nbytes() != grad_item.nbytes else grad_item


@distribution_kl.register_fake
def _(user, item, *_):
    return user.new_empty(()), user.new_empty(user.shape), item.new_empty(item.shape)


def _total_setup(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)


def _total_backward(ctx, grad_out, *_):
    grads = (None if grad_out is None else g * grad_out for g in ctx.saved_tensors)
    return *grads, *(None,) * (ctx.num_inputs - len(ctx.saved_tensors))


distribution_kl.register_autograd(_total_backward, setup_context=_total_setup)


@torch.library.custom_op("prorec_fast::distribution_kl_rows", mutates_args=())
def distribution_kl_rows(
    user: Tensor,
    item: Tensor,
    users: Tensor | None,
    teacher_user: Tensor,
    teacher_item: Tensor,
    teacher_rows: Tensor | None,
    teacher_lse: Tensor,
    teacher_entropy: Tensor,
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    eps: float,
    normalize: bool,
) -> Tensor:
    """loss_rows [B]; the backward pass is prorec_fast::distribution_kl with grad_out as the coefficient."""
    return distribution_kl_rows_cpu(
        user, item, users, teacher_user, teacher_item, teacher_rows, teacher_lse, teacher_entropy, temperature,
        teacher_temperature, divergence, eps, normalize,
    )  # fmt: skip


@distribution_kl_rows.register_fake
def _(user, item, users, *_):
    return user.new_empty(user.size(0) if users is None else users.size(0))


def _rows_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def _rows_backward(ctx, grad_out):
    _, *grads = torch.ops.prorec_fast.distribution_kl(*ctx.saved_tensors, *ctx.options, grad_out.float())
    return *grads, *(None,) * 11


distribution_kl_rows.register_autograd(_rows_backward, setup_context=_rows_setup)


@torch.library.custom_op("prorec_fast::propagate", mutates_args=())
def propagate(
    user: Tensor,
    item: Tensor,
    user_indptr: Tensor,
    user_indices: Tensor,
    user_values: Tensor | None,
    item_indptr: Tensor,
    item_indices: Tensor,
    item_values: Tensor | None,
    coefficients: Sequence[float],
    layers_in: bool,
    layers_out: bool,
    noise: float,
    keep_prob: float,
    self_loops: bool,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    adjacency = (user_indptr, user_indices, user_values, item_indptr, item_indices, item_values)
    options = (coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed)
    return propagate_cpu(user, item, adjacency, *options)


@propagate.register_fake
def _(user, item, *rest):
    coefficients, layers_in, layers_out = rest[6:9]
    width = user.size(1) // (len(coefficients) if layers_in else 1) * (len(coefficients) if layers_out else 1)
    return user.new_empty(user.size(0), width), item.new_empty(item.size(0), width)


def _propagate_setup(ctx, inputs, output):
    *ctx.adjacency, coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed = inputs[2:]
    ctx.options = transposed((coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed))


def _propagate_backward(ctx, grad_user, grad_item):
    return *propagate(grad_user, grad_item, *ctx.adjacency, *ctx.options), *(None,) * 13


propagate.register_autograd(_propagate_backward, setup_context=_propagate_setup)


@torch.library.custom_op("prorec_fast::topk", mutates_args=())
def topk(
    user: Tensor, item: Tensor, k: int, exclude_indptr: Tensor | None, exclude_indices: Tensor | None, users: Tensor | None
) -> tuple[Tensor, Tensor]:
    return topk_cpu(user, item, k, exclude_indptr, exclude_indices, users)


@topk.register_fake
def _(user, item, k, exclude_indptr, exclude_indices, users):
    shape = (user.size(0) if users is None else users.size(0), k)
    return user.new_empty(shape), user.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("prorec_fast::ranking_metrics", mutates_args=())
def ranking_metrics(items: Tensor, indptr: Tensor, indices: Tensor, num_items: int, ks: Sequence[int]) -> Tensor:
    return ranking_metrics_cpu(items, indptr, indices, num_items, ks)


@ranking_metrics.register_fake
def _(items, indptr, indices, num_items, ks):
    return items.new_empty((len(ks), len(METRICS)), dtype=torch.float64)


@torch.library.custom_op("prorec_fast::candidate_items", mutates_args=())
def candidate_items(
    indptr: Tensor, indices: Tensor, num_items: int, similar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return candidate_items_cpu(indptr, indices, num_items, similar)


@candidate_items.register_fake
def _(indptr, indices, num_items, similar):
    found = torch.library.get_ctx().new_dynamic_size()
    return indptr.new_empty(similar.size(0) + 1), *(indices.new_empty(found) for _ in range(2))
