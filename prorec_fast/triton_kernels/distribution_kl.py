"""distribution_kl for CUDA devices. Tiles of scores live in registers; what is written out is O((B + N) D).

With u a user's row and i_j an item's, and scores and their offsets in base 2, a row's gradient is
    cross_entropy, kl:  scale (sum_j q_j i_j - sum_j p_j i_j)     two softmax sweeps, of which neither needs the other
    any other, or eps:  scale (sum_j h_j i_j - H sum_j q_j i_j)   h = q df/dq, H = sum_j h_j: the second sweep needs q
Then each item gathers its gradient from the users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast.triton_kernels.primitives import (
    CHUNK,
    LN2,
    LOG2E,
    Parts,
    Rows,
    bounded,
    dot_precision,
    finish_rows,
    live_rows,
    load_rows,
    on_device,
    tile_scores,
    unit_rows,
    weighted_rows,
)
from prorec_fast.triton_kernels.softmax_sweep import (
    ABSENT,
    SweepPlan,
    merged_softmax,
    of_one_dtype,
    plan_softmax,
    plan_sweep,
    pointer,
    row_stats,
    softmax_sweep,
)
from prorec_fast.triton_kernels.variants import FLOATS, Variant, pointers, precision, shipped_tiles

_DIVERGENCES = {"cross_entropy": 0, "kl": 0, "reverse_kl": 1, "js": 2}
_ROWS = 16
_ROW_STATS = 6


@triton.jit
def _point(log2_q, log2_p, eps, DIVERGENCE: tl.constexpr, HAS_EPS: tl.constexpr):
    """Of the divergence's summand f(q, p): q, p, f and df/dq."""
    q = tl.exp2(log2_q)
    p = tl.exp2(log2_p)
    if DIVERGENCE == 0:  # f = -p log(q + eps)
        f = -p * tl.log(q + eps)
        slope = -p / (q + eps)
    elif DIVERGENCE == 1:  # f = q log((q + eps) / (p + eps))
        if HAS_EPS:
            ratio = tl.log(q + eps) - tl.log(p + eps)
            slope = ratio + q / (q + eps)
        else:
            ratio = (log2_q - log2_p) * LN2
            slope = ratio  # the second term, 1, cancels against its own sum
        f = q * ratio
    else:  # f = (p log(p/m) + q log(q/m)) / 2, m = (p + q)/2, eps added to each
        if HAS_EPS:
            m = (p + q) * 0.5
            log_m = tl.log(m + eps)
            log_q_m = tl.log(q + eps) - log_m
            log_p_m = tl.log(p + eps) - log_m
            slope = 0.5 * (log_q_m + (q / (q + eps) - m / (m + eps)))
        else:
            d = log2_p - log2_q  # log(q/m) = log 2 - softplus(log p - log q)
            shared = LN2 - tl.log(1.0 + tl.exp2(-tl.abs(d)))
            log_q_m = shared - tl.maximum(d, 0.0) * LN2
            log_p_m = shared - tl.maximum(-d, 0.0) * LN2
            slope = 0.5 * log_q_m
        f = 0.5 * (p * log_p_m + q * log_q_m)
    return q, p, f, slope


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_steps"])
def _distribution_kl_user_kernel(
    x_ptr, y_ptr, teacher_x_ptr, teacher_y_ptr, teacher_lse_ptr, stats_ptr, count_ptr, sums_ptr, parts_ptr,
    num_rows, num_cols, num_steps, scale, teacher_scale, eps,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, BLOCK_T: tl.constexpr,
    TEACHER_COLS: tl.constexpr, DIVERGENCE: tl.constexpr, HAS_EPS: tl.constexpr, GRADIENTS: tl.constexpr,
    HAS_COUNT: tl.constexpr, PRECISION: tl.constexpr, TEACHER_PRECISION: tl.constexpr,
):  # fmt: skip
    """Where q must be known: one part's sums of f, h and p of a tile of users, and sum h i."""
    live = live_rows(count_ptr, num_rows, HAS_COUNT)
    if tl.program_id(0) * BLOCK_B >= live:
        return
    part = tl.program_id(1)
    chunk = tl.program_id(2)
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < live
    x = load_rows(x_ptr, offs_b, mask_b, BLOCK_D, 0, COLS)
    teacher_x = load_rows(teacher_x_ptr, offs_b, mask_b, BLOCK_T, 0, TEACHER_COLS)
    row = stats_ptr + offs_b
    row_top = tl.load(row, mask=mask_b, other=0.0)
    row_log = tl.load(row + num_rows, mask=mask_b, other=0.0)
    if DIVERGENCE == 0:
        # p is needed up to a factor only: the sum of p corrects for the rounding of lse.
        teacher_top = tl.load(teacher_lse_ptr + offs_b, mask=mask_b, other=0.0) * LOG2E
        teacher_log = tl.zeros([BLOCK_B], tl.float32)
    else:
        teacher_top = tl.load(row + 2 * num_rows, mask=mask_b, other=0.0)
        teacher_log = tl.load(row + 3 * num_rows, mask=mask_b, other=0.0)
    acc_f = tl.zeros([BLOCK_B], tl.float32)
    acc_h = tl.zeros([BLOCK_B], tl.float32)
    acc_p = tl.zeros([BLOCK_B], tl.float32)
    acc = tl.zeros([BLOCK_B, COLS], tl.float32)
    for step in range(part * num_steps, tl.minimum((part + 1) * num_steps, tl.cdiv(num_cols, BLOCK_N))):
        offs_n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_cols
        here = mask_n[None, :]
        s, y = tile_scores(x, x_ptr, offs_b, mask_b, y_ptr, offs_n, mask_n, BLOCK_D, COLS, PRECISION)
        t, _ = tile_scores(
            teacher_x, teacher_x_ptr, offs_b, mask_b, teacher_y_ptr, offs_n, mask_n, BLOCK_T, TEACHER_COLS,
            TEACHER_PRECISION,
        )  # fmt: skip
        log2_q = tl.where(here, s * scale - row_top[:, None] - row_log[:, None], ABSENT)
        log2_p = tl.where(here, t * teacher_scale - teacher_top[:, None] - teacher_log[:, None], ABSENT)
        q, p, f, slope = _point(log2_q, log2_p, eps, DIVERGENCE, HAS_EPS)
        h = q * slope
        acc_f += tl.sum(f, 1)
        acc_h += tl.sum(h, 1)
        acc_p += tl.sum(p, 1)
        if GRADIENTS:
            if BLOCK_D > COLS:
                y = load_rows(y_ptr, offs_n, mask_n, BLOCK_D, chunk * COLS, COLS)
            acc = weighted_rows(h, y, acc, PRECISION)
    if chunk == 0:
        at = sums_ptr + part * 3 * num_rows + offs_b
        tl.store(at, acc_f, mask=mask_b)
        tl.store(at + num_rows, acc_h, mask=mask_b)
        tl.store(at + 2 * num_rows, acc_p, mask=mask_b)
    if GRADIENTS:
        cols = chunk * COLS + tl.arange(0, COLS)[None, :]
        at = parts_ptr + (offs_b.to(tl.int64)[:, None] + part * num_rows) * BLOCK_D + cols
        tl.store(at, acc, mask=mask_b[:, None])


