"""info_nce and cross_view_info_nce on the device path. Tiny sizes: without a device, Triton's interpreter runs them."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference, leaves

from prorec_fast import _checks, _native, losses
from prorec_fast.ops import info_nce as ops
from prorec_fast.ops.distinct import Distinct, distinct
from prorec_fast.reference import info_nce as reference


def views(device, count: int, batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    """Rows that agree between views up to noise, so that positives stand out."""
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    shared = torch.randn(batch, dim, generator=generator)
    return [(scale * (shared + torch.randn(batch, dim, generator=generator))).to(device, dtype) for _ in range(count)]


def check(tensors, *, least=1e-30, **options):
    check_against_reference(
        lambda a, p: losses.info_nce(a, p, **options),
        lambda a, p: reference.info_nce(a, p, **options),
        tensors,
        least=least,
    )


def check_cross_view(tensors, **options):
    check_against_reference(
        lambda *t: losses.cross_view_info_nce(*t, **options),
        lambda *t: reference.cross_view_info_nce(*t, **options),
        tensors,
    )


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_on_device_matches_reference(device, symmetric, eps):
    for batch, dim in ((1, 8), (2, 33), (65, 16)):
        least = 1.0 if batch == 1 else 1e-30  # a single row is sure of its positive: the truth is 0
        check(views(device, 2, batch, dim), symmetric=symmetric, reduction="none", eps=eps, least=least)


@pytest.mark.parametrize("temperature", [0.01, 0.024, 0.026, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_info_nce_on_device_matches_reference_at_extreme_temperatures(device, normalize, temperature):
    tensors = views(device, 2, 40, 24, scale=1.0 if normalize else 0.25)
    check(tensors, normalize=normalize, temperature=temperature, eps=1e-5, symmetric=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce_on_device_matches_reference_in_half_precision(device, dtype):
    check(views(device, 2, 40, 40, dtype))
    check_cross_view(views(device, 4, 30, 16, dtype), users=torch.arange(50, device=device) % 20,
                     items=torch.arange(50, device=device) % 30)  # fmt: skip


@pytest.mark.parametrize("dim", [3, 17, 64, 300])
def test_info_nce_on_device_matches_reference_for_any_width(device, dim):
    check(views(device, 2, 20, dim))


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_info_nce_on_device_sweeps_of_several_tiles(device, temperature, monkeypatch):
    from prorec_fast.triton_kernels import info_nce_sweep

    monkeypatch.setattr(info_nce_sweep, "_PROGRAMS", 0)  # nothing is split
    check(views(device, 2, 130, 16), temperature=temperature, symmetric=True)


def test_info_nce_on_device_short_rows(device):
    for scale in (1e-6, 1e-14):  # the latter are shorter than F.normalize's least norm
        check(views(device, 2, 20, 16, scale=scale))
    check([t * torch.logspace(-20, 10, 20, device=device)[:, None] for t in views(device, 2, 20, 16)], least=1.0)


def test_info_nce_on_device_strided_and_confident(device):
    check([t[::3, 1::2] for t in views(device, 2, 60, 48)])
    check([t.T for t in views(device, 2, 24, 40)])
    same = views(device, 1, 40, 16)[0]
    # Sure of every positive: losses and gradients are what is left of terms of 1 / temperature that cancel.
    check([same, same.clone()], temperature=0.02, least=1.0)
    check_against_reference(
        lambda e: losses.info_nce(e, e), lambda e: reference.info_nce(e, e), views(device, 1, 40, 16)
    )


@pytest.mark.parametrize("count", [None, 0, 1, 6])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_on_device_rows_and_count(device, symmetric, count):
    rows = torch.tensor([3, 88, 3, 0, 41, 7, 7, 7], device=device)
    count = None if count is None else torch.tensor(count, device=device)
    options = dict(count=count, symmetric=symmetric, least=1.0 if count == 1 else 1e-30)
    for reduction in ("mean", "none"):
        check(views(device, 2, 89, 24), rows=rows, eps=1e-5, reduction=reduction, **options)
    check(views(device, 2, 8, 24), **options)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("temperature, reduction", [(0.01, "none"), (0.2, "mean")])
def test_cross_view_on_device_matches_reference(device, temperature, reduction, indexed):
    options = dict(temperature=temperature, reduction=reduction)
    if not indexed:
        return check_cross_view(views(device, 4, 40, 24), **options)
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randint(n, (100,), generator=generator) for n in (40, 30))
    users[::3], items[::2] = 5, 7  # far more often than the others
    user_a, user_b = views(device, 2, 40, 24)
    item_a, item_b = views(device, 2, 60, 24)
    check_cross_view([user_a, item_a, user_b, item_b], users=users.to(device), items=items.to(device), **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_view_on_device_takes_what_is_known_of_its_indices(device, reduction, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    users, items = (torch.randint(n, (70,), generator=generator).to(device) for n in (20, 30))
    results = []
    for index in ((users, items), (users, distinct(items)), (distinct(users), distinct(items))):
        inputs = leaves(views(device, 4, 30, 16))
        if isinstance(index[0], Distinct):
            monkeypatch.setattr(ops, "distinct", None)
        loss = losses.cross_view_info_nce(*inputs, users=index[0], items=index[1], reduction=reduction)
        loss.square().sum().backward()
        results.append([loss.detach(), *(t.grad for t in inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("which", range(4))
def test_cross_view_on_device_grad_of_each_input_alone(device, which):
    tensors = views(device, 4, 20, 16)
    every = [t.clone().requires_grad_() for t in tensors]
    losses.cross_view_info_nce(*every).backward()
    tensors[which].requires_grad_()
    losses.cross_view_info_nce(*tensors).backward()
    assert torch.equal(tensors[which].grad, every[which].grad)
    assert [t.grad is None for t in tensors] == [i != which for i in range(4)]


def test_info_nce_on_device_properties(device):
    anchor, positive = views(device, 2, 80, 32)
    assert losses.info_nce(anchor[:0], positive[:0]) == 0
    none = torch.empty(0, dtype=torch.int64, device=device)
    assert losses.cross_view_info_nce(anchor, positive, anchor, positive, users=none, items=none) == 0
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(losses.info_nce(anchor[order], positive[order]), losses.info_nce(anchor, positive))
    anchor[9] = 0
    assert torch.isfinite(losses.info_nce(anchor, positive))
    anchor[7, 1] = float("nan")
    assert losses.info_nce(anchor, positive, reduction="none").isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("wrong", [20, -1, 2**32 + 3])
def test_info_nce_on_device_refuses_foreign_rows_without_the_host(simulated_device, wrong, monkeypatch):
    """The kernels' own check: on a device, where no host sees the indices, it is an assertion."""
    for module in (_checks, _native):
        monkeypatch.setattr(module, "index_range", lambda *_: None)
    tensors = views(simulated_device, 4, 20, 16)
    good, bad = torch.tensor([0, 19, 7]), torch.tensor([0, wrong, 7])
    losses.info_nce(*tensors[:2], rows=good)
    losses.cross_view_info_nce(*tensors, users=good, items=good)
    for call in (
        lambda: losses.info_nce(*tensors[:2], rows=bad),
        lambda: losses.cross_view_info_nce(*tensors, users=bad, items=good),
        lambda: losses.cross_view_info_nce(*tensors, users=good, items=bad),
    ):
        with pytest.raises(RuntimeError, match="out of bounds"):
            call()


def test_info_nce_on_device_gives_equal_results_twice(device):
    users, items = (torch.arange(90, device=device) % n for n in (20, 30))
    results = []
    for _ in range(2):
        tensors = [t.requires_grad_() for t in views(device, 4, 30, 16)]
        losses.cross_view_info_nce(*tensors, users=users, items=items).backward()
        results.append([t.grad for t in tensors])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_info_nce_on_device_reads_nothing_that_was_not_written(device):
    users, items = (torch.arange(70, device=device) % n for n in (20, 30))
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory comes filled with NaN
    try:
        for symmetric in (False, True):
            check(views(device, 2, 40, 20), count=torch.tensor(35, device=device), symmetric=symmetric)
        check_cross_view(views(device, 4, 30, 20), users=users, items=items)
        check_cross_view(views(device, 4, 30, 20), users=users, items=items, temperature=0.01)
    finally:
        torch.use_deterministic_algorithms(False)
