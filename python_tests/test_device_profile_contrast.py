"""profile_contrast on the device path. Tiny sizes: without a device, Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference

from prorec_fast import losses
from prorec_fast.reference.profile_contrast import profile_contrast as reference


def profiles(device, num: int, batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num * 100_000 + batch * 1000 + dim)
    return (scale / dim**0.5 * torch.randn(num, batch, dim, generator=generator)).to(device, dtype)


def check(tensor, *, least=1e-30, **options):
    check_against_reference(
        lambda t: losses.profile_contrast(t, **options), lambda t: reference(t, **options), [tensor], least=least
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num, batch, dim", [(2, 1, 2), (3, 33, 9), (4, 70, 32), (16, 3, 24), (5, 2, 300), (17, 2, 8)])
def test_profile_contrast_on_device_matches_reference(device, num, batch, dim, normalize):
    for reduction in ("mean", "none"):
        check(profiles(device, num, batch, dim), reduction=reduction, normalize=normalize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_profile_contrast_on_device_matches_reference_in_half_precision(device, dtype):
    for normalize in (False, True):
        check(profiles(device, 4, 20, 33, dtype), normalize=normalize)


@pytest.mark.parametrize("temperature", [1e-3, 0.2, 1e4])
def test_profile_contrast_on_device_at_extreme_temperatures_and_sizes(device, temperature):
    for scale in (1e-3, 30.0):
        for sign in (1, -1):
            tensor = profiles(device, 3, 20, 8, scale=scale)
            check(tensor, temperature=temperature, shift=sign / temperature, reduction="none", least=1e-25)
    huge = profiles(device, 3, 20, 8, scale=1e4).requires_grad_()
    loss = losses.profile_contrast(huge, temperature=1e-20)
    loss.backward()
    assert loss.isfinite() and huge.grad.isfinite().all()


def test_profile_contrast_on_device_strided_and_short_rows(device):
    wide = profiles(device, 6, 20, 32)
    for view in (wide[::2, 1::3, 1::2], wide.transpose(0, 1)[:5], wide.permute(2, 1, 0)[:3]):
        check(view, normalize=True)
    wide[1, 3] = 0
    wide[2, 5] *= 1e-14
    check(wide, normalize=True, reduction="none")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_profile_contrast_on_device_count_is_the_sliced_call(device, reduction):
    for count in (0, 1, 20, 37):
        sliced, whole = (profiles(device, 3, 37, 12).requires_grad_() for _ in range(2))
        with torch.no_grad():
            whole[:, count:] = torch.nan
        want = losses.profile_contrast(sliced[:, :count], normalize=True, reduction=reduction)
        counted = torch.tensor(count, device=device)
        got = losses.profile_contrast(whole, count=counted, normalize=True, reduction=reduction)
        if reduction == "none":
            assert not got[count:].any()
            got = got[:count]
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad((3 * loss).sum(), t)[0] for loss, t in ((got, whole), (want, sliced))]
        torch.testing.assert_close(*grads)


def test_profile_contrast_on_device_properties(device):
    tensor = profiles(device, 4, 30, 8)
    assert losses.profile_contrast(tensor[:, :0]) == 0
    alone = tensor[:1].clone().requires_grad_()
    loss = losses.profile_contrast(alone)
    loss.backward()
    assert loss == 0 and not alone.grad.any()
    tensor[2, 7, 3] = float("nan")
    tensor.requires_grad_()
    rows = losses.profile_contrast(tensor, reduction="none")
    assert rows.isnan().nonzero().tolist() == [[7]]
    rows.nan_to_num().sum().backward()
    assert tensor.grad.isfinite().all((0, 2)).nonzero().flatten().tolist() == [b for b in range(30) if b != 7]
    many = profiles(device, 65, 2, 4)  # served by the definition
    check(many)
