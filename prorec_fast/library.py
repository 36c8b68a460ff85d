"""torch.library registrations, all in one place: what torch.compile traces in place of the eager autograd functions.

Each differentiable operator returns its result and the gradients that the same pass computes; its backward only scales
them. The eager path never comes here: dispatching through torch.library costs a hundred microseconds a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast.ops import environment_bpr as environment_bpr_op
from prorec_fast.ops.bpr import BPR
from prorec_fast.ops.candidate_items import candidate_items_kernel
from prorec_fast.ops.common import RowLoss, refuse_second_derivative, save_arguments, saved_arguments
from prorec_fast.ops.distribution_kl import DISTRIBUTION_KL
from prorec_fast.ops.distribution_kl import teacher_stats as teacher_stats_kernel
from prorec_fast.ops.gaussian_kl import GAUSSIAN_KL, PRIOR_GAUSSIAN_KL
from prorec_fast.ops.info_nce import CROSS_VIEW_INFO_NCE, INFO_NCE
from prorec_fast.ops.mix_environments import mix_environments_backward, mix_environments_kernel
from prorec_fast.ops.multinomial_nll import MULTINOMIAL_NLL
from prorec_fast.ops.profile_contrast import PROFILE_CONTRAST
from prorec_fast.ops.propagate import propagate_kernel, transposed
from prorec_fast.ops.ranking_metrics import ranking_metrics_kernel
from prorec_fast.ops.sample_negatives import sample_negatives_kernel
from prorec_fast.ops.topk import topk_kernel
from prorec_fast.reference.ranking_metrics import METRICS


def _register_loss(op: RowLoss, arguments: str) -> None:
    """Registers prorec_fast::<name>, which returns coefficient . rows and its gradients, and prorec_fast::<name>_rows,
    each row's loss, whose backward pass is the former with grad_out as the coefficient."""
    count = op.num_inputs

    def total(*values):
        *values, coefficient = values
        result, grads = op.total(*values, coefficient=coefficient)
        return result, *(g if g.untyped_storage().nbytes() == g.nbytes else g.clone() for g in grads)

    def total_fake(*values):
        return values[0].new_empty(()), *(v.new_empty(v.shape, dtype=torch.float32) for v in values[:count])

    def total_setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:count], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.num_arguments, ctx.dtype = len(inputs), inputs[0].dtype

    def total_backward(ctx, grad_out, *_):
        values, grads = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        grads = (None if grad_out is None else (g * grad_out).to(ctx.dtype) for g in grads)
        grads = refuse_second_derivative(op.name, grads, (*values, grad_out))
        return *grads, *(None,) * (ctx.num_arguments - count)

    def rows(*values):
        return op.launch(*values)[0].to(values[0].dtype)

    def rows_fake(*values):
        return values[0].new_empty(op.batch(*values))

    def rows_setup(ctx, inputs, output):
        save_arguments(ctx, inputs)

    def rows_backward(ctx, grad_out):
        values = saved_arguments(ctx)
        _, *grads = getattr(torch.ops.prorec_fast, op.name)(*values, grad_out.float())
        grads = refuse_second_derivative(op.name, (g.to(grad_out.dtype) for g in grads), (*values[:count], grad_out))
        return *grads, *(None,) * (len(values) - count)

    results = ", ".join(["Tensor"] * (1 + count))
    for name, function, schema, fake, setup, backward in (
        (op.name, total, f"({arguments}, Tensor coefficient) -> ({results})", total_fake, total_setup, total_backward),
        (op.name + "_rows", rows, f"({arguments}) -> Tensor", rows_fake, rows_setup, rows_backward),
    ):
        registered = torch.library.custom_op(f"prorec_fast::{name}", function, mutates_args=(), schema=schema)
        registered.register_fake(fake)
        registered.register_autograd(backward, setup_context=setup)


