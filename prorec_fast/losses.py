"""Losses as pure functions of tensors: differentiable, on any device, ready to drop into existing PyTorch code.

On the CPU and on CUDA devices, float32, bfloat16 and float16 run compiled kernels that accumulate in float32; float64
and other devices run the plain PyTorch definition in `prorec_fast.reference`. On CUDA devices products of float32 rows
take three passes of TF32, which keeps float32's accuracy, or one where `torch.backends.cuda.matmul.allow_tf32` is set.

Inside an autocast region losses run in float32, as torch's own do: 16-bit inputs are read as float32 and the result is
float32. What has no second derivative says so by name; in float64 everything has one, and can be used with torch.func.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prorec_fast import library  # noqa: F401  (registers the operators that torch.compile traces)
from prorec_fast.explain import explain
from prorec_fast.ops import bpr as _bpr
from prorec_fast.ops import distribution_kl as _distribution_kl
from prorec_fast.ops import environment_bpr as _environment_bpr
from prorec_fast.ops import gaussian_kl as _gaussian_kl
from prorec_fast.ops import info_nce as _info_nce
from prorec_fast.ops import mix_environments as _mix_environments
from prorec_fast.ops import multinomial_nll as _multinomial_nll
from prorec_fast.ops import profile_contrast as _profile_contrast
from prorec_fast.ops.distinct import Distinct
from prorec_fast.ops.distribution_kl import TeacherDistribution
from prorec_fast.reference.environment_bpr import EnvironmentLoss

__all__ = [
    "EnvironmentLoss",
    "TeacherDistribution",
    "bpr",
    "cross_view_info_nce",
    "distribution_kl",
    "environment_bpr",
    "explain",
    "gaussian_kl",
    "info_nce",
    "mix_environments",
    "multinomial_nll",
    "profile_contrast",
]


def distribution_kl(
    user: Tensor,
    item: Tensor,
    teacher_user: Tensor | None = None,
    teacher_item: Tensor | None = None,
    *,
    users: Tensor | None = None,
    count: Tensor | None = None,
    temperature: float = 0.2,
    teacher_temperature: float | None = None,
    divergence: str = "cross_entropy",
    weighting: str | Tensor = "entropy",
    weight_range: tuple[float, float] = (0.1, 1.0),
    eps: float = 0.0,
    normalize: bool = True,
    teacher: TeacherDistribution | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Shapes the student's softmax over all items by a frozen teacher's (ProMax, arXiv 2604.26231, Eq. 12 and 13).

    With s_uj = cos(user_u, item_j) / temperature, q_u = softmax_j s_uj, and likewise p_u of the teacher's tables,
    returns the reduction over users of w_u D(p_u, q_u). Gradients flow to `user` and `item`; the teacher is constant.
    Nothing of size B x N is kept: the extra memory is O((B + N) d).

    Args:
        user: [B, d], or the whole table [M, d] with `users`.
        item: [N, d].
        teacher_user: [B, t], or [M, t] with `users`. With `teacher` its own table, or None.
        teacher_item: [N, t]. With `teacher` its own table, or None.
        users: int64 [B], rows of the user tables; a row may come more than once. Where only one of `user` and the
            teacher's users is a whole table, the other holds the batch's rows, and `users` indexes the whole one.
        count: 0-d int64 in [0, B]: only the first `count` rows of the batch are part of the loss. "mean" divides by
            it, "none" gives 0 for the others, whose entries of `users` are not used beyond being in range. Shapes stay
            the same, so that a CUDA graph can hold batches of any number of distinct users.
        temperature: above 0.
        teacher_temperature: above 0; None is that of `teacher`, or 0.2 without one.
        divergence: "cross_entropy" -sum_j p log q; "kl" KL(p||q); "reverse_kl" KL(q||p); "js" Jensen-Shannon.
        weighting: "entropy" w_u = clamp(1 - H(p_u) / log N, *weight_range), "none", or a tensor [B].
        weight_range: (lo, hi) of the clamp. The paper has none: (0.0, 1.0).
        eps: added to every probability of which a logarithm is taken. The released code has 1e-8, the paper 0.
        normalize: cosines; False takes inner products.
        teacher: a TeacherDistribution in place of the tables, so that its statistics are computed once a run. What is
            given of the teacher beside it has to be its own: the same memory, of which torch.compile sees the shape,
            dtype and device alone. Best leave the tables out.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range, or one that
            contradicts `teacher`; the message names it.
    """
    return _distribution_kl.distribution_kl(
        user, item, teacher_user, teacher_item, users=users, count=count,
        temperature=temperature, teacher_temperature=teacher_temperature, divergence=divergence, weighting=weighting,
        weight_range=weight_range, eps=eps, normalize=normalize, teacher=teacher, reduction=reduction,
    )  # fmt: skip


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    *,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    temperature: float = 0.2,
    normalize: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """In-batch contrast (van den Oord et al., 2018): -log softmax_j(cos(anchor_b, positive_j) / temperature) at j = b.

    Nothing of size B x B is kept. With anchor and positive the same tensor it is the uniformity term of self-contrast.

    Args:
        anchor, positive: [B, d], or tables [M, d] with `rows`; one floating dtype and device.
        rows: int64 [B], the batch as rows of both tables, so that no gathered copy is made.
        count: 0-d int64 in [0, B]: only the first `count` rows of the batch are part of the loss, as anchors and as
            positives. "mean" divides by it and "none" gives 0 for the others.
        temperature: above 0.
        normalize: cosines; False takes inner products.
        symmetric: the mean of both directions.
        eps: -log(share + eps) in place of -log(share). ProMax's released code has 1e-5.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range; the message
            names it.
    """
    return _info_nce.info_nce(
        anchor, positive, rows=rows, count=count, temperature=temperature, normalize=normalize, symmetric=symmetric,
        eps=eps, reduction=reduction,
    )  # fmt: skip


