from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager, leaves

from prorec_fast import losses
from prorec_fast.reference.environment_bpr import environment_bpr as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# users, items, width, profiles, environments, batch
SIZES = [
    (1, 2, 1, 1, 1, 1),
    (9, 8, 33, 3, 2, 5),
    (60, 50, 32, 4, 4, 129),
    (300, 20, 64, 8, 8, 500),
    (20, 500, 129, 12, 3, 70),
    (7, 11, 512, 16, 32, 33),
]


def batch_of(num_users, num_items, dim, profiles, environments, batch, dtype=torch.float32, scale=0.5):
    """(user, item, user_profiles, item_profiles, alignment), triplets, weights"""
    generator = torch.Generator().manual_seed(num_users * 1000 + dim)
    shapes = (num_users, dim), (num_items, dim), (profiles, num_users, dim), (profiles, num_items, dim)
    tables = [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]
    users, positives = (torch.randint(rows, (batch,), generator=generator) for rows in (num_users, num_items))
    negatives = (positives + torch.randint(1, num_items, (batch,), generator=generator)) % num_items
    weights = torch.rand(environments, profiles, generator=generator)
    alignment = torch.rand(environments, generator=generator).to(dtype)
    return [*tables, alignment], torch.stack([users, positives, negatives], 1), weights / weights.sum(1, keepdim=True)


def check(tensors, triplets, weights, results=(0, 1, 2), least=1e-30, **options):
    """Values and every gradient of the named results together, with random gradients of each."""
    runs = []
    for function, dtype in ((losses.environment_bpr, None), (reference, None), (reference, torch.float64)):
        *tables, alignment = given = leaves(tensors, dtype)
        found = function(*tables, triplets, weights, alignment=alignment, **options)
        generator = torch.Generator().manual_seed(1)
        total = 0
        for n, result in enumerate(found):
            grad = torch.randn(result.shape, generator=generator).to(result)
            total = total + (result * grad).double().sum() if n in results else total
        total.backward()
        runs.append((*(found[n].detach() for n in results), *(t.grad for t in given)))
    for n, (got, eager, truth) in enumerate(zip(*runs, strict=True)):
        assert_as_good_as_eager(got, eager, truth, f"result {n}", least)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_environment_bpr_matches_reference(sizes, dtype):
    check(*batch_of(*sizes, dtype))


@pytest.mark.every_level
@pytest.mark.parametrize("options", [{"variance_weight": 10.0}, {"unbiased": False}, {"variance_weight": 0}])
def test_environment_bpr_matches_reference_with_options(options):
    check(*batch_of(60, 50, 24, 4, 5, 129), **options)


@pytest.mark.every_level
@pytest.mark.parametrize("profiles", range(1, 17))
def test_environment_bpr_matches_reference_for_every_number_of_profiles(profiles):
    check(*batch_of(12, 9, 17, profiles, 3, 40))


@pytest.mark.parametrize("which", range(3))
def test_environment_bpr_grad_of_each_result_alone(which):
    check(*batch_of(60, 50, 24, 4, 3, 129), results=(which,))


@pytest.mark.parametrize("which", range(5))
def test_environment_bpr_grad_of_each_input_alone(which):
    tensors, triplets, weights = batch_of(30, 20, 24, 4, 3, 65)
    grads = []
    for function, dtype in ((losses.environment_bpr, torch.float32), (reference, torch.float64)):
        *tables, alignment = given = [t.to(dtype).requires_grad_(n == which) for n, t in enumerate(tensors)]
        function(*tables, triplets, weights, alignment=alignment).total.backward()
        assert [t.grad is None for t in given] == [n != which for n in range(5)]
        grads.append(given[which].grad.double())
        given[which].requires_grad_(False)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


def test_environment_bpr_of_strided_tables_and_separate_columns():
    tensors, triplets, weights = batch_of(30, 40, 64, 4, 3, 65)
    *tables, alignment = tensors
    check([*(t[..., 1::2] for t in tables), alignment], triplets, weights)
    check([*(t[..., :40] for t in tables), alignment], tuple(triplets.unbind(1)), weights.double())
    by_row = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tables[2:]]  # a node's profiles side by side
    check([*tables[:2], *by_row, alignment], list(triplets.flip(0).unbind(1)), weights.t().contiguous().t())
    check([*tables[:2], *(t[:1].expand(4, -1, -1) for t in tables[2:]), alignment], triplets, weights)


def test_environment_bpr_of_an_alignment_and_a_gradient_without_memory_of_their_own():
    (*tables, alignment), triplets, weights = batch_of(30, 20, 24, 4, 3, 65)
    results = []
    for dtype in (torch.float32, torch.float64):
        *given, aligned = leaves([*tables, alignment[:1]], dtype)
        found = losses.environment_bpr(*given, triplets, weights, alignment=aligned.expand(3))
        grads = torch.autograd.grad(found.per_environment.sum(), (*given, aligned))  # of ones, all of them the same one
        results.append([t.double() for t in (found.per_environment, *grads)])
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-6)


