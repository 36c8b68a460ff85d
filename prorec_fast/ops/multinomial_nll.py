from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, float_vector, index_vector, one_of, same_device_and_dtype
from prorec_fast.ops.common import REDUCTIONS, RowLoss, by_device
from prorec_fast.ops.csr import csr_rows
from prorec_fast.ops.operation import float32, operation
from prorec_fast.reference.multinomial_nll import multinomial_nll as reference

# A chunk has logits of this many bytes, or as many as these rows have: each chunk reads and writes all of the gradient
# of `weight`, which fewer rows do not pay for.
_LOGIT_BYTES = 32 << 20
_ROWS = 192


@operation("multinomial_nll", float32)
def multinomial_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Any, *, rows: Tensor | None, reduction: str
) -> Tensor:
    float_matrix("hidden", hidden)
    float_matrix("weight", weight, cols=hidden.size(1))
    same_device_and_dtype(("hidden", "weight"), (hidden, weight))
    if bias is not None:
        float_vector("bias", bias, size=weight.size(0))
        same_device_and_dtype(("hidden", "bias"), (hidden, bias))
    one_of("reduction", reduction, REDUCTIONS)
    batch = hidden.size(0)
    found = csr_rows(
        "targets", targets, device=hidden.device, rows=batch if rows is None else None, cols=weight.size(0), valued=True
    )
    if rows is not None:
        index_vector("rows", rows, size=found.indptr.numel() - 1, device=hidden.device)
        if rows.numel() != batch:
            raise ValueError(f"rows: want one for each row of hidden [{batch}], got [{rows.numel()}]")
    targets = (found.indptr, found.indices, found.values)
    if not _native.runs_on_kernel("triton", hidden, weight):
        return reference(hidden, weight, bias, targets, rows=rows, reduction=reduction)
    if bias is None:
        bias = hidden.new_empty(0)  # a loss with kernels takes tensors that may have a gradient, and no None
    return MULTINOMIAL_NLL(hidden, weight, bias, rows, *targets, reduction=reduction)


def chunks(batch: int, num_items: int, logit_bytes: int, rows: int) -> Iterator[slice]:
    """The batch in chunks of equal size: of at most `rows` rows, or more where their float32 logits take no more than
    `logit_bytes`. The first is the largest."""
    most = max(rows, logit_bytes // max(1, 4 * num_items))
    step = max(1, -(-batch // max(1, -(-batch // most))))
    return (slice(start, min(start + step, batch)) for start in range(0, batch, step))


def multinomial_nll_cpu(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    *,
    coefficient: Tensor | None = None,
):
    """Losses [B] and, with a coefficient [B], the gradients of coefficient . losses: all float32. The three products of
    each chunk are torch's; the kernel turns the first one's logits into losses and their own gradient."""
    hidden, weight, bias = (t.detach().float() for t in (hidden, weight, bias.contiguous()))
    (batch, depth), num_items = hidden.shape, weight.size(0)
    rows = _native.index("rows", rows, indptr.numel() - 1)
    indices = _native.index("targets", indices, num_items)
    values = None if values is None else values.float().contiguous()
    loss = _native.empty(batch)
    grads = []
    if coefficient is not None:
        grads = [_native.empty(batch, depth), _native.zeros(num_items, depth), _native.zeros(bias.numel())]
    buffer = _native.empty(0)
    for chunk in chunks(batch, num_items, _LOGIT_BYTES, _ROWS):
        logits = buffer.resize_(chunk.stop - chunk.start, num_items)  # never larger than the first
        torch.mm(hidden[chunk], weight.T, out=logits)
        _native.extension().multinomial_nll(
            _native.matrix(logits),
            _native.address(bias) if bias.numel() else 0,
            _native.csr(indptr[0 if rows is not None else chunk.start :], indices, values, num_items),
            _native.address(None if rows is None else rows[chunk]),
            _native.address(None if coefficient is None else coefficient[chunk]),
            loss[chunk].data_ptr(),
            _native.address(grads[2] if grads and bias.numel() else None),
            _native.threads(),
        )
        if grads:
            torch.mm(logits, weight, out=grads[0][chunk])
            grads[1].addmm_(logits.T, hidden[chunk])
    return loss, grads


MULTINOMIAL_NLL = RowLoss("multinomial_nll", by_device(multinomial_nll_cpu, "multinomial_nll"), 3)