def cross_view_info_nce(
    user_a: Tensor,
    item_a: Tensor,
    user_b: Tensor,
    item_b: Tensor,
    *,
    users: Tensor | Distinct | None = None,
    items: Tensor | Distinct | None = None,
    temperature: float = 0.2,
    reduction: str = "mean",
) -> Tensor:
    """Ties two views of a graph: (info_nce(user_a, item_b) + info_nce(user_b, item_a)) / 2 (ProMax Eq. 14).

    Args:
        user_a, item_a, user_b, item_b: [B, d] each, or whole tables [M, d] and [N, d] with `users` and `items`.
        users, items: int64 [B] each, the batch's pairs. The result is that of the gathered rows, but equal rows are
            counted once, with their multiplicity. What prorec_fast.ops.distinct.distinct found for either serves in its
            place, and is not found again.
        temperature, reduction: as for `info_nce`.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range; the message
            names it.
    """
    return _info_nce.cross_view_info_nce(
        user_a, item_a, user_b, item_b, users=users, items=items, temperature=temperature, reduction=reduction
    )


def multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Any,
    *,
    rows: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """A decoder's last layer and its multinomial likelihood together (Mult-VAE: Liang et al., arXiv 1802.05814, Eq. 2).

    With logits_b = hidden_b weight^T + bias and x_bj the targets' values, returns the reduction over rows of
    sum_j x_bj (logsumexp(logits_b) - logits_bj). Logits exist for a chunk of rows at a time, and become their own
    gradient there. Gradients flow to `hidden`, `weight` and `bias`. 16-bit tables are read as float32, for which the
    CPU, and CUDA devices for float16, copy `weight` once a call.

    Args:
        hidden: [B, h].
        weight: [N, h].
        bias: [N] or None; one floating dtype and device with the two above. An entry of -inf masks an item: its
            probability and its gradient are 0.
        targets: [B, N] as a BipartiteGraph, a torch.sparse_csr tensor or (indptr, indices[, values]), each row's
            indices ascending. Values are finite and at least 0, by default 1, and have no gradient.
        rows: int64 [B]. Row b of the batch has the targets in row rows[b] of `targets`, which is [M, N] then; a row may
            come more than once.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0, as is the loss of a
            row without targets.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range, or values that
            require a gradient; the message names it.
    """
    return _multinomial_nll.multinomial_nll(hidden, weight, bias, targets, rows=rows, reduction=reduction)


