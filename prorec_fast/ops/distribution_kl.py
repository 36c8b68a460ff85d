from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from prorec_fast import _checks, _native
from prorec_fast._checks import float_matrix, index_vector, one_of, row_count, same_device_and_dtype
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.operation import float32, operation, widest
from prorec_fast.reference import distribution_kl as reference

DIVERGENCES = ("cross_entropy", "kl", "reverse_kl", "js")
_TEMPERATURE = 0.2  # of a teacher that has none of its own
_STATS_ROWS = 1024  # rows of logits at a time where no kernel is built


class TeacherDistribution:
    """A frozen teacher p_u = softmax_j cos(teacher_user_u, teacher_item_j) / temperature, its statistics computed once.

    Its dtype stays what it is: the statistics are those of the tables as they were given.

    Attributes:
        user, item: the tables, [M, t] and [N, t].
        lse: [M], log sum_j exp t_uj.
        entropy: [M], H(p_u) in nats.

    Raises:
        TypeError, ValueError: a table of another type, shape, dtype or device; the message names it.
    """

    @operation("TeacherDistribution", widest)
    def __init__(
        self, teacher_user: Tensor, teacher_item: Tensor, *, temperature: float = _TEMPERATURE, normalize: bool = True
    ) -> None:
        float_matrix("teacher_user", teacher_user)
        float_matrix("teacher_item", teacher_item, cols=teacher_user.size(1))
        same_device_and_dtype(("teacher_user", "teacher_item"), (teacher_user, teacher_item))
        _checks.temperature("temperature", temperature)
        if teacher_item.size(0) == 0:
            raise ValueError(f"teacher_item: want at least one row, got shape {tuple(teacher_item.shape)}")
        self.user, self.item = teacher_user.detach(), teacher_item.detach()
        self.temperature, self.normalize = float(temperature), bool(normalize)
        self.lse, self.entropy = _stats(self.user, self.item, self.temperature, self.normalize)

    def to(self, device: torch.device | str) -> TeacherDistribution:
        """The teacher on `device`, its statistics as they are; itself when it is there already.

        Raises:
            TypeError, ValueError: `device` is no device, but a dtype, say; the message names it.
        """
        device = _checks.device("device", device)
        moved = copy.copy(self)
        for name in ("user", "item", "lse", "entropy"):
            setattr(moved, name, getattr(self, name).to(device))
        return self if moved.user is self.user else moved

    def weight(self, weight_range: tuple[float, float] = (0.1, 1.0)) -> Tensor:
        """w_u = clamp(1 - H(p_u) / log N, *weight_range) (ProMax Eq. 13): [M]."""
        return reference.entropy_weight(self.entropy, self.item.size(0), weight_range)


