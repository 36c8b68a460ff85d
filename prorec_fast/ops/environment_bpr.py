from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import (
    describe,
    float_matrix,
    float_tables,
    float_vector,
    index_range,
    non_negative_number,
    same_device_and_dtype,
)
from prorec_fast.ops.common import refuse_second_derivative
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference.environment_bpr import EnvironmentLoss
from prorec_fast.reference.environment_bpr import environment_bpr as reference

MAX_PROFILES, MAX_ENVIRONMENTS = 16, 32  # those of csrc/ops/environment_bpr.h; the reference serves more
_WARPS, _BLOCKS = 8, 1024  # of a launch; a warp takes every so many triplets


class Inputs(NamedTuple):
    """What both passes read: the four tables, the columns of the triplets ([B] each), theta and the alignment."""

    user: Tensor
    item: Tensor
    user_profiles: Tensor
    item_profiles: Tensor
    users: Tensor
    positives: Tensor
    negatives: Tensor
    weights: Tensor
    alignment: Tensor | None

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self[:4]


@operation("environment_bpr", float32)
def environment_bpr(
    user: Tensor,
    item: Tensor,
    user_profiles: Tensor,
    item_profiles: Tensor,
    triplets: Tensor | Sequence[Tensor],
    weights: Tensor,
    *,
    variance_weight: float = 1.0,
    unbiased: bool = True,
    alignment: Tensor | None = None,
) -> EnvironmentLoss:
    tables = user, item, user_profiles, item_profiles
    _check(*tables, weights, variance_weight, alignment)
    columns = _columns(triplets, user, item)
    if not _native.runs_on_kernel("cuda", *tables) or not _fits(user, item, weights):
        return reference(
            *tables, columns, weights, variance_weight=variance_weight, unbiased=unbiased, alignment=alignment
        )
    weights = weights.float().contiguous()
    alignment = None if alignment is None else alignment.float().contiguous()
    inputs = Inputs(*tables, *columns, weights, alignment)
    options = float(variance_weight), bool(unbiased)
    if torch.compiler.is_compiling():
        found = torch.ops.prorec_fast.environment_bpr(*inputs, *options)[:3]
    elif torch.is_grad_enabled() and any(t.requires_grad for t in (*tables, alignment) if t is not None):
        found = _EnvironmentBprFunction.apply(options, *inputs)
    else:
        found = environment_bpr_fwd(inputs, *options, gradients=False)[:3]
    return EnvironmentLoss(*(t.to(user.dtype) for t in found))


def _check(user, item, user_profiles, item_profiles, weights, variance_weight, alignment) -> None:
    float_matrix("user", user)
    float_matrix("item", item, cols=user.size(1))
    float_tables("user_profiles", user_profiles, rows=user.size(0), cols=user.size(1))
    float_tables("item_profiles", item_profiles, count=user_profiles.size(0), rows=item.size(0), cols=user.size(1))
    names = "user", "item", "user_profiles", "item_profiles"
    same_device_and_dtype(names, (user, item, user_profiles, item_profiles))
    float_matrix("weights", weights, cols=user_profiles.size(0))
    if weights.size(0) < 1:
        raise ValueError(f"weights: want at least one environment, got {describe(weights)}")
    if weights.requires_grad:
        raise ValueError("weights: have no gradient here; detach them")
    if alignment is not None:
        float_vector("alignment", alignment, size=weights.size(0))
    for name, t in (("weights", weights), ("alignment", alignment)):
        if t is not None and t.device != user.device:
            raise ValueError(f"{name}: want a tensor on {user.device}, got {describe(t)}")
    non_negative_number("variance_weight", variance_weight)