def bpr(user: Tensor, positive: Tensor, negative: Tensor, *, reduction: str = "mean") -> Tensor:
    """Bayesian personalised ranking: softplus(<user, negative> - <user, positive>) per row (Rendle et al., 2009).

    Args:
        user, positive, negative: [B, d], one floating dtype and device.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or device; the message names it.
    """
    return _bpr.bpr(user, positive, negative, reduction=reduction)


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
    """BPR in E environments, each its own mixture of K profiles, invariant across them (ProEx, arXiv 2512.00679, Eq. 8,
    12 and 14).

    In environment e a user's row is user_u + sum_k weights_ek user_profiles_ku, an item's likewise, and L_e is the mean
    over the triplets (u, i, j) of softplus(<u, j> - <u, i>), plus alignment_e. The total is the sum of the L_e plus
    variance_weight times their variance. Nothing of size E x B x d is kept, and gradients are added in one order.

    Args:
        user, item: [M, d], [N, d]: whole tables, or just the rows that the triplets name.
        user_profiles, item_profiles: [K, M, d], [K, N, d]; one floating dtype and device with `user` and `item`.
        triplets: int64 [B, 3], or three of [B]: rows of users, positive items and negative items. A row may come more
            than once. Of an empty batch each L_e is 0, plus its alignment.
        weights: [E, K], floating, without a gradient; used in float32. More than 16 profiles or 32 environments run the
            reference.
        variance_weight: of 0 or more. The paper has 1, the released code 10.
        unbiased: divides the variance by E - 1, as the released code does, or else by E. It is 0 for one environment.
        alignment: [E], floating: added to each loss before they are summed and their variance is taken (Eq. 13).

    Returns:
        EnvironmentLoss(total, per_environment [E], variance), each of them differentiable by the four tables and by
        `alignment`.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range, or weights that
            require a gradient; the message names it.
    """
    return _environment_bpr.environment_bpr(
        user, item, user_profiles, item_profiles, triplets, weights, variance_weight=variance_weight, unbiased=unbiased,
        alignment=alignment,
    )  # fmt: skip


def mix_environments(profiles: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights_ek profiles_k for every environment e, in one pass (ProEx, arXiv 2512.00679, Eq. 8 and 9).

    Gradients flow to both, and can be differentiated again.

    Args:
        profiles: [K, ..., d], of any strides: tables of profiles, of means or of variances.
        weights: [E, K]; may be float32 beside 16-bit profiles.

    Returns:
        [E, ..., d] in the dtype of `profiles`.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or device; the message names it.
    """
    return _mix_environments.mix_environments(profiles, weights)


def profile_contrast(
    profiles: Tensor,
    *,
    count: Tensor | None = None,
    temperature: float = 0.2,
    shift: float | None = None,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Keeps one row's K profiles apart (ProEx, arXiv 2512.00679, Eq. 7): for each row
    sum_k log(1 + exp(shift) sum_{k' != k} exp(<c_k, c_k'> / temperature)), which is 0 for K = 1.

    Args:
        profiles: [K, B, d]. On CUDA devices more than 64 of them run the reference.
        count: 0-d int64 in [0, B]: only the first `count` of the B rows are part of the loss. "mean" divides by it and
            "none" gives 0 for the others.
        temperature: above 0.
        shift: 1 / temperature by default, as Eq. 7 is printed. -1 / temperature makes it InfoNCE with unit rows, whose
            positive is the profile itself.
        normalize: cosines in place of inner products, whose exponentials may overflow for long rows. ProEx's
            trainer takes cosines.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range; the message
            names it.
    """
    return _profile_contrast.profile_contrast(
        profiles, count=count, temperature=temperature, shift=shift, normalize=normalize, reduction=reduction
    )


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    beta: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """beta KL(q || N(0, 1)) + (1 - beta) KL(q || N(prior_mean, e^prior_logvar)) per row, where q = N(mean, e^logvar)
    has a diagonal covariance and both are summed over d (ProEx, arXiv 2512.00679, Eq. 11, with ln(prior_sigma / sigma)
    where ln(prior_mean / mean) is printed).

    Accurate relative to itself where q comes close to a prior, and for log-variances in [-30, 20]. Gradients flow to
    all four.

    Args:
        mean, logvar: [B, d].
        prior_mean, prior_logvar: [B, d], both or neither. Without them the first term stands alone, times beta.
        beta: the share of the standard prior, a Python number in [0, 1], which torch.compile and a CUDA graph hold
            fast. A weight that is annealed belongs, as a tensor, outside.
        reduction: "mean", "sum" or "none" (then [B] is returned). The mean of an empty batch is 0.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range; the message names it.
    """
    return _gaussian_kl.gaussian_kl(mean, logvar, prior_mean, prior_logvar, beta=beta, reduction=reduction)
