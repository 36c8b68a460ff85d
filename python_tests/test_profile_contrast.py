from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.reference.profile_contrast import profile_contrast as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def profiles(num: int, batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num * 100_000 + batch * 1000 + dim)
    return (scale / dim**0.5 * torch.randn(num, batch, dim, generator=generator)).to(dtype)


def check(tensor, *, least=1e-30, **options):
    check_against_reference(
        lambda t: losses.profile_contrast(t, **options), lambda t: reference(t, **options), [tensor], least=least
    )


@pytest.mark.every_level
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "num, batch, dim", [(2, 1, 1), (2, 33, 8), (3, 129, 33), (4, 507, 32), (7, 40, 100), (16, 65, 24), (33, 5, 512)]
)
def test_profile_contrast_matches_reference(num, batch, dim, reduction, normalize):
    least = 1.0 if dim == 1 else 1e-30  # a unit row of one entry does not turn: the gradient is 0
    check(profiles(num, batch, dim), reduction=reduction, normalize=normalize, least=least)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("normalize", [False, True])
def test_profile_contrast_matches_reference_in_half_precision(normalize, dtype):
    for num, batch, dim in ((4, 129, 33), (5, 31, 64)):
        check(profiles(num, batch, dim, dtype), normalize=normalize)


@pytest.mark.parametrize("shift", [None, 5.0, 0.0, -5.0, -60.0])
def test_profile_contrast_shift(shift):
    for normalize in (False, True):
        check(profiles(4, 70, 16), shift=shift, normalize=normalize, reduction="none")


def test_profile_contrast_is_info_nce_within_a_row():
    """With unit rows and the InfoNCE-consistent shift, each profile is its own positive."""
    unit = F.normalize(profiles(5, 30, 12).double(), dim=-1)
    truth = sum(losses.info_nce(unit[:, b], unit[:, b], temperature=0.3, reduction="sum") for b in range(unit.size(1)))
    got = losses.profile_contrast(profiles(5, 30, 12), temperature=0.3, shift=-1 / 0.3, normalize=True, reduction="sum")
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 10.0, 1e4])
def test_profile_contrast_at_extreme_temperatures_and_sizes(temperature):
    for scale in (1e-3, 1.0, 30.0):
        for sign in (1, -1):
            tensor = profiles(4, 65, 24, scale=scale)
            check(tensor, temperature=temperature, shift=sign / temperature, reduction="none", least=1e-25)
    check(profiles(4, 65, 24, scale=1e6), temperature=temperature, normalize=True, reduction="none")
    huge = profiles(4, 65, 24, scale=1e4).requires_grad_()
    loss = losses.profile_contrast(huge, temperature=1e-20)
    loss.backward()
    assert loss.isfinite() and huge.grad.isfinite().all()


@pytest.mark.every_level
def test_profile_contrast_holds_small_losses_to_relative_precision():
    shift = torch.linspace(-80, 20, 21)
    tensor = profiles(3, 17, 8)
    for s in shift.tolist():
        got = losses.profile_contrast(tensor, shift=s, reduction="none")
        truth = reference(tensor.double(), shift=s, reduction="none")
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-37)


@pytest.mark.every_level
def test_profile_contrast_short_rows_are_divided_by_a_constant():
    tensor = profiles(4, 10, 8)
    tensor[1, 3] = 0
    tensor[2, 5] *= 1e-14
    check(tensor, normalize=True, reduction="none")
    alone = [leaves([tensor], dtype)[0] for dtype in (torch.float32, torch.float64)]
    for t in alone:
        losses.profile_contrast(t, normalize=True)[None].sum().backward()
    for at in ((1, 3), (2, 5), (0, 0)):
        torch.testing.assert_close(alone[0].grad[at].double(), alone[1].grad[at], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_profile_contrast_takes_any_strides(dtype):
    wide = profiles(8, 60, 64, dtype)
    for view in (
        wide[::2, 1::3, 1::2],
        wide.transpose(0, 1)[:5],
        wide.permute(2, 1, 0)[:3],
        wide[:1].expand(3, 60, 64),
    ):
        check(view, normalize=True)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_profile_contrast_of_one_profile_is_zero(dtype):
    tensor = profiles(1, 40, 8, dtype).requires_grad_()
    for reduction in ("mean", "none"):
        loss = losses.profile_contrast(tensor, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), tensor)
        assert not loss.any() and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_profile_contrast_count_is_the_sliced_call(normalize, reduction, dtype):
    for count in (0, 1, 33, 70):
        sliced, whole = (profiles(3, 70, 12, dtype).requires_grad_() for _ in range(2))
        with torch.no_grad():
            whole[:, count:] = torch.nan
        options = dict(normalize=normalize, reduction=reduction)
        want = losses.profile_contrast(sliced[:, :count], **options)
        got = losses.profile_contrast(whole, count=torch.tensor(count), **options)
        if reduction == "none":
            assert not got[count:].any()
            got = got[:count]
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad((3 * loss).sum(), t)[0] for loss, t in ((got, whole), (want, sliced))]
        torch.testing.assert_close(*grads)