_register_loss(BPR, "Tensor user, Tensor positive, Tensor negative")
_register_loss(
    DISTRIBUTION_KL,
    "Tensor user, Tensor item, Tensor? users, Tensor? count, Tensor teacher_user, Tensor teacher_item, "
    "Tensor? teacher_rows, Tensor teacher_lse, Tensor teacher_entropy, float temperature, float teacher_temperature, "
    "str divergence, float eps, bool normalize",
)
_register_loss(
    INFO_NCE,
    "Tensor anchor, Tensor positive, Tensor? rows, Tensor? count, float temperature, bool normalize, bool symmetric, "
    "float eps",
)
_register_loss(
    CROSS_VIEW_INFO_NCE,
    "Tensor user_a, Tensor item_a, Tensor user_b, Tensor item_b, Tensor? users, Tensor? items, float temperature",
)
_register_loss(
    MULTINOMIAL_NLL,
    "Tensor hidden, Tensor weight, Tensor bias, Tensor? rows, Tensor indptr, Tensor indices, Tensor? values",
)
_register_loss(PROFILE_CONTRAST, "Tensor profiles, float temperature, float shift, bool normalize, Tensor? count")
_register_loss(GAUSSIAN_KL, "Tensor mean, Tensor logvar, float beta")
_register_loss(PRIOR_GAUSSIAN_KL, "Tensor mean, Tensor logvar, Tensor prior_mean, Tensor prior_logvar, float beta")


@torch.library.custom_op("prorec_fast::mix_environments", mutates_args=())
def mix_environments(profiles: Tensor, weights: Tensor) -> Tensor:
    return mix_environments_kernel(profiles, weights)


@mix_environments.register_fake
def _(profiles, weights):
    return profiles.new_empty(weights.size(0), *profiles.shape[1:])


def _mix_environments_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _mix_environments_backward(ctx, grad_out):
    return mix_environments_backward(mix_environments, *ctx.saved_tensors, grad_out, ctx.needs_input_grad)


mix_environments.register_autograd(_mix_environments_backward, setup_context=_mix_environments_setup)


@torch.library.custom_op("prorec_fast::teacher_stats", mutates_args=())
def teacher_stats(user: Tensor, item: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor]:
    lse, entropy = teacher_stats_kernel(user, item, temperature, normalize)
    return lse.clone(), entropy.clone()


@teacher_stats.register_fake
def _(user: Tensor, item: Tensor, temperature: float, normalize: bool):
    wide = torch.float64 if user.dtype == torch.float64 else torch.float32
    return tuple(user.new_empty(user.size(0), dtype=wide) for _ in range(2))


