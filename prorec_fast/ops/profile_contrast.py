from __future__ import annotations

from torch import Tensor

from prorec_fast import _checks, _native
from prorec_fast._checks import float_tensor, one_of, row_count
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference.profile_contrast import profile_contrast as reference

MAX_PROFILES_ON_CUDA = 64  # a program holds K x K scores


@operation("profile_contrast", float32)
def profile_contrast(
    profiles: Tensor,
    *,
    count: Tensor | None,
    temperature: float,
    shift: float | None,
    normalize: bool,
    reduction: str,
) -> Tensor:
    float_tensor("profiles", profiles, shape="[K, B, d]", dims=(3,))
    _checks.temperature("temperature", temperature)
    shift = 1 / temperature if shift is None else shift
    _checks.finite_number("shift", shift)
    one_of("reduction", reduction, REDUCTIONS)
    if count is not None:
        row_count("count", count, rows=profiles.size(1), device=profiles.device)
    held = not _native.on_cuda(profiles) or profiles.size(0) <= MAX_PROFILES_ON_CUDA
    if not (held and _native.runs_on_kernel("triton", profiles)):
        return reference(
            profiles, count=count, temperature=temperature, shift=shift, normalize=normalize, reduction=reduction
        )
    arguments = (float(temperature), float(shift), bool(normalize), count)
    return PROFILE_CONTRAST(profiles, *arguments, reduction=reduction, count=count)


def profile_contrast_cpu(
    profiles: Tensor,
    temperature: float,
    shift: float,
    normalize: bool,
    count: Tensor | None,
    *,
    coefficient: Tensor | None = None,
):
    stored = _native.storable(profiles)
    batch = live = profiles.size(1)
    if count is not None:
        _checks.index_range("count", count, batch + 1)
        live = int(count)
    new = _native.empty if live == batch else _native.zeros
    loss = new(batch)
    grads = [] if coefficient is None else [new(*profiles.shape)]
    _native.extension().profile_contrast(
        _native.tables(stored), live, 1 / temperature, shift, normalize, _native.address(coefficient),
        loss.data_ptr(), _native.address(grads[0] if grads else None), _native.threads(),
    )  # fmt: skip
    return loss, grads


PROFILE_CONTRAST = RowLoss(
    "profile_contrast", by_device(profile_contrast_cpu, "profile_contrast"), 1, light=True, row_dim=1
)
