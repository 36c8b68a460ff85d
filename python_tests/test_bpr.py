from __future__ import annotations

import pytest
import torch
from helpers import assert_compiled_equals_eager, check_against_reference

from prorec_fast import losses
from prorec_fast.reference.bpr import bpr as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows(batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    return [(scale * torch.randn(batch, dim, generator=generator)).to(dtype) for _ in range(3)]


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch, dim", [(1, 1), (1, 8), (129, 33), (507, 32), (700, 512)])
def test_bpr_matches_reference(batch, dim, reduction, dtype):
    check_against_reference(
        lambda *t: losses.bpr(*t, reduction=reduction),
        lambda *t: reference(*t, reduction=reduction),
        rows(batch, dim, dtype),
    )


@pytest.mark.every_level
def test_bpr_matches_reference_strided_and_confident():
    wide = rows(300, 64, scale=8.0)
    check_against_reference(losses.bpr, reference, [t[::2, 1::2] for t in wide])
    check_against_reference(losses.bpr, reference, [t.t() for t in wide])


@pytest.mark.parametrize("which", range(3))
def test_bpr_grad_of_each_input_alone(which):
    tensors = rows(65, 24)
    tensors[which].requires_grad_()
    losses.bpr(*tensors).backward()
    truth = [t.detach().double() for t in tensors]
    truth[which].requires_grad_()
    reference(*truth).backward()
    torch.testing.assert_close(tensors[which].grad.double(), truth[which].grad, rtol=1e-5, atol=1e-8)
    assert all(tensors[i].grad is None for i in range(3) if i != which)


def test_bpr_gradcheck_float64():
    tensors = [t.double().requires_grad_() for t in rows(5, 4)]
    assert torch.autograd.gradcheck(losses.bpr, tensors)


def test_bpr_properties():
    user, positive, negative = rows(300, 32)
    assert losses.bpr(user[:0], positive[:0], negative[:0]) == 0
    torch.testing.assert_close(losses.bpr(user, positive, positive).item(), torch.tensor(2.0).log().item())
    huge = losses.bpr(1e4 * user, positive, negative, reduction="none")
    assert torch.isfinite(huge).all() and (huge >= 0).all()
    positive[7, 3] = float("nan")
    assert losses.bpr(user, positive, negative, reduction="none").isnan().nonzero().tolist() == [[7]]


def test_bpr_compiles_and_registers():
    tensors = [t.requires_grad_() for t in rows(40, 16)]
    torch.library.opcheck(torch.ops.prorec_fast.bpr, (*tensors, torch.rand(40)))
    torch.library.opcheck(torch.ops.prorec_fast.bpr_rows, tensors)
    for reduction in ("mean", "none"):
        assert_compiled_equals_eager(lambda *t, r=reduction: losses.bpr(*t, reduction=r), tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda u, p, n: (u[0], p, n), "user: want shape"),
        (lambda u, p, n: (u, p[:-1], n), "positive: want shape"),
        (lambda u, p, n: (u, p, n.double()), "negative: want the device and dtype of user"),
        (lambda u, p, n: (u.long(), p, n), "user: want a floating tensor"),
        (lambda u, p, n: (None, p, n), "user: want a 2-d floating tensor"),
    ],
)
def test_bpr_rejects(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        losses.bpr(*change(*rows(4, 8)))
    with pytest.raises(ValueError, match="reduction"):
        losses.bpr(*rows(4, 8), reduction="median")