def test_environment_bpr_of_confident_scores():
    check(*batch_of(60, 50, 32, 4, 4, 129, scale=8.0))
    tensors, triplets, weights = batch_of(60, 50, 32, 4, 4, 129, scale=1e3)
    found = losses.environment_bpr(*tensors[:4], triplets, weights)
    assert all(torch.isfinite(t).all() for t in found) and (found.per_environment > 1e5).all()


def test_environment_bpr_gradcheck_float64():
    (*tables, alignment), triplets, weights = batch_of(4, 5, 3, 2, 3, 6, torch.float64)

    def results(*tensors):
        return losses.environment_bpr(*tensors[:4], triplets, weights, alignment=tensors[4], variance_weight=2.0)

    tensors = [t.requires_grad_() for t in (*tables, alignment)]
    assert torch.autograd.gradcheck(results, tensors)
    assert torch.autograd.gradgradcheck(results, tensors)


def test_environment_bpr_is_bpr_without_profiles():
    (user, item, user_profiles, item_profiles, _), triplets, weights = batch_of(60, 50, 32, 4, 3, 129)
    users, positives, negatives = triplets.unbind(1)
    found = losses.environment_bpr(user, item, 0 * user_profiles, 0 * item_profiles, triplets, weights)
    alone = losses.bpr(user[users], item[positives], item[negatives])
    torch.testing.assert_close(found.per_environment, alone.expand(3))
    torch.testing.assert_close(found.total, found.per_environment.sum())
    assert found.variance < 1e-12


def test_environment_bpr_properties():
    (*tables, alignment), triplets, weights = batch_of(60, 50, 32, 4, 3, 129)
    tables = [t.requires_grad_() for t in tables]
    none = losses.environment_bpr(*tables, triplets[:0], weights, alignment=alignment)
    torch.testing.assert_close(none.per_environment, alignment)
    torch.testing.assert_close(none.variance, alignment.var())
    assert not any(g.any() for g in torch.autograd.grad(none.total, tables))
    assert not any(t.any() for t in losses.environment_bpr(*tables, triplets[:0], weights))
    for unbiased in (False, True):
        one = losses.environment_bpr(*tables, triplets, weights[:1], unbiased=unbiased)
        assert one.variance == 0 and one.total == one.per_environment[0]
        grads = torch.autograd.grad(one.variance, tables)
        assert not any(g.any() for g in grads)
    with torch.no_grad():
        quiet = losses.environment_bpr(*tables, triplets, weights)
    assert not quiet.total.requires_grad
    alike = torch.cat([triplets[:5, :2], triplets[:5, 1:2]], 1)  # an item against itself
    found = losses.environment_bpr(*tables, alike, weights)
    torch.testing.assert_close(found.per_environment, torch.tensor(2.0).log().expand(3))
    assert torch.autograd.grad(found.total, tables[1])[0].abs().max() < 1e-6
    for a, b in zip(quiet, losses.environment_bpr(*tables, triplets, weights), strict=True):
        assert torch.equal(a, b)
    for index in (0, 1):
        rows = [{int(u) for u in triplets[:, 0]}, {int(i) for i in triplets[:, 1:].flatten()}][index]
        grads = torch.autograd.grad(losses.environment_bpr(*tables, triplets, weights).total, tables)
        for grad in (grads[index][None], grads[2 + index]):
            assert {r for r in range(grad.size(1)) if grad[:, r].any()} == rows


def test_environment_bpr_keeps_nan_to_the_rows_of_its_triplets():
    (*tables, _), triplets, weights = batch_of(60, 50, 32, 4, 3, 40)
    triplets[:, 0] %= 30
    triplets[:, 1:] %= 25
    triplets[7] = torch.tensor([41, 42, 43])
    tables[2][1, 41, 5] = torch.nan
    tables = [t.requires_grad_() for t in tables]
    found = losses.environment_bpr(*tables, triplets, weights)
    assert all(t.isnan().all() for t in found)
    grads = torch.autograd.grad(found.per_environment.sum(), tables)
    user, item, user_profiles, item_profiles = (g.isnan().reshape(-1, *g.shape[-2:]).any(0).any(1) for g in grads)
    assert user.nonzero().tolist() == user_profiles.nonzero().tolist() == [[41]]
    assert item.nonzero().tolist() == item_profiles.nonzero().tolist() == [[42], [43]]


