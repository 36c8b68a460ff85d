from __future__ import annotations

import pytest
import torch
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.ops.distinct import distinct
from prorec_fast.reference import info_nce as reference


def views(count: int, batch: int, dim: int, dtype=torch.float32, scale: float = 1.0):
    """Rows that agree between views up to noise, so that positives stand out."""
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    shared = torch.randn(batch, dim, generator=generator)
    return [(scale * (shared + torch.randn(batch, dim, generator=generator))).to(dtype) for _ in range(count)]


def check(tensors, *, least=1e-30, **options):
    check_against_reference(
        lambda a, p: losses.info_nce(a, p, **options),
        lambda a, p: reference.info_nce(a, p, **options),
        tensors,
        least=least,
    )


@pytest.mark.every_level
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_matches_reference(symmetric, reduction, eps):
    for batch, dim in ((1, 8), (2, 33), (65, 16), (129, 32), (507, 24)):
        least = 1.0 if batch == 1 else 1e-30  # a single row is sure of its positive: the truth is 0
        check(views(2, batch, dim), symmetric=symmetric, reduction=reduction, eps=eps, least=least)


@pytest.mark.every_level
@pytest.mark.parametrize("temperature", [0.01, 0.024, 0.2, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_info_nce_matches_reference_at_extreme_temperatures(normalize, temperature):
    for eps in (0.0, 1e-5):
        check(views(2, 130, 24), normalize=normalize, temperature=temperature, eps=eps)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce_matches_reference_in_half_precision(dtype):
    check(views(2, 200, 40, dtype))


@pytest.mark.every_level
@pytest.mark.parametrize("dim", [8, 17, 100, 512])
def test_info_nce_matches_reference_for_any_width(dim):
    check(views(2, 100, dim))


@pytest.mark.every_level
def test_info_nce_strided_and_confident():
    check([t[::3, 1::2] for t in views(2, 150, 48)])
    check([t.T for t in views(2, 24, 40)])
    same = views(1, 70, 16)[0]
    # Sure of every positive: the gradients cancel.
    check([same, same.clone()], temperature=0.02, least=1e-2)


def test_info_nce_rows_and_self_contrast():
    rows = torch.tensor([3, 88, 3, 0, 41, 7, 7, 7])
    check(views(2, 89, 24), rows=rows, eps=1e-5)
    check(views(2, 89, 24), rows=rows, symmetric=True, reduction="none")
    check_against_reference(lambda e: losses.info_nce(e, e), lambda e: reference.info_nce(e, e), views(1, 90, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the kernel, and the definition
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_count_is_the_sliced_call(symmetric, reduction, dtype):
    rows = torch.tensor([3, 88, 0, 41, 7, 7, 2, 2])
    for eps in (0.0, 1e-5):
        options = dict(symmetric=symmetric, reduction=reduction, eps=eps)
        for count in (0, 1, 5, 8):
            check_count(rows, count, views(2, 89, 24, dtype), **options)
        for count in (0, 64, 65, 130):
            check_count(None, count, views(2, 130, 24, dtype), **options)


def check_count(rows, count, tensors, **options):
    """Values and gradients of the call on the first `count` rows; the others may hold anything."""
    sliced, whole = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    if rows is None:
        want = losses.info_nce(*(t[:count] for t in sliced), **options)
        with torch.no_grad():
            for t in whole:
                t[count:] = torch.nan
    else:
        want = losses.info_nce(*sliced, rows=rows[:count], **options)
    got = losses.info_nce(*whole, rows=rows, count=torch.tensor(count), **options)
    if options["reduction"] == "none":
        assert not got[count:].any()
        got = got[:count]
    torch.testing.assert_close(got, want)
    grad_out = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(count))
    for a, b in zip(
        torch.autograd.grad(got, whole, grad_out), torch.autograd.grad(want, sliced, grad_out), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.every_level
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_cross_view_matches_reference(temperature, reduction, indexed):
    generator = torch.Generator().manual_seed(1)
    options = dict(temperature=temperature, reduction=reduction)
    if indexed:  # many equal rows
        user_a, user_b = views(2, 40, 24)
        item_a, item_b = views(2, 60, 24)
        options["users"] = torch.randint(40, (300,), generator=generator)
        options["items"] = torch.randint(30, (300,), generator=generator)
    else:
        user_a, user_b, item_a, item_b = views(4, 130, 24)
    check_against_reference(
        lambda *t: losses.cross_view_info_nce(*t, **options),
        lambda *t: reference.cross_view_info_nce(*t, **options),
        [user_a, item_a, user_b, item_b],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_view_takes_what_is_known_of_its_indices(reduction, dtype):
    generator = torch.Generator().manual_seed(2)
    users, items = (torch.randint(n, (70,), generator=generator) for n in (20, 30))
    results = []
    for index in ((users, items), (distinct(users), distinct(items)), (users, distinct(items))):
        inputs = leaves(views(4, 30, 16), dtype)
        loss = losses.cross_view_info_nce(*inputs, users=index[0], items=index[1], reduction=reduction)
        loss.square().sum().backward()
        results.append([loss.detach(), *(t.grad for t in inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("which", range(4))
def test_cross_view_grad_of_each_input_alone(which):
    tensors = views(4, 33, 16)
    every = leaves(tensors)
    losses.cross_view_info_nce(*every).backward()
    tensors[which].requires_grad_()
    losses.cross_view_info_nce(*tensors).backward()
    assert torch.equal(tensors[which].grad, every[which].grad)
    assert [t.grad is None for t in tensors] == [i != which for i in range(4)]


def test_info_nce_gradcheck_float64():
    tensors = [t.requires_grad_() for t in views(4, 5, 4, torch.float64)]
    for options in (dict(), dict(symmetric=True, eps=1e-2), dict(normalize=False)):
        assert torch.autograd.gradcheck(lambda a, p, o=options: losses.info_nce(a, p, **o), tensors[:2])
    assert torch.autograd.gradcheck(losses.cross_view_info_nce, tensors)


def test_info_nce_properties():
    anchor, positive = views(2, 300, 32)
    assert losses.info_nce(anchor[:0], positive[:0]) == 0
    assert losses.info_nce(anchor[:1], positive[:1]).abs() < 1e-6  # one row is sure of its positive
    constant = torch.ones(50, 8)
    torch.testing.assert_close(losses.info_nce(constant, constant), torch.tensor(50.0).log())
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.info_nce(anchor[order], positive[order]), losses.info_nce(anchor, positive))
    none = torch.empty(0, dtype=torch.int64)
    assert losses.cross_view_info_nce(anchor, positive, anchor, positive, users=none, items=none) == 0
    anchor[9] = 0
    assert torch.isfinite(losses.info_nce(anchor, positive))
    anchor[7, 1] = float("nan")
    assert losses.info_nce(anchor, positive, reduction="none").isnan().nonzero().tolist() == [[7]]


def test_info_nce_does_not_depend_on_the_number_of_threads():
    tensors = views(2, 1500, 32)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            inputs = leaves(tensors)
            loss = losses.info_nce(*inputs)
            loss.backward()
            results.append((loss.detach(), *(t.grad for t in inputs)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_info_nce_compiles_and_registers():
    tensors = [t.requires_grad_() for t in views(4, 20, 16)]
    index = torch.tensor([1, 5, 5, 19])
    for count in (None, torch.tensor(3)):
        arguments = (*tensors[:2], index, count, 0.2, True, True, 1e-5)
        torch.library.opcheck(torch.ops.prorec_fast.info_nce, (*arguments, torch.rand(4)))
        torch.library.opcheck(torch.ops.prorec_fast.info_nce_rows, arguments)
    arguments = (*tensors, index, index.flip(0), 0.2)
    torch.library.opcheck(torch.ops.prorec_fast.cross_view_info_nce, (*arguments, torch.rand(4)))
    torch.library.opcheck(torch.ops.prorec_fast.cross_view_info_nce_rows, arguments)
    for reduction in ("mean", "none"):
        for count in (None, torch.tensor(3)):
            assert_compiled_equals_eager(
                lambda a, p, r=reduction, c=count: losses.info_nce(a, p, rows=index, count=c, reduction=r), tensors[:2]
            )
    for known in (index, distinct(index)):
        assert_compiled_equals_eager(
            lambda *t, known=known: losses.cross_view_info_nce(*t, users=index, items=known), tensors
        )


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(anchor=torch.zeros(3)), ValueError, "anchor: want shape"),
        (dict(positive=torch.zeros(6, 8)), ValueError, r"positive: want shape \[5, 8\]"),
        (dict(positive=torch.zeros(5, 8, dtype=torch.bfloat16)), ValueError, "positive: want the device and dtype"),
        (dict(rows=torch.tensor([-1])), IndexError, r"rows: want entries in \[0, 5\)"),
        (dict(count=3), TypeError, "count: want a 0-d int64 tensor, got int 3"),
        (dict(count=torch.tensor([3])), TypeError, "count: want a 0-d int64 tensor"),
        (dict(count=torch.tensor(6)), IndexError, r"count: want entries in \[0, 6\)"),
        (dict(count=torch.tensor(-1)), IndexError, r"count: want entries in \[0, 6\)"),
        (dict(temperature=-1.0), ValueError, "temperature"),
        (dict(eps=float("inf")), ValueError, "eps"),
        (dict(reduction="max"), ValueError, "reduction"),
    ],
)
def test_info_nce_rejects(change, error, message):
    anchor, positive = views(2, 5, 8)
    with pytest.raises(error, match=message):
        losses.info_nce(**(dict(anchor=anchor, positive=positive) | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(item_b=torch.zeros(4, 8)), ValueError, "item_b: want shape"),
        (dict(users=torch.tensor([0])), ValueError, "users, items: want both or neither"),
        (dict(users=torch.tensor([0]), items=torch.tensor([0, 1])), ValueError, "items: want one for each"),
        (dict(users=torch.tensor([0]), items=torch.tensor([5])), IndexError, "items: want entries"),
        (dict(users=torch.tensor([0]), items=distinct(torch.tensor([5]))), IndexError, "items: want entries"),
        (dict(users=torch.tensor([0]), items=distinct(torch.tensor([1, 1]))), ValueError, "items: want one for each"),
        (dict(users=torch.tensor([0]), items=[0]), TypeError, "items: want a 1-d int64 tensor"),
    ],
)
def test_cross_view_rejects(change, error, message):
    arguments = dict(zip(("user_a", "item_a", "user_b", "item_b"), views(4, 5, 8), strict=True)) | change
    with pytest.raises(error, match=message):
        losses.cross_view_info_nce(**arguments)