@torch.library.custom_op("prorec_fast::environment_bpr", mutates_args=())
def environment_bpr(
    user: Tensor,
    item: Tensor,
    user_profiles: Tensor,
    item_profiles: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor,
    alignment: Tensor | None,
    variance_weight: float,
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tables = user, item, user_profiles, item_profiles
    environment_bpr_op.check_range((users, positives, negatives), user, item)
    inputs = environment_bpr_op.Inputs(*tables, users, positives, negatives, weights, alignment)
    *results, keys = environment_bpr_op.environment_bpr_fwd(inputs, variance_weight, unbiased)
    return *results, users.new_empty(0, dtype=torch.int32) if keys is None else keys


@environment_bpr.register_fake
def _(user, item, user_profiles, item_profiles, users, positives, negatives, weights, *rest):
    num_environments, batch = weights.size(0), users.size(0)
    shapes = (), (num_environments,), (), (batch, num_environments)
    keys = users.new_empty((3, batch) if _native.on_cuda(user) else (0,), dtype=torch.int32)
    return *(user.new_empty(shape, dtype=torch.float32) for shape in shapes), keys


@torch.library.custom_op("prorec_fast::environment_bpr_bwd", mutates_args=())
def environment_bpr_bwd(
    user: Tensor,
    item: Tensor,
    user_profiles: Tensor,
    item_profiles: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor,
    alignment: Tensor | None,
    variance_weight: float,
    unbiased: bool,
    losses: Tensor,
    sigmoid: Tensor,
    keys: Tensor,
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_variance: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tables = user, item, user_profiles, item_profiles
    inputs = environment_bpr_op.Inputs(*tables, users, positives, negatives, weights, alignment)
    results = environment_bpr_op.Results(None, losses, None, sigmoid, keys)
    grads = grad_total, grad_losses, grad_variance
    found = environment_bpr_op.environment_bpr_bwd(inputs, variance_weight, unbiased, results, grads, needs)
    return tuple(user.new_empty(0) if grad is None else grad for grad in found)


@environment_bpr_bwd.register_fake
def _(user, item, user_profiles, item_profiles, users, positives, negatives, weights, *rest):
    *needs, alignment = rest[-1]
    tables = user, item, user_profiles, item_profiles
    shapes = (t.shape if need else (0,) for t, need in zip(tables, needs, strict=True))
    losses = weights.new_empty(weights.size(0), dtype=torch.float32) if alignment else user.new_empty(0)
    return *(user.new_empty(shape) for shape in shapes), losses


def _environment_bpr_setup(ctx, inputs, output):
    *tensors, ctx.variance_weight, ctx.unbiased = inputs
    ctx.save_for_backward(*tensors, output[1], *output[3:])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _environment_bpr_backward(ctx, *grads):
    needs = [*ctx.needs_input_grad[:4], ctx.needs_input_grad[8]]
    *inputs, losses, sigmoid, keys = ctx.saved_tensors
    options = ctx.variance_weight, ctx.unbiased
    found = environment_bpr_bwd(*inputs, *options, losses, sigmoid, keys, *grads[:3], needs)
    found = (grad if need else None for grad, need in zip(found, needs, strict=True))
    of = (*inputs[:4], inputs[8], *grads[:3])
    *tables, alignment = refuse_second_derivative("environment_bpr", found, of)
    return *tables, *(None,) * 4, alignment, None, None


environment_bpr.register_autograd(_environment_bpr_backward, setup_context=_environment_bpr_setup)


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
    user_segments: Tensor | None,
    item_segments: Tensor | None,
    coefficients: Sequence[float],
    layers_in: bool,
    layers_out: bool,
    noise: float,
    keep_prob: float,
    self_loops: bool,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows = (user_indptr, user_indices, user_values, item_indptr, item_indices, item_values)
    options = (coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed)
    return propagate_kernel(user, item, (*rows, user_segments, item_segments), *options)


@propagate.register_fake
def _(user, item, *rest):
    coefficients, layers_in, layers_out = rest[8:11]
    width = user.size(1) // (len(coefficients) if layers_in else 1) * (len(coefficients) if layers_out else 1)
    return user.new_empty(user.size(0), width), item.new_empty(item.size(0), width)


def _propagate_setup(ctx, inputs, output):
    *ctx.adjacency, coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed = inputs[2:]
    ctx.options = transposed((coefficients, layers_in, layers_out, noise, keep_prob, self_loops, seed))


def _propagate_backward(ctx, grad_user, grad_item):
    return *propagate(grad_user, grad_item, *ctx.adjacency, *ctx.options), *(None,) * 15


propagate.register_autograd(_propagate_backward, setup_context=_propagate_setup)


@torch.library.custom_op("prorec_fast::topk", mutates_args=())
def topk(
    user: Tensor, item: Tensor, k: int, indptr: Tensor | None, indices: Tensor | None, users: Tensor | None
) -> tuple[Tensor, Tensor]:
    return topk_kernel(user, item, k, indptr, indices, users)


@topk.register_fake
def _(user, item, k, indptr, indices, users):
    shape = (user.size(0) if users is None else users.size(0), k)
    return user.new_empty(shape), user.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("prorec_fast::ranking_metrics", mutates_args=())
def ranking_metrics(items: Tensor, indptr: Tensor, indices: Tensor, num_items: int, ks: Sequence[int]) -> Tensor:
    return ranking_metrics_kernel(items, indptr, indices, num_items, ks)


@ranking_metrics.register_fake
def _(items, indptr, indices, num_items, ks):
    return items.new_empty((len(ks), len(METRICS)), dtype=torch.float64)


@torch.library.custom_op("prorec_fast::candidate_items", mutates_args=())
def candidate_items(indptr: Tensor, indices: Tensor, num_items: int, similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return candidate_items_kernel(indptr, indices, num_items, similar)


@candidate_items.register_fake
def _(indptr, indices, num_items, similar):
    found = torch.library.get_ctx().new_dynamic_size()
    return indptr.new_empty(similar.size(0) + 1), *(indices.new_empty(found) for _ in range(2))


@torch.library.custom_op("prorec_fast::sample_negatives", mutates_args=())
def sample_negatives(
    indptr: Tensor,
    indices: Tensor,
    num_items: int,
    users: Tensor,
    num: int,
    seed: Tensor,
    cumulative: Tensor | None,
    place: Tensor | None,
    may_fail: bool = True,
) -> Tensor:
    return sample_negatives_kernel(indptr, indices, num_items, users, num, seed, cumulative, place, may_fail)


@sample_negatives.register_fake
def _(indptr, indices, num_items, users, num, seed, cumulative, place, may_fail=True):
    return users.new_empty(users.size(0), num)