@triton.jit(do_not_specialize=["num_rows", "num_parts", "num_second"])
def _distribution_kl_rows_kernel(
    x_ptr, sums_ptr, second_ptr, parts_ptr, teacher_lse_ptr, entropy_ptr, stats_ptr, coefficient_ptr, count_ptr,
    loss_ptr, weights_ptr, num_rows, num_parts, num_second, scale,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, DIVERGENCE: tl.constexpr, DIRECT: tl.constexpr,
    SUBTRACT_ENTROPY: tl.constexpr, GRADIENTS: tl.constexpr, HAS_COUNT: tl.constexpr,
):  # fmt: skip
    """Adds the parts' sums: losses, the parts' weights in the users' gradients, and what the items' sweep needs of a
    row: top, factor, teacher's top, factor (DIRECT), or top, log2 of the sum, the teacher's two, H, coefficient.
    `parts_ptr` is where the second sweep's parts begin."""
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < num_rows
    live_b = offs_b < live_rows(count_ptr, num_rows, HAS_COUNT)
    row = stats_ptr + offs_b
    top, total, _ = merged_softmax(sums_ptr, offs_b, live_b, num_rows, num_parts, BLOCK_B, False)
    if DIRECT:
        teacher_top, teacher_total, _ = merged_softmax(second_ptr, offs_b, live_b, num_rows, num_second, BLOCK_B, False)
        cross = tl.zeros([BLOCK_B], tl.float32)  # sum_j e_j s_j = <u, sum_j e_j i_j>, e the teacher's
        for part in range(num_second):
            along = tl.zeros([BLOCK_B], tl.float32)
            for start in range(0, BLOCK_D, COLS):
                x = load_rows(x_ptr, offs_b, live_b, BLOCK_D, start, COLS).to(tl.float32)
                along += tl.sum(x * load_rows(parts_ptr, offs_b + part * num_rows, live_b, BLOCK_D, start, COLS), 1)
            part_top = tl.load(second_ptr + part * 3 * num_rows + offs_b, mask=live_b, other=0.0)
            cross += along * tl.exp2(part_top - teacher_top)
        loss = (tl.log2(total) + (top - cross * scale / teacher_total)) * LN2
    else:
        loss = tl.zeros([BLOCK_B], tl.float32)
        sum_h = tl.zeros([BLOCK_B], tl.float32)
        sum_p = tl.zeros([BLOCK_B], tl.float32)
        for part in range(num_second):
            at = second_ptr + part * 3 * num_rows + offs_b
            loss += tl.load(at, mask=live_b, other=0.0)
            sum_h += tl.load(at + num_rows, mask=live_b, other=0.0)
            sum_p += tl.load(at + 2 * num_rows, mask=live_b, other=1.0)
        if DIVERGENCE == 0:
            loss /= sum_p
    if SUBTRACT_ENTROPY:
        loss -= tl.load(entropy_ptr + offs_b, mask=live_b, other=0.0)
    tl.store(loss_ptr + offs_b, tl.where(live_b, loss, 0.0), mask=mask_b)
    if GRADIENTS:
        coefficient = tl.load(coefficient_ptr + offs_b, mask=live_b, other=0.0)
        if DIRECT:
            by_q = coefficient / total
            by_second = -coefficient / teacher_total
            tl.store(row, top, mask=live_b)
            tl.store(row + num_rows, by_q, mask=live_b)
            tl.store(row + 2 * num_rows, teacher_top, mask=live_b)
            tl.store(row + 3 * num_rows, by_second, mask=live_b)
        else:
            by_second = coefficient
            if DIVERGENCE == 0:
                by_second /= sum_p
                sum_h /= sum_p
                lse = tl.load(teacher_lse_ptr + offs_b, mask=live_b, other=0.0)
                tl.store(row + 2 * num_rows, lse * LOG2E, mask=live_b)
                tl.store(row + 3 * num_rows, tl.log2(sum_p), mask=live_b)
            by_q = -coefficient * sum_h / total
            tl.store(row + 4 * num_rows, sum_h, mask=live_b)
            tl.store(row + 5 * num_rows, coefficient, mask=live_b)
        for part in range(num_parts):
            part_top = tl.load(sums_ptr + part * 3 * num_rows + offs_b, mask=live_b, other=0.0)
            weight = tl.where(live_b, by_q * tl.exp2(part_top - top), 0.0)
            tl.store(weights_ptr + part * num_rows + offs_b, weight, mask=mask_b)
        for part in range(num_second):
            weight = by_second
            if DIRECT:
                part_top = tl.load(second_ptr + part * 3 * num_rows + offs_b, mask=live_b, other=0.0)
                weight *= tl.exp2(part_top - teacher_top)
            at = weights_ptr + (num_parts + part) * num_rows + offs_b
            tl.store(at, tl.where(live_b, weight, 0.0), mask=mask_b)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_steps"])
