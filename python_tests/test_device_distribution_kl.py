"""distribution_kl on the device path. Tiny sizes: without a device, Triton's interpreter runs them."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.reference.distribution_kl import distribution_kl as reference

DIVERGENCES = ("cross_entropy", "kl", "reverse_kl", "js")


def tables(device, num_users: int, num_items: int, dim: int, teacher_dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num_users * 1000 + num_items + dim)
    shapes = [(num_users, dim), (num_items, dim), (num_users, teacher_dim), (num_items, teacher_dim)]
    return [(scale * torch.randn(shape, generator=generator)).to(device, dtype) for shape in shapes]


def check(tensors, *, least=1e-30, **options):
    """Values and gradients of user and item against float64; the teacher is constant, in the tensors' own dtype."""
    user, item, teacher_user, teacher_item = tensors

    def run(function):
        return lambda u, i: function(u, i, teacher_user.to(u.dtype), teacher_item.to(u.dtype), **options)

    check_against_reference(run(losses.distribution_kl), run(reference), [user, item], least=least)


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_on_device_matches_reference(device, divergence, eps):
    check(tables(device, 1, 9, 8, 8), divergence=divergence, eps=eps, reduction="none")
    check(tables(device, 67, 35, 33, 17), divergence=divergence, eps=eps)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_distribution_kl_on_device_in_more_parts_than_one(device, eps):
    # Tiles of both sides, each sweep cut in parts whose last is short.
    check(tables(device, 65, 300, 16, 16), eps=eps, temperature=0.02)
    check(tables(device, 200, 20, 16, 16), eps=eps)


