"""The one table of tolerances, and the checks that every operation's tests share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

# A kernel's error against float64 may exceed eager PyTorch's error in the same dtype by this factor, plus a floor
# relative to the largest entry of the truth (one rounding of the output, and a short float32 accumulation).
ERROR_FACTOR = 3.0
ERROR_FLOOR = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1.5e-3}


def max_error(got: Tensor, truth: Tensor, least: float) -> float:
    """The largest error relative to the largest entry of the truth, or to `least` where that is larger."""
    assert got.shape == truth.shape, (got.shape, truth.shape)
    if truth.numel() == 0:
        return 0.0
    scale = truth.double().abs().max().clamp_min(least)
    return ((got.double() - truth.double()).abs().max() / scale).item()


def assert_as_good_as_eager(
    got: Tensor, eager: Tensor, truth: Tensor, what: str = "value", least: float = 1e-30
) -> None:
    """`got` is as close to the float64 truth as eager PyTorch in the same dtype is, within the table's budget. `least`
    is the size below which a truth is rounding of larger terms that cancel."""
    assert got.dtype == eager.dtype, (got.dtype, eager.dtype)
    assert torch.isfinite(got).all(), f"{what}: not finite"
    budget = ERROR_FACTOR * max_error(eager, truth, least) + ERROR_FLOOR[got.dtype]
    error = max_error(got, truth, least)
    assert error <= budget, f"{what}: error {error:.3g}, allowed {budget:.3g}"


def leaves(tensors, dtype=None):
    """Fresh leaves that require grad, optionally in another dtype (same layout)."""
    return [copy.copy(t).detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def check_against_reference(op, reference, tensors, *, wrt=None, seed: int = 0, least: float = 1e-30) -> None:
    """Values and every gradient of op(*tensors), with a random grad_out, against the float64 reference."""
    ours, eager, truth = leaves(tensors), leaves(tensors), leaves(tensors, torch.float64)
    outputs = op(*ours), reference(*eager), reference(*truth)
    grad_out = torch.randn(outputs[2].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grad_out = grad_out.to(tensors[0].dtype)
    assert_as_good_as_eager(*(o.detach() for o in outputs), least=least)
    for output in outputs:
        output.backward(grad_out.to(output))
    for i in range(len(tensors)) if wrt is None else wrt:
        assert_as_good_as_eager(ours[i].grad, eager[i].grad, truth[i].grad, f"gradient {i}", least)


def assert_compiled_equals_eager(op, tensors, seed: int = 0) -> None:
    """torch.compile(op, fullgraph=True) gives op's values and gradients, with a random grad_out."""
    results = []
    for function in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        inputs = leaves(tensors)
        output = function(*inputs)
        output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output))
        results.append([output.detach(), *(t.grad for t in inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