def teacher_stats(user: Tensor, item: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """lse_j(t_uj) and H(p_u), each [M], float32 (float64 for float64 tables)."""
    if _native.runs_on_kernel("triton", user, item):
        if _native.on_cuda(user):
            from prorec_fast.triton_kernels.softmax_sweep import teacher_stats_cuda

            return teacher_stats_cuda(user, item, temperature, normalize)
        user, item = _native.storable(user), _native.storable(item)
        lse, entropy = _native.zeros(2, user.size(0))
        _native.extension().distribution_stats(
            _native.matrix(user), _native.matrix(item), 1 / temperature, normalize, lse.data_ptr(),
            entropy.data_ptr(), _native.threads(),
        )  # fmt: skip
        return lse, entropy
    wide = user.dtype if user.dtype == torch.float64 else torch.float32
    parts = []
    for rows in user.split(_STATS_ROWS):
        t = reference.scores(rows.to(wide), item.to(wide), temperature, normalize)
        parts.append((t.logsumexp(1), reference.entropy(t.log_softmax(1))))
    if not parts:
        return user.new_zeros(0, dtype=wide), user.new_zeros(0, dtype=wide)
    return torch.cat([lse for lse, _ in parts]), torch.cat([h for _, h in parts])


def distribution_kl(
    user: Tensor,
    item: Tensor,
    teacher_user: Tensor | None,
    teacher_item: Tensor | None,
    *,
    teacher_temperature: float | None,
    teacher: TeacherDistribution | None,
    normalize: bool,
    **options: Any,
) -> Tensor:
    if teacher is None:
        if teacher_user is None or teacher_item is None:
            raise ValueError("teacher_user, teacher_item: want both tables where no teacher= is given, got None")
        if teacher_temperature is None:
            teacher_temperature = _TEMPERATURE
    else:  # before autocast's copies, so that its own tables are known
        _check_teacher(teacher, teacher_user, teacher_item, teacher_temperature, normalize)
        teacher_user, teacher_item, teacher_temperature = None, None, teacher.temperature
    return _distribution_kl(
        user, item, teacher_user, teacher_item, teacher_temperature=teacher_temperature, teacher=teacher,
        normalize=normalize, **options,
    )  # fmt: skip


@operation("distribution_kl", float32)
def _distribution_kl(
    user: Tensor,
    item: Tensor,
    teacher_user: Tensor | None,
    teacher_item: Tensor | None,
    *,
    users: Tensor | None,
    count: Tensor | None,
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    weighting: str | Tensor,
    weight_range: tuple[float, float],
    eps: float,
    normalize: bool,
    teacher: TeacherDistribution | None,
    reduction: str,
) -> Tensor:
    float_matrix("user", user)
    float_matrix("item", item, cols=user.size(1))
    same_device_and_dtype(("user", "item"), (user, item))
    if item.size(0) == 0:
        raise ValueError(f"item: want at least one row, got shape {tuple(item.shape)}")
    if teacher is not None:
        teacher_user, teacher_item = teacher.user, teacher.item
    float_matrix("teacher_user", teacher_user)
    float_matrix("teacher_item", teacher_item, rows=item.size(0), cols=teacher_user.size(1))
    _checks.temperature("temperature", temperature)
    _checks.temperature("teacher_temperature", teacher_temperature)
    one_of("divergence", divergence, DIVERGENCES)
    one_of("reduction", reduction, REDUCTIONS)
    _checks.smoothing("eps", eps)
    users, teacher_rows = _batch_rows(user, teacher_user, users)
    batch = user.size(0) if users is None else users.size(0)
    if count is not None:
        row_count("count", count, rows=batch, device=user.device)
    if isinstance(weighting, Tensor):
        if weighting.shape != (batch,) or weighting.device != user.device:
            raise ValueError(f"weighting: want [{batch}] on {user.device}, got {tuple(weighting.shape)} on "
                             f"{weighting.device}")  # fmt: skip
    else:
        one_of("weighting", weighting, ("entropy", "none"))
        if len(weight_range) != 2 or not weight_range[0] <= weight_range[1]:
            raise ValueError(f"weight_range: want (lo, hi) with lo <= hi, got {weight_range!r}")

    if not _native.runs_on_kernel("triton", user, item, teacher_user, teacher_item):
        return reference.distribution_kl(
            user if users is None else user.index_select(0, users), item,
            teacher_user if teacher_rows is None else teacher_user.index_select(0, teacher_rows), teacher_item,
            count=count, temperature=temperature, teacher_temperature=teacher_temperature, divergence=divergence,
            weighting=weighting, weight_range=weight_range, eps=eps, normalize=normalize, reduction=reduction,
        )  # fmt: skip

    teacher_user, teacher_item = teacher_user.detach(), teacher_item.detach()
    if teacher is None:
        if teacher_rows is not None:
            teacher_user, teacher_rows = teacher_user.index_select(0, teacher_rows), None
        lse, entropy = _stats(teacher_user, teacher_item, teacher_temperature, normalize)
    else:
        lse, entropy = teacher.lse, teacher.entropy
    if isinstance(weighting, Tensor):
        weight = weighting
    elif weighting == "entropy":
        rows = entropy if teacher_rows is None else entropy.index_select(0, teacher_rows)
        weight = reference.entropy_weight(rows, item.size(0), weight_range)
    else:
        weight = None
    return DISTRIBUTION_KL(
        user, item, users, count, teacher_user, teacher_item, teacher_rows, lse, entropy, float(temperature),
        float(teacher_temperature), divergence, float(eps), bool(normalize), reduction=reduction, weight=weight,
        count=count,
    )  # fmt: skip


def _check_teacher(
    teacher: TeacherDistribution,
    teacher_user: Tensor | None,
    teacher_item: Tensor | None,
    teacher_temperature: float | None,
    normalize: bool,
) -> None:
    if not isinstance(teacher, TeacherDistribution):
        raise TypeError(f"teacher: want a TeacherDistribution, got {_checks.describe(teacher)}")
    if teacher.normalize != normalize:
        raise ValueError(f"teacher: want one made with normalize={normalize}, got {teacher.normalize}")
    own = {"teacher_user": (teacher_user, teacher.user), "teacher_item": (teacher_item, teacher.item)}
    for name, (given, table) in own.items():
        if given is not None and not _same(given, table):
            raise ValueError(f"{name}: want None or the very table of teacher=, {_checks.describe(table)}, "
                             f"got another: {_checks.describe(given)}")  # fmt: skip
    if teacher_temperature is not None and teacher_temperature != teacher.temperature:
        raise ValueError(f"teacher_temperature: want None or that of teacher=, {teacher.temperature}, "
                         f"got {teacher_temperature!r}")  # fmt: skip


def _same(given: Any, table: Tensor) -> bool:
    """Whether both are one memory, which nothing has to be read for. torch.compile traces shape, dtype and device."""
    if given is table:
        return True
    if not isinstance(given, Tensor) or (given.shape, given.dtype, given.device) != (
        table.shape, table.dtype, table.device
    ):  # fmt: skip
        return False
    if torch.compiler.is_compiling():
        return True
    return (given.data_ptr(), given.stride()) == (table.data_ptr(), table.stride())


def _batch_rows(user: Tensor, teacher_user: Tensor, users: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which rows of `user` and of `teacher_user` the batch is; None where a table holds just the batch's rows."""
    if users is None:
        if teacher_user.size(0) != user.size(0):
            raise ValueError(
                f"teacher_user: want {user.size(0)} rows as in user, or users= to say which, got {teacher_user.size(0)}"
            )
        return None, None
    whole = max(user.size(0), teacher_user.size(0))
    index_vector("users", users, size=whole, device=user.device)
    rows = []
    for name, table in (("user", user), ("teacher_user", teacher_user)):
        if table.size(0) != whole and table.size(0) != users.size(0):  # torch.compile's sizes are found in no tuple
            raise ValueError(f"{name}: want {whole} rows, or one for each of users, got {table.size(0)}")
        rows.append(users if table.size(0) == whole else None)
    return rows[0], rows[1]


def _stats(user: Tensor, item: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.teacher_stats(user, item, temperature, normalize)
    return teacher_stats(user, item, temperature, normalize)


def distribution_kl_cpu(
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
):
    batch = user.size(0) if users is None else users.size(0)
    tables = [_native.storable(t) for t in (user, item, teacher_user, teacher_item)]
    users = _native.index("users", users, user.size(0))
    teacher_rows = _native.index("users", teacher_rows, teacher_user.size(0))
    loss = _native.empty(batch) if count is None else _native.zeros(batch)
    if count is not None:
        _checks.index_range("count", count, batch + 1)
        batch = int(count)
    grad_user = grad_item = None
    if coefficient is not None:
        grad_user = _native.zeros(*user.shape)
        # Whole panels of 64 rows, so that the kernel can accumulate in place.
        grad_item = _native.empty(-(-item.size(0) // 64) * 64, item.size(1)) if batch else _native.zeros(*item.shape)
    _native.extension().distribution_kl(
        *map(_native.matrix, tables), _native.address(users), _native.address(teacher_rows), batch, 1 / temperature,
        1 / teacher_temperature, normalize, teacher_lse.data_ptr(), teacher_entropy.data_ptr(),
        DIVERGENCES.index(divergence), eps, _native.address(coefficient), loss.data_ptr(),
        _native.address(grad_user), _native.address(grad_item), _native.threads(),
    )  # fmt: skip
    if grad_user is None:
        return loss, []
    return loss, [grad_user, grad_item[: item.size(0)]]


DISTRIBUTION_KL = RowLoss("distribution_kl", by_device(distribution_kl_cpu, "distribution_kl"), 2)
