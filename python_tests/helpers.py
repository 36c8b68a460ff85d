"""The checks that every operation's tests share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from prorec_fast.doctor.accuracy import accuracy


def assert_as_good_as_eager(
    got: Tensor, eager: Tensor, truth: Tensor, what: str = "value", least: float = 1e-30
) -> None:
    """`got` is as close to the float64 truth as eager PyTorch in the same dtype is, within the table's budget."""
    found = accuracy(got, eager, truth, least)
    assert found.ok, f"{what}: {found.problem}"


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
