from __future__ import annotations

from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, one_of, same_device_and_dtype
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference.bpr import bpr as reference


@operation("bpr", float32)
def bpr(user: Tensor, positive: Tensor, negative: Tensor, *, reduction: str = "mean") -> Tensor:
    float_matrix("user", user)
    float_matrix("positive", positive, rows=user.size(0), cols=user.size(1))
    float_matrix("negative", negative, rows=user.size(0), cols=user.size(1))
    same_device_and_dtype(("user", "positive", "negative"), (user, positive, negative))
    one_of("reduction", reduction, REDUCTIONS)
    if not _native.runs_on_kernel("triton", user, positive, negative):
        return reference(user, positive, negative, reduction=reduction)
    return BPR(user, positive, negative, reduction=reduction)


def bpr_cpu(user: Tensor, positive: Tensor, negative: Tensor, *, coefficient: Tensor | None = None):
    inputs = [_native.storable(t) for t in (user, positive, negative)]
    loss = _native.empty(user.size(0))
    grads = [] if coefficient is None else [_native.empty(*user.shape) for _ in inputs]
    addresses = map(_native.address, grads or (None,) * 3)
    _native.extension().bpr(
        *map(_native.matrix, inputs), _native.address(coefficient), loss.data_ptr(), *addresses, _native.threads()
    )
    return loss, grads


BPR = RowLoss("bpr", by_device(bpr_cpu, "bpr"), 3, light=True)
