"""bpr on the device path. Tiny sizes: without a device, Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference

from prorec_fast import losses
from prorec_fast.reference.bpr import bpr as reference


def rows(device, batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    return [(scale * torch.randn(batch, dim, generator=generator)).to(device, dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bpr_on_device_matches_reference(device, reduction, dtype):
    for batch, dim in ((1, 1), (1, 32), (129, 33), (70, 32), (3, 1536)):
        check_against_reference(
            lambda *t: losses.bpr(*t, reduction=reduction),
            lambda *t: reference(*t, reduction=reduction),
            rows(device, batch, dim, dtype),
        )


def test_bpr_on_device_strided_and_confident(device):
    wide = rows(device, 60, 64, scale=8.0)
    check_against_reference(losses.bpr, reference, [t[::2, 1::2] for t in wide])
    check_against_reference(losses.bpr, reference, [t[:, :40] for t in wide])
    check_against_reference(losses.bpr, reference, [t.t() for t in wide])


def test_bpr_on_device_holds_small_losses_to_relative_precision(device):
    user = torch.ones(200, 1, device=device)
    positive = torch.linspace(-30, 80, 200, device=device)[:, None]
    got = losses.bpr(user, positive, torch.zeros_like(user), reduction="none")
    truth = torch.nn.functional.softplus(-positive[:, 0].double())
    torch.testing.assert_close(got.double(), truth, rtol=2e-5 if got.is_cuda else 1e-6, atol=1e-37)


def test_bpr_on_device_properties(device):
    user, positive, negative = rows(device, 30, 32)
    assert losses.bpr(user[:0], positive[:0], negative[:0]) == 0
    for which in range(3):
        tensors = [t.clone().requires_grad_(i == which) for i, t in enumerate((user, positive, negative))]
        losses.bpr(*tensors).backward()
        assert [t.grad is None for t in tensors] == [i != which for i in range(3)]
    huge = losses.bpr(1e4 * user, positive, negative, reduction="none")
    assert torch.isfinite(huge).all() and (huge >= 0).all()
    positive[7, 3] = float("nan")
    assert losses.bpr(user, positive, negative, reduction="none").isnan().nonzero().tolist() == [[7]]