@pytest.mark.parametrize("temperature", [1e-3, 0.024, 0.026, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_on_device_at_extreme_temperatures(device, divergence, normalize, temperature):
    # Where a row is all one item, a divergence's gradient is rounding, of terms of 1 / temperature.
    least = 1.0 if temperature < 0.01 else 0.1
    if not normalize:
        temperature *= 20  # inner products of 24 normal numbers, up to 1e3 after this
    options = dict(divergence=divergence, normalize=normalize, temperature=temperature, weighting="none")
    check(tables(device, 20, 50, 24, 24), teacher_temperature=temperature, least=least, **options)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_distribution_kl_on_device_with_large_inner_products(device, eps):
    check(tables(device, 20, 70, 16, 16, scale=50.0), normalize=False, temperature=1.0, teacher_temperature=1e4,
          weighting="none", eps=eps, least=0.1)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence, eps", [("cross_entropy", 0.0), ("cross_entropy", 1e-8), ("js", 0.0)])
def test_distribution_kl_on_device_in_half_precision(device, divergence, eps, dtype):
    check(tables(device, 40, 150, 40, 24, dtype), divergence=divergence, eps=eps)


@pytest.mark.parametrize("dim, teacher_dim", [(1, 2), (129, 16), (16, 1536)])
def test_distribution_kl_on_device_for_any_width(device, dim, teacher_dim):
    # A single column is 1 or -1 whatever its size: the true gradient is 0, rounding is of terms of 1 / its size.
    least = 10.0 if dim == 1 else 1e-30
    for eps in (0.0, 1e-8):
        check(tables(device, 5, 19, dim, teacher_dim), eps=eps, least=least)


@pytest.mark.parametrize("num_items", [1, 2, 15, 16, 17, 128])
def test_distribution_kl_on_device_for_any_number_of_items(device, num_items):
    # Of a single item every distribution is the same: the truth is 0.
    check(tables(device, 9, num_items, 16, 16), divergence="kl", least=1.0 if num_items == 1 else 1e-30)


def test_distribution_kl_on_device_short_rows(device):
    for scale in (1e-6, 1e-14):  # the latter are shorter than F.normalize's least norm
        user, item, *teacher = tables(device, 9, 20, 16, 16)
        check([user * scale, item * scale, *teacher])


def test_distribution_kl_on_device_strided_and_confident(device):
    check([t[:, ::2] for t in tables(device, 20, 45, 32, 32)])
    check([t.T for t in tables(device, 16, 16, 20, 20)])
    check([t[::2] for t in tables(device, 20, 45, 16, 16)], temperature=0.03, teacher_temperature=0.03)
    user, item, *_ = tables(device, 20, 45, 16, 16)
    # The student is the teacher: the gradients are differences of equal numbers.
    check([user, item, user, item], temperature=0.05, teacher_temperature=0.05, least=0.1)


@pytest.mark.parametrize("divergence, eps", [("cross_entropy", 0.0), ("kl", 1e-8), ("js", 0.0)])
@pytest.mark.parametrize("cached", [True, False])
def test_distribution_kl_on_device_users_and_cached_teacher(device, divergence, eps, cached):
    user, item, teacher_user, teacher_item = tables(device, 80, 50, 24, 20)
    users = torch.tensor([3, 79, 3, 0, 41, 3, 12], device=device)
    weighting = torch.rand(7, generator=torch.Generator().manual_seed(0)).to(device)
    teacher = losses.TeacherDistribution(teacher_user, teacher_item, temperature=0.3)
    ours = dict(teacher_user=None, teacher_item=None, teacher=teacher) if cached else dict(
        teacher_user=teacher_user, teacher_item=teacher_item, teacher_temperature=0.3
    )  # fmt: skip
    for choice in ("entropy", "none", weighting):
        options = dict(users=users, divergence=divergence, eps=eps, weighting=choice, weight_range=(0.0, 0.5))

        def truth(u, i, options=options):
            return reference(
                u, i, teacher_user.to(u.dtype), teacher_item.to(u.dtype), teacher_temperature=0.3, **options
            )

        check_against_reference(
            lambda u, i, options=options: losses.distribution_kl(u, i, **ours, **options), truth, [user, item]
        )


@pytest.mark.parametrize("count", [0, 1, 65, 70])
@pytest.mark.parametrize("divergence, eps", [("cross_entropy", 0.0), ("cross_entropy", 1e-8), ("js", 0.0)])
def test_distribution_kl_on_device_counts_rows(device, divergence, eps, count):
    user, item, teacher_user, teacher_item = tables(device, 70, 20, 16, 16)
    for reduction in ("mean", "none")[: 1 if count > 1 else 2]:
        options = dict(divergence=divergence, eps=eps, reduction=reduction)
        results = []
        for rows, number in ((count, None), (70, torch.tensor(count, device=device))):
            inputs = leaves([user, item])
            loss = losses.distribution_kl(inputs[0][:rows], inputs[1], teacher_user[:rows], teacher_item, count=number,
                                          **options)  # fmt: skip
            assert reduction == "mean" or torch.equal(loss[count:], torch.zeros_like(loss[count:]))
            loss.sum().backward()
            results.append((loss.detach()[:count] if loss.dim() else loss.detach(), *(t.grad for t in inputs)))
        for sliced, counted in zip(*results, strict=True):
            torch.testing.assert_close(counted, sliced, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_distribution_kl_on_device_grad_of_each_input_alone(device, which):
    tensors = tables(device, 20, 40, 16, 16)
    both = leaves(tensors[:2])
    losses.distribution_kl(*both, *tensors[2:]).backward()
    tensors[which].requires_grad_()
    losses.distribution_kl(*tensors).backward()
    assert torch.equal(tensors[which].grad, both[which].grad) and tensors[1 - which].grad is None


def test_distribution_kl_on_device_properties(device):
    user, item, teacher_user, teacher_item = tables(device, 20, 70, 16, 16)
    same = dict(weighting="none", temperature=0.2, teacher_temperature=0.2, reduction="none")
    for divergence in DIVERGENCES[1:]:
        rows = losses.distribution_kl(user, item, user, item, divergence=divergence, **same)
        assert rows.abs().max() < 5e-6, divergence  # a distribution does not differ from itself
        rows = losses.distribution_kl(user, item, teacher_user, teacher_item, divergence=divergence, **same)
        assert (rows > 0).all(), divergence
    empty = leaves([user[:0], item])
    loss = losses.distribution_kl(*empty, teacher_user[:0], teacher_item)
    loss.backward()
    assert loss == 0 and empty[0].grad.shape == (0, 16) and not empty[1].grad.any()
    # A row that is zero is equally far from every item; its loss is finite.
    user[3] = 0
    rows = losses.distribution_kl(user, item, teacher_user, teacher_item, **same)
    assert torch.isfinite(rows).all()
    # A NaN row poisons its own loss only.
    user[5, 2] = float("nan")
    rows = losses.distribution_kl(user, item, teacher_user, teacher_item, **same)
    assert rows.isnan().nonzero().tolist() == [[5]]


def test_teacher_distribution_statistics_on_device(device):
    _, _, teacher_user, teacher_item = tables(device, 70, 133, 8, 24)
    for temperature, normalize in ((0.01, True), (0.2, True), (10.0, True), (0.5, False)):
        teacher = losses.TeacherDistribution(teacher_user, teacher_item, temperature=temperature, normalize=normalize)
        truth = losses.TeacherDistribution(
            teacher_user.double(), teacher_item.double(), temperature=temperature, normalize=normalize
        )
        torch.testing.assert_close(teacher.lse.double(), truth.lse, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(teacher.entropy.double(), truth.entropy, rtol=1e-5, atol=2e-5)
    assert losses.TeacherDistribution(teacher_user[:0], teacher_item).entropy.shape == (0,)
