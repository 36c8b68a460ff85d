"""gaussian_kl on the device path. Tiny sizes: without a device, Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.reference.gaussian_kl import gaussian_kl as reference


def gaussians(device, num_inputs: int, batch: int, dim: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    return [torch.randn(batch, dim, generator=generator).to(device, dtype) for _ in range(num_inputs)]


def check(tensors, **options):
    check_against_reference(lambda *t: losses.gaussian_kl(*t, **options), lambda *t: reference(*t, **options), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("num_inputs", [2, 4])
def test_gaussian_kl_on_device_matches_reference(device, num_inputs, reduction, dtype):
    for batch, dim in ((1, 1), (33, 8), (5, 300)):
        check(gaussians(device, num_inputs, batch, dim, dtype), reduction=reduction, beta=0.3)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_gaussian_kl_on_device_strided(device, beta):
    wide = gaussians(device, 4, 20, 24)
    for cut in (lambda t: t[::2, 1::2], lambda t: t[:, :9], lambda t: t.T):
        check([cut(t) for t in wide], beta=beta)


def assert_relative(tensors, beta, rtol):
    """Values and gradients, one column a row, relative to themselves."""
    ours, truth = leaves(tensors), leaves(tensors, torch.float64)
    losses.gaussian_kl(*ours, beta=beta, reduction="sum").backward()
    reference(*truth, beta=beta, reduction="sum").backward()
    got = losses.gaussian_kl(*tensors, beta=beta, reduction="none").double()
    want = reference(*(t.double() for t in tensors), beta=beta, reduction="none")
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=rtol, atol=0)


def test_gaussian_kl_on_device_holds_small_divergences_to_relative_precision(device):
    size = torch.logspace(-5, 1.2, 150, device=device)[:, None]
    prior_mean, prior_logvar = torch.full_like(size, 0.7), torch.full_like(size, 0.25)
    for sign in (1, -1):
        assert_relative([size.flip(0), sign * size], 1.0, 3e-6)
        logvar = prior_logvar + (sign * size * 2**18).round() / 2**18
        assert_relative([prior_mean, logvar, prior_mean, prior_logvar], 0.0, 3e-6)


def test_gaussian_kl_on_device_is_stable_for_any_log_variance(device):
    grid = torch.linspace(-30, 20, 17, device=device)
    logvar, prior_logvar = (t.reshape(-1, 1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    mean = torch.full_like(logvar, 0.75)
    assert_relative([mean, logvar, torch.zeros_like(mean), prior_logvar], 0.5, 1e-5)


def test_gaussian_kl_on_device_properties(device):
    tensors = gaussians(device, 4, 30, 20)
    assert losses.gaussian_kl(*(t[:0] for t in tensors)) == 0
    for which in range(4):
        inputs = [t.clone().requires_grad_(i == which) for i, t in enumerate(tensors)]
        losses.gaussian_kl(*inputs, beta=0.6).backward()
        assert [t.grad is None for t in inputs] == [i != which for i in range(4)]
        inputs[which].data[7, 19] = torch.nan
        assert losses.gaussian_kl(*inputs, beta=0.6, reduction="none").isnan().nonzero().tolist() == [[7]]