def _columns(triplets: Tensor | Sequence[Tensor], user: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets' users, positives and negatives: [B] each, contiguous, seen to be rows of the tables."""
    if isinstance(triplets, Tensor):
        if triplets.dtype != torch.int64:
            raise TypeError(f"triplets: want an int64 tensor of shape [B, 3], got {describe(triplets)}")
        if triplets.dim() != 2 or triplets.size(1) != 3:
            raise ValueError(f"triplets: want an int64 tensor of shape [B, 3], got {describe(triplets)}")
        columns = triplets.t().contiguous().unbind(0)
    else:
        if not isinstance(triplets, (tuple, list)) or len(triplets) != 3:
            raise TypeError(f"triplets: want a tensor of shape [B, 3] or three of shape [B], got {describe(triplets)}")
        columns = tuple(triplets)
        for n, t in enumerate(columns):
            if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.dim() != 1:
                raise TypeError(f"triplets[{n}]: want a 1-d int64 tensor, got {describe(t)}")
            if t.shape != columns[0].shape:
                raise ValueError(f"triplets[{n}]: want shape {tuple(columns[0].shape)}, got {describe(t)}")
        columns = tuple(t.contiguous() for t in columns)
    for t in columns:
        if t.device != user.device:
            raise ValueError(f"triplets: want them on {user.device}, got {describe(t)}")
    check_range(columns, user, item)
    return columns


def check_range(columns: Sequence[Tensor], user: Tensor, item: Tensor) -> None:
    users, positives, negatives = columns
    index_range("triplets, users", users, user.size(0))
    index_range("triplets, positives", positives, item.size(0))
    index_range("triplets, negatives", negatives, item.size(0))


def _fits(user: Tensor, item: Tensor, weights: Tensor) -> bool:
    known = user.size(0) + item.size(0) < 2**31
    return known and weights.size(0) <= MAX_ENVIRONMENTS and weights.size(1) <= MAX_PROFILES


class Results(NamedTuple):
    """What the forward pass makes, float32: the results, and for the backward pass, which of those reads the losses
    alone, the sigmoids [B, E] and on a device the rows that triplets name (int32, [3, B])."""

    total: Tensor | None
    losses: Tensor
    variance: Tensor | None
    sigmoid: Tensor | None
    keys: Tensor | None


class _EnvironmentBprFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options: tuple[float, bool], *inputs):
        ctx.options = options
        ctx.set_materialize_grads(False)
        results = environment_bpr_fwd(Inputs(*inputs), *options)
        # Not what is not read: the total may be divided in place by as many steps as add their gradients up.
        ctx.save_for_backward(*inputs, results.losses, results.sigmoid, results.keys)
        return results[:3]

    @staticmethod
    def backward(ctx, *grads):
        *inputs, losses, sigmoid, keys = ctx.saved_tensors
        inputs, results = Inputs(*inputs), Results(None, losses, None, sigmoid, keys)
        needs = *ctx.needs_input_grad[1:5], ctx.needs_input_grad[-1]
        with torch.no_grad():
            found = environment_bpr_bwd(inputs, *ctx.options, results, grads, needs)
        of = (*inputs.tables, inputs.alignment, *grads)
        *tables, alignment = refuse_second_derivative("environment_bpr", found, of)
        return None, *tables, *(None,) * 4, alignment


def environment_bpr_fwd(inputs: Inputs, variance_weight: float, unbiased: bool, *, gradients: bool = True) -> Results:
    batch, num_environments = inputs.users.numel(), inputs.weights.size(0)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return inputs.user.new_empty(shape, dtype=dtype)

    on_cuda = _native.on_cuda(inputs.user)
    results = Results(
        empty(),
        empty(num_environments),
        empty(),
        empty(batch, num_environments) if gradients else None,
        empty(3, batch, dtype=torch.int32) if gradients and on_cuda else None,
    )
    _tables, arguments = _arguments(inputs, variance_weight, unbiased, results)
    if on_cuda:
        blocks = max(1, min(-(-batch // _WARPS), _BLOCKS))
        parts = empty(blocks, num_environments, dtype=torch.float64)
        keys = _native.address(results.keys)
        _native.cuda_call(inputs.user, "environment_bpr", arguments, parts.data_ptr(), blocks, keys)
    else:
        _native.extension().environment_bpr(arguments, _native.threads())
    return results


def environment_bpr_bwd(
    inputs: Inputs,
    variance_weight: float,
    unbiased: bool,
    results: Results,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of the four tables and of the alignment, or None where `needs` says so. `grads` are those of the
    first three results, each of which may be None."""
    grads = [None if g is None else g.float().contiguous() for g in grads]
    grad_alignment = inputs.user.new_empty(inputs.weights.size(0), dtype=torch.float32)
    _tables, arguments = _arguments(inputs, variance_weight, unbiased, results)
    arguments = arguments, tuple(map(_native.address, grads)), grad_alignment.data_ptr()
    wanted = [t if need else None for t, need in zip(inputs.tables, needs, strict=False)]
    launch = _bwd_cuda if _native.on_cuda(inputs.user) else _bwd_cpu
    return [*launch(wanted, arguments, results), grad_alignment if needs[4] else None]


def _bwd_cpu(wanted: list[Tensor | None], arguments: tuple, results: Results) -> list[Tensor | None]:
    found = [None if t is None else _native.empty(*t.shape) for t in wanted]
    _native.extension().environment_bpr_bwd(*arguments, tuple(map(_native.address, found)), _native.threads())
    return [None if grad is None else grad.to(t.dtype) for grad, t in zip(found, wanted, strict=True)]


def _bwd_cuda(wanted: list[Tensor | None], arguments: tuple, results: Results) -> list[Tensor | None]:
    found = [None if t is None else t.new_zeros(t.shape) for t in wanted]
    keys, order = results.keys.flatten().sort(stable=True)
    addresses = tuple(map(_native.address, found)), keys.data_ptr(), order.data_ptr()
    _native.cuda_call(results.losses, "environment_bpr_bwd", *arguments, *addresses)
    return found


def _arguments(inputs: Inputs, variance_weight: float, unbiased: bool, results: Results) -> tuple[list[Tensor], tuple]:
    """The tables as the kernels read them, for the caller to keep alive, and the arguments of both passes."""
    user, item, user_profiles, item_profiles = tables = [_native.storable(t) for t in inputs.tables]
    return tables, (
        (_native.matrix(user), _native.tables(user_profiles)),
        (_native.matrix(item), _native.tables(item_profiles)),
        tuple(map(_native.address, inputs[4:7])),
        inputs.users.numel(),
        (inputs.weights.data_ptr(), *inputs.weights.shape),
        _native.address(inputs.alignment),
        variance_weight,
        unbiased,
        tuple(map(_native.address, results[:3])),
        _native.address(results.sigmoid),
    )