def _distribution_kl_item_kernel(
    x_ptr, y_ptr, teacher_x_ptr, teacher_y_ptr, stats_ptr, count_ptr, parts_ptr,
    num_rows, num_cols, num_steps, scale, teacher_scale, eps,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, COLS: tl.constexpr, BLOCK_T: tl.constexpr,
    TEACHER_COLS: tl.constexpr, DIVERGENCE: tl.constexpr, HAS_EPS: tl.constexpr, DIRECT: tl.constexpr,
    HAS_COUNT: tl.constexpr, PRECISION: tl.constexpr, TEACHER_PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_b dL/ds_bj u_b of a tile of items over one part of the users."""
    part = tl.program_id(1)
    chunk = tl.program_id(2)
    live = live_rows(count_ptr, num_rows, HAS_COUNT)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < num_cols
    y = load_rows(y_ptr, offs_n, mask_n, BLOCK_D, 0, COLS)
    teacher_y = load_rows(teacher_y_ptr, offs_n, mask_n, BLOCK_T, 0, TEACHER_COLS)
    acc = tl.zeros([BLOCK_N, COLS], tl.float32)
    for step in range(part * num_steps, tl.minimum((part + 1) * num_steps, tl.cdiv(live, BLOCK_B))):
        offs_b = step * BLOCK_B + tl.arange(0, BLOCK_B)
        mask_b = offs_b < live
        s, x = tile_scores(y, y_ptr, offs_n, mask_n, x_ptr, offs_b, mask_b, BLOCK_D, COLS, PRECISION)
        t, _ = tile_scores(
            teacher_y, teacher_y_ptr, offs_n, mask_n, teacher_x_ptr, offs_b, mask_b, BLOCK_T, TEACHER_COLS,
            TEACHER_PRECISION,
        )  # fmt: skip
        if BLOCK_D > COLS:
            x = load_rows(x_ptr, offs_b, mask_b, BLOCK_D, chunk * COLS, COLS)
        # A row outside the batch has scores and statistics of 0, and so a gradient of 0.
        row = stats_ptr + offs_b
        row_top = tl.load(row, mask=mask_b, other=0.0)[None, :]
        row_second = tl.load(row + num_rows, mask=mask_b, other=0.0)[None, :]
        teacher_top = tl.load(row + 2 * num_rows, mask=mask_b, other=0.0)[None, :]
        teacher_second = tl.load(row + 3 * num_rows, mask=mask_b, other=0.0)[None, :]
        if DIRECT:
            g = tl.exp2(s * scale - row_top) * row_second
            g += tl.exp2(t * teacher_scale - teacher_top) * teacher_second
        else:
            log2_q = s * scale - row_top - row_second
            log2_p = t * teacher_scale - teacher_top - teacher_second
            q, _, _, slope = _point(log2_q, log2_p, eps, DIVERGENCE, HAS_EPS)
            sum_h = tl.load(row + 4 * num_rows, mask=mask_b, other=0.0)[None, :]
            coefficient = tl.load(row + 5 * num_rows, mask=mask_b, other=0.0)[None, :]
            g = q * (slope - sum_h) * coefficient
        acc = weighted_rows(g, x, acc, PRECISION)
    cols = chunk * COLS + tl.arange(0, COLS)[None, :]
    at = parts_ptr + (offs_n.to(tl.int64)[:, None] + part * tl.cast(num_cols, tl.int64)) * BLOCK_D + cols
    tl.store(at, acc, mask=mask_n[:, None])


class _Sweep(NamedTuple):
    """What the sweeps over users and over items share."""

    x: Rows
    y: Rows
    teacher_x: Rows
    teacher_y: Rows
    count: Tensor | None
    scale: float  # times log2 e, as teacher_scale
    teacher_scale: float
    eps: float
    divergence: int

    def options(self, plan: SweepPlan) -> dict[str, object]:
        """The constants that a launch takes by keyword."""
        size, depth, teacher_depth = plan.size, self.x.unit.size(1), self.teacher_x.unit.size(1)
        return dict(
            BLOCK_B=size.block_b, BLOCK_N=size.block_n, BLOCK_D=depth, COLS=min(depth, size.cols),
            BLOCK_T=teacher_depth, TEACHER_COLS=min(teacher_depth, size.cols), DIVERGENCE=self.divergence,
            HAS_EPS=self.eps > 0, HAS_COUNT=self.count is not None, PRECISION=dot_precision(self.x.unit),
            TEACHER_PRECISION=dot_precision(self.teacher_x.unit), num_warps=size.num_warps,
            num_stages=size.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def distribution_kl_cuda(
    user: Tensor,
    item: Tensor,
    users: Tensor | None,
    count: Tensor | None,
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
    *,
    coefficient: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Losses [B] and, with a coefficient [B], the gradients of coefficient . losses by `user` and `item`."""
    rows = user.detach() if users is None else user.detach().index_select(0, users)
    if teacher_rows is not None:
        teacher_user, teacher_lse, teacher_entropy = (
            t.index_select(0, teacher_rows) for t in (teacher_user, teacher_lse, teacher_entropy)
        )
    batch, gradients = rows.size(0), coefficient is not None
    if batch == 0:
        grads = [t.new_zeros(t.shape, dtype=torch.float32) for t in (user, item)]
        return rows.new_zeros(0, dtype=torch.float32), grads if gradients else []
    x, y = unit_rows(rows, item.detach(), normalize=normalize)
    teacher_x, teacher_y = unit_rows(*of_one_dtype(teacher_user, teacher_item), normalize=normalize)
    code = _DIVERGENCES[divergence]
    direct = code == 0 and eps == 0
    scale, teacher_scale = LOG2E.value / temperature, LOG2E.value / teacher_temperature
    sweep = _Sweep(x, y, teacher_x, teacher_y, count, scale, teacher_scale, float(eps), code)
    stats = x.inv_norm.new_empty(_ROW_STATS, batch)

    first = plan_softmax(x, y, y if gradients else None)
    second = plan_softmax(teacher_x, teacher_y, y) if direct else _plan(sweep, x, y, gradients=gradients)
    first_parts = first.num_parts if gradients else 0
    parts = stats.new_empty(first_parts + second.num_parts, batch, y.unit.size(1)) if gradients or direct else stats
    # Where the logarithm of q is taken, the offsets must be small to be exact: the maximum, not a bound of it.
    sums = softmax_sweep(
        first, x, y, count, scale, bounded=direct and bounded(temperature, normalize),
        values=y if gradients else None, parts=parts,
    )  # fmt: skip
    second_parts = parts[first_parts:]
    if direct:
        second_sums = softmax_sweep(
            second, teacher_x, teacher_y, count, teacher_scale, bounded=bounded(teacher_temperature, normalize),
            values=y, parts=second_parts,
        )  # fmt: skip
    else:
        row_stats(sums, count, stats[0], stats[1])
        second_sums = _user_sweep(sweep, second, teacher_lse, stats, second_parts, gradients=gradients)

    loss = stats.new_empty(batch)
    weights = stats.new_empty(first.num_parts + second.num_parts, batch) if gradients else stats
    with on_device(stats):
        _distribution_kl_rows_kernel[(triton.cdiv(batch, _ROWS),)](
            x.unit, sums, second_sums, second_parts, teacher_lse, teacher_entropy, stats, pointer(coefficient, stats),
            pointer(count, stats), loss, weights, batch, first.num_parts, second.num_parts, scale, BLOCK_B=_ROWS,
            BLOCK_D=x.unit.size(1), COLS=min(x.unit.size(1), CHUNK), DIVERGENCE=code, DIRECT=direct,
            SUBTRACT_ENTROPY=divergence == "kl", GRADIENTS=gradients, HAS_COUNT=count is not None, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    if not gradients:
        return loss, []
    grad_user, grad_item = finish_rows(
        x, Parts(parts, weights), y, Parts(_item_sweep(sweep, stats, direct=direct)), normalize=normalize,
        scale=1 / temperature,
    )  # fmt: skip
    if users is not None:
        grad_user = grad_user.new_zeros(user.shape).index_add_(0, users, grad_user)
    return loss, [grad_user, grad_item]


def _plan(sweep: _Sweep, own: Rows, swept: Rows, *, gradients: bool, by_item: bool = False) -> SweepPlan:
    op = "distribution_kl_item" if by_item else "distribution_kl_user"
    return plan_sweep(op, own, swept, sweep.teacher_x, chunks_of=own if gradients else None, by_item=by_item)


def _user_sweep(
    sweep: _Sweep, plan: SweepPlan, teacher_lse: Tensor, stats: Tensor, parts: Tensor, *, gradients: bool
) -> Tensor:
    """Sums [parts, 3, B] of f, h and p; sum h i into `parts` [parts, B, BLOCK_D]."""
    batch, num_items = sweep.x.unit.size(0), sweep.y.unit.size(0)
    if sweep.divergence:
        teacher = plan_softmax(sweep.teacher_x, sweep.teacher_y, None)
        sums = softmax_sweep(teacher, sweep.teacher_x, sweep.teacher_y, sweep.count, sweep.teacher_scale)
        row_stats(sums, sweep.count, stats[2], stats[3])
    sums = stats.new_empty(plan.num_parts, 3, batch)
    with on_device(stats):
        _distribution_kl_user_kernel[plan.grid](
            sweep.x.unit, sweep.y.unit, sweep.teacher_x.unit, sweep.teacher_y.unit, teacher_lse, stats,
            pointer(sweep.count, stats), sums, parts, batch, num_items, plan.num_steps, sweep.scale,
            sweep.teacher_scale, sweep.eps, GRADIENTS=gradients, **sweep.options(plan),
        )  # fmt: skip
    return sums


def _item_sweep(sweep: _Sweep, stats: Tensor, *, direct: bool) -> Tensor:
    """Partial gradients [parts, N, BLOCK_D] of the items."""
    (num_items, depth), batch = sweep.y.unit.shape, sweep.x.unit.size(0)
    plan = _plan(sweep, sweep.y, sweep.x, gradients=True, by_item=True)
    parts = stats.new_empty(plan.num_parts, num_items, depth)
    with on_device(stats):
        _distribution_kl_item_kernel[plan.grid](
            sweep.x.unit, sweep.y.unit, sweep.teacher_x.unit, sweep.teacher_y.unit, stats,
            pointer(sweep.count, stats), parts, batch, num_items, plan.num_steps, sweep.scale, sweep.teacher_scale,
            sweep.eps, DIRECT=direct, **sweep.options(plan),
        )  # fmt: skip
    return parts


def variants(chip: int) -> Iterator[Variant]:
    tables = ("x_ptr", "y_ptr", "teacher_x_ptr", "teacher_y_ptr")
    scalars = {"count_ptr": "*i64", "scale": "fp32", "teacher_scale": "fp32", "eps": "fp32"}
    cross_entropy, js = dict(DIVERGENCE=0, HAS_EPS=True), dict(DIVERGENCE=2, HAS_EPS=True)
    direct = dict(DIVERGENCE=0, HAS_EPS=False)
    for op in ("distribution_kl_user", "distribution_kl_item"):
        for name, depth, size in shipped_tiles(op, chip):
            cols = min(depth, size.cols)
            constants = dict(
                BLOCK_B=size.block_b, BLOCK_N=size.block_n, BLOCK_D=depth, COLS=cols, BLOCK_T=depth, TEACHER_COLS=cols,
                HAS_COUNT=True, PRECISION=precision(name), TEACHER_PRECISION=precision(name),
            )  # fmt: skip
            if op == "distribution_kl_user":
                kernel, forms = _distribution_kl_user_kernel, [cross_entropy | dict(GRADIENTS=True)]
                if name == "fp32":  # of which the others need but a part
                    forms.append(js | dict(GRADIENTS=True))
            else:
                kernel, forms = _distribution_kl_item_kernel, [direct | dict(DIRECT=True)]
                if name == "fp32":
                    forms += [cross_entropy | dict(DIRECT=False), js | dict(DIRECT=False)]
            for form in forms:
                types = pointers(name, *tables) | scalars
                yield Variant(kernel, types, constants | form, size.num_warps, size.num_stages)
    for name in FLOATS:
        for form in (direct | dict(DIRECT=True), js | dict(DIRECT=False)):
            constants = dict(
                BLOCK_B=_ROWS, BLOCK_D=2 * CHUNK, COLS=CHUNK, DIVERGENCE=form["DIVERGENCE"], DIRECT=form["DIRECT"],
                SUBTRACT_ENTROPY=True, GRADIENTS=True, HAS_COUNT=True,
            )  # fmt: skip
            yield Variant(_distribution_kl_rows_kernel, pointers(name, "x_ptr") | scalars, constants)