@pytest.mark.every_level
def test_environment_bpr_gives_the_same_bits_for_any_number_of_threads():
    tensors, triplets, weights = batch_of(300, 200, 32, 4, 4, 3000)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            *tables, alignment = given = leaves(tensors)
            found = losses.environment_bpr(*tables, triplets, weights, alignment=alignment)
            results.append((*found, *torch.autograd.grad(found.total, given)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_environment_bpr_beyond_the_kernel_runs_the_reference():
    for sizes in ((9, 8, 5, 17, 2, 12), (9, 8, 5, 2, 33, 12)):
        check(*batch_of(*sizes))


def test_environment_bpr_total_and_variance_may_be_scaled_in_place():
    (*tables, _), triplets, weights = batch_of(9, 8, 5, 2, 3, 12)
    grads = []
    for dtype in (torch.float32, torch.float64):
        given = leaves(tables, dtype)
        found = losses.environment_bpr(*given, triplets, weights)
        total, variance = found.total.div_(4), found.variance.mul_(3)
        (total + variance).backward()
        grads.append([t.grad.double() for t in given])
    for got, truth in zip(*grads, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)


def test_environment_bpr_refuses_a_second_derivative():
    (*tables, _), triplets, weights = batch_of(9, 8, 5, 2, 3, 12)
    tables[0].requires_grad_()
    total = losses.environment_bpr(*tables, triplets, weights).total
    (grad,) = torch.autograd.grad(total, tables[0], create_graph=True)
    with pytest.raises(RuntimeError, match="environment_bpr: its second derivative needs float64"):
        grad.sum().backward()


def test_environment_bpr_compiles_and_registers():
    (*tables, alignment), triplets, weights = batch_of(30, 20, 16, 3, 4, 40)
    tables, alignment = [t.requires_grad_() for t in tables], alignment.requires_grad_()
    columns = [t.contiguous() for t in triplets.unbind(1)]
    for given in (alignment, None):
        torch.library.opcheck(torch.ops.prorec_fast.environment_bpr, (*tables, *columns, weights, given, 1.0, True))
    tables[3].requires_grad_(False)

    def loss(tensors, aligned):
        found = losses.environment_bpr(*tensors, triplets, weights, alignment=aligned, variance_weight=2.0)
        return found.total.div_(2) + found.per_environment[1] + 3 * found.variance

    for aligned in (alignment, None):
        wanted = [*tables[:3], *([] if aligned is None else [aligned])]
        values = []
        for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            value = function(tables, aligned)
            values.append((value.detach(), *torch.autograd.grad(value, wanted)))
        for eager, compiled in zip(*values, strict=True):
            torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"user": lambda t: t[0]}, "user: want shape"),
        ({"item": lambda t: t[:, :-1]}, r"item: want shape \[any, 8\]"),
        ({"item": lambda t: t.double()}, "item: want the device and dtype of user"),
        ({"user_profiles": lambda t: t[0]}, r"user_profiles: want shape \[1 or more, 6, 8\]"),
        ({"user_profiles": lambda t: t[:0]}, r"user_profiles: want shape \[1 or more, 6, 8\]"),
        ({"user_profiles": lambda t: t.long()}, "user_profiles: want a 3-d floating tensor"),
        ({"item_profiles": lambda t: t[1:]}, r"item_profiles: want shape \[3, 7, 8\]"),
        ({"item_profiles": lambda t: t.half()}, "item_profiles: want the device and dtype of user"),
        ({"triplets": lambda t: t.int()}, "triplets: want an int64 tensor"),
        ({"triplets": lambda t: t[:, :2]}, r"triplets: want an int64 tensor of shape \[B, 3\]"),
        ({"triplets": lambda t: t.unbind(1)[:2]}, "triplets: want a tensor of shape"),
        ({"triplets": lambda t: None}, "triplets: want a tensor of shape"),
        ({"triplets": lambda t: (t[:, 0], t[:, 1].float(), t[:, 2])}, r"triplets\[1\]: want a 1-d int64 tensor"),
        ({"triplets": lambda t: (t[:, 0], t[:, 1], t[1:, 2])}, r"triplets\[2\]: want shape"),
        ({"triplets": lambda t: t + 100}, r"triplets, users: want entries in \[0, 6\)"),
        ({"triplets": lambda t: t - torch.tensor([0, 9, 0])}, r"triplets, positives: want entries in \[0, 7\)"),
        ({"triplets": lambda t: t + torch.tensor([0, 0, 7])}, r"triplets, negatives: want entries in \[0, 7\)"),
        ({"weights": lambda t: t[:, 1:]}, r"weights: want shape \[any, 3\]"),
        ({"weights": lambda t: t[:0]}, "weights: want at least one environment"),
        ({"weights": lambda t: t.requires_grad_()}, "weights: have no gradient here"),
        ({"alignment": lambda t: t[1:]}, r"alignment: want shape \[2\]"),
        ({"alignment": lambda t: t.long()}, "alignment: want a floating tensor"),
        ({"variance_weight": lambda t: -1.0}, "variance_weight: want a finite number"),
        ({"variance_weight": lambda t: float("nan")}, "variance_weight: want a finite number"),
    ],
)
def test_environment_bpr_rejects(change, message):
    (*tables, alignment), triplets, weights = batch_of(6, 7, 8, 3, 2, 5)
    names = ("user", "item", "user_profiles", "item_profiles", "alignment", "triplets", "weights", "variance_weight")
    arguments = dict(zip(names, (*tables, alignment, triplets, weights, 1.0), strict=True))
    arguments |= {name: function(arguments[name]) for name, function in change.items()}
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        losses.environment_bpr(**arguments)