@pytest.mark.every_level
def test_profile_contrast_properties():
    tensor = profiles(4, 300, 32)
    assert losses.profile_contrast(tensor[:, :0]) == 0
    same = tensor[:1].expand(4, 300, 32)
    want = 4 * math.log1p(3 * math.exp(10))
    torch.testing.assert_close(losses.profile_contrast(same, normalize=True).item(), want, rtol=1e-6, atol=0)
    for special in (torch.nan, torch.inf):
        tensor[2, 7, 3] = special
        for normalize in (False, True):
            rows = losses.profile_contrast(tensor, normalize=normalize, reduction="none")
            assert (~rows.isfinite()).nonzero().tolist() == [[7]], (special, normalize)
    tensor[0, 9, 0], tensor[1, 9, 0] = torch.inf, 0  # one of the products is NaN
    assert losses.profile_contrast(tensor, reduction="none")[9].isnan()
    tensor.requires_grad_()
    losses.profile_contrast(tensor, reduction="none").nan_to_num().sum().backward()
    assert tensor.grad.isfinite().all((0, 2)).logical_not().nonzero().flatten().tolist() == [7, 9]


def test_profile_contrast_is_the_same_on_any_number_of_threads():
    tensor = profiles(4, 3000, 33).requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            loss = losses.profile_contrast(tensor, reduction="none")
            results.append([loss, *torch.autograd.grad(loss.square().sum(), tensor)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_profile_contrast_gradcheck_float64():
    for num in (1, 2, 4):
        for options in ({}, {"normalize": True, "shift": -5.0}):
            tensor = profiles(num, 3, 4, torch.float64).requires_grad_()
            assert torch.autograd.gradcheck(lambda t, o=options: losses.profile_contrast(t, **o), tensor)


def test_profile_contrast_refuses_a_second_derivative():
    tensor = profiles(3, 5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(losses.profile_contrast(tensor), tensor, create_graph=True)
    with pytest.raises(RuntimeError, match="profile_contrast: its second derivative"):
        grad.sum().backward()


def test_profile_contrast_compiles_and_registers():
    tensor = profiles(4, 40, 16).requires_grad_()
    for count in (None, torch.tensor(11)):
        options = (0.2, 5.0, True, count)
        torch.library.opcheck(torch.ops.prorec_fast.profile_contrast, (tensor, *options, torch.rand(40)))
        torch.library.opcheck(torch.ops.prorec_fast.profile_contrast_rows, (tensor, *options))
        for reduction in ("mean", "none"):
            assert_compiled_equals_eager(
                lambda t, r=reduction, c=count: losses.profile_contrast(t, count=c, reduction=r), [tensor]
            )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temperature=0.0), "temperature: want"),
        (dict(shift=float("inf")), "shift: want a finite number"),
        (dict(shift="5"), "shift: want a finite number"),
        (dict(reduction="median"), "reduction: want"),
        (dict(count=3), "count: want a 0-d int64 tensor"),
        (dict(count=torch.tensor(7)), "count: want entries in"),
    ],
)
def test_profile_contrast_rejects_options(options, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        losses.profile_contrast(profiles(4, 6, 8), **options)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[0], r"profiles: want shape \[K, B, d\]"),
        (lambda p: p[:0], r"profiles: want shape \[K, B, d\]"),
        (lambda p: p.long(), "profiles: want a floating tensor"),
        (lambda p: None, "profiles: want a floating tensor"),
    ],
)
def test_profile_contrast_rejects(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        losses.profile_contrast(change(profiles(4, 6, 8)))
