"""multinomial_nll on CUDA devices: cuBLAS makes a chunk of logits, a program a row turns them into the loss and, in
their place, the gradient that cuBLAS's other two products take."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from prorec_fast.ops.multinomial_nll import chunks
from prorec_fast.triton_kernels.primitives import LN2, LOG2E, on_device, rounded
from prorec_fast.triton_kernels.variants import FLOATS, Variant

# A chunk has logits of this many bytes, or as many as these rows have: enough programs for a large device, and few
# passes over the gradient of `weight`.
_LOGIT_BYTES = 64 << 20
_ROWS = 256
_PRODUCT_BYTES = 64 << 20  # of a product that is to be added, where cuBLAS cannot add it itself
_BLOCK_N = 2048
_TARGETS = tl.constexpr(64)  # of a row, at a time


@triton.jit
def _load_logits(logits_ptr, bias_ptr, offs_n, mask_n):
    x = tl.load(logits_ptr + offs_n, mask=mask_n, other=-float("inf"))
    if bias_ptr is not None:
        x += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    return x


@triton.jit
def _load_targets(indices_ptr, values_ptr, first, end, num_items):
    """Columns and values of some targets; a value of 0 where there is none."""
    offs_t = first + tl.arange(0, _TARGETS)
    item = tl.load(indices_ptr + offs_t, mask=offs_t < end, other=-1)
    mask = (item >= 0) & (item < num_items)
    value = mask.to(tl.float32)
    if values_ptr is not None:
        value = tl.load(values_ptr + offs_t, mask=mask, other=0.0)
    return item, value, value > 0.0


@triton.jit
def _multinomial_nll_kernel(
    logits_ptr, bias_ptr, begin_ptr, end_ptr, indices_ptr, values_ptr, coefficient_ptr, loss_ptr, grad_logits_ptr,
    num_items, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * num_items
    maximum = -float("inf")
    total = 0.0
    for start in range(0, num_items, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        x = _load_logits(logits_ptr, bias_ptr, offs_n, offs_n < num_items)
        larger = tl.maximum(maximum, tl.max(x, 0))
        shift = tl.where(larger == -float("inf"), 0.0, larger)  # of logits that are all -inf
        total = total * tl.exp2((maximum - shift) * LOG2E) + tl.sum(tl.exp2((x - shift) * LOG2E), 0)
        maximum = larger

    begin = tl.load(begin_ptr + row)
    end = tl.load(end_ptr + row)
    count = tl.zeros([_TARGETS], tl.float32)
    below = tl.zeros([_TARGETS], tl.float32)  # how far the targets' logits are below the largest
    for first in range(begin, end, _TARGETS):
        item, value, mask = _load_targets(indices_ptr, values_ptr, first, end, num_items)
        count += value
        below += value * tl.where(mask, maximum - _load_logits(logits_ptr, bias_ptr, item, mask), 0.0)
    num_targets = tl.sum(count, 0)
    loss = tl.sum(below, 0) + num_targets * tl.log2(total) * LN2
    tl.store(loss_ptr + row, tl.where(num_targets > 0.0, loss, 0.0))

    if grad_logits_ptr is not None:
        grad_logits_ptr += row * num_items
        coefficient = tl.load(coefficient_ptr + row)
        factor = coefficient * num_targets / total
        tl.debug_barrier()  # the targets' logits have been read
        for start in range(0, num_items, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < num_items
            x = _load_logits(logits_ptr, bias_ptr, offs_n, mask_n)
            grad = factor * tl.exp2((x - maximum) * LOG2E)
            tl.store(grad_logits_ptr + offs_n, rounded(grad, grad_logits_ptr.dtype.element_ty), mask=mask_n)
        tl.debug_barrier()  # and every share is there to be taken from
        for first in range(begin, end, _TARGETS):
            item, value, mask = _load_targets(indices_ptr, values_ptr, first, end, num_items)
            share = tl.load(grad_logits_ptr + item, mask=mask, other=0.0).to(tl.float32)
            grad = share - coefficient * value
            tl.store(grad_logits_ptr + item, rounded(grad, grad_logits_ptr.dtype.element_ty), mask=mask)


def _tile(num_items: int) -> tuple[int, int]:
    """BLOCK_N and the number of warps."""
    block_n = min(_BLOCK_N, max(128, triton.next_power_of_2(num_items)))
    return block_n, 8 if block_n == _BLOCK_N else 4


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b in float32, of 16-bit operands too."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda and hasattr(torch.ops.aten.mm, "dtype_out"):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a @ b. What torch adds to has to be of the operands' dtype, so 16-bit ones take a few rows at a time."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
        return
    for rows in chunks(*out.shape, _PRODUCT_BYTES, 1):
        part = torch.empty_like(out[rows])
        _product(a[rows], b, part)
        out[rows] += part


def multinomial_nll_cuda(
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
    """Losses [B] and, with a coefficient [B], the gradients of coefficient . losses: all float32. bfloat16 tables are
    multiplied as they are, and the gradient of their logits is stored in bfloat16; float16's range ends too soon."""
    if hidden.dtype == torch.float16:
        hidden, weight = hidden.float(), weight.float()
    hidden, weight, bias = (t.detach().contiguous() for t in (hidden, weight, bias))
    (batch, depth), num_items = hidden.shape, weight.size(0)
    # Indexing sees to it that every row is one of the targets'.
    begin, end = (indptr[:-1], indptr[1:]) if rows is None else (indptr[rows], indptr[rows + 1])
    values = None if values is None else values.float().contiguous()
    new = dict(dtype=torch.float32, device=hidden.device)
    loss = torch.zeros(batch, **new)
    grads = []
    if coefficient is not None:
        grads = [torch.empty(batch, depth, **new), torch.zeros(num_items, depth, **new), torch.zeros(bias.shape, **new)]
    block_n, num_warps = _tile(num_items)
    for chunk in chunks(batch, num_items, _LOGIT_BYTES, _ROWS) if num_items else ():
        logits = torch.empty(chunk.stop - chunk.start, num_items, **new)
        _product(hidden[chunk], weight.T, logits)
        grad_logits = None
        if grads:
            grad_logits = logits if hidden.dtype == logits.dtype else torch.empty_like(logits, dtype=hidden.dtype)
        with on_device(hidden):
            _multinomial_nll_kernel[(len(logits),)](
                logits, bias if bias.numel() else None, begin[chunk], end[chunk], indices, values,
                coefficient[chunk] if grads else None, loss[chunk], grad_logits, num_items, BLOCK_N=block_n,
                num_warps=num_warps, enable_fp_fusion=True,
            )  # fmt: skip
        if grads:
            _product(grad_logits, weight, grads[0][chunk])
            (_product if chunk.start == 0 else _add_product)(grad_logits.T, hidden[chunk], grads[1])
            if bias.numel():
                grads[2] += grad_logits.sum(0, dtype=torch.float32)
    if grads and not num_items:
        grads[0].zero_()
    return loss, grads


def variants(chip: int) -> Iterator[Variant]:
    whole = {"begin_ptr": "*i64", "end_ptr": "*i64", "indices_ptr": "*i32"}
    for name in FLOATS:
        for num_items in (1000, 9332):
            block_n, num_warps = _tile(num_items)
            types = whole | {"bias_ptr": "*" + name, "grad_logits_ptr": "*fp32" if name == "fp16" else "*" + name}
            yield Variant(_multinomial_nll_kernel, types, dict(BLOCK_N=block_n), num_warps)
    absent = dict.fromkeys(("bias_ptr", "values_ptr", "coefficient_ptr", "grad_logits_ptr"))
    yield Variant(_multinomial_nll_kernel, whole, absent | dict(BLOCK_N=block_n), num_warps)
