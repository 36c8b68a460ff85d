"""environment_bpr on the device path. Tiny sizes: without a device, a grid of threads is emulated."""

from __future__ import annotations

import pytest
import torch
from test_environment_bpr import DTYPES, batch_of, check

from prorec_fast import losses

# users, items, width, profiles, environments, batch
SIZES = [(1, 2, 1, 1, 1, 1), (9, 8, 33, 3, 2, 5), (12, 7, 32, 4, 4, 40), (5, 6, 40, 16, 32, 6), (7, 30, 64, 8, 8, 30)]


def on(device, found):
    tensors, triplets, weights = found
    return [t.to(device) for t in tensors], triplets.to(device), weights.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_environment_bpr_on_device_matches_reference(device, sizes, dtype):
    check(*on(device, batch_of(*sizes, dtype)))


@pytest.mark.parametrize("profiles, environments", [(2, 3), (5, 5), (9, 9), (12, 13)])
def test_environment_bpr_on_device_with_tables_to_spare(device, profiles, environments):
    check(*on(device, batch_of(6, 5, 20, profiles, environments, 12)), variance_weight=10.0, unbiased=False)


def test_environment_bpr_on_device_of_a_row_that_most_triplets_name(device):
    tensors, triplets, weights = on(device, batch_of(5, 6, 40, 4, 3, 300))
    triplets[:, 0] = torch.where(triplets[:, 0] > 2, 2, triplets[:, 0])
    check(tensors, triplets, weights)
    triplets[:, 0] = 4
    triplets[:, 1] = 5
    triplets[:, 2] %= 5
    for count in (300, 33, 32):  # a warp finds 32 of a row's entries at a glance
        check(tensors, triplets[:count], weights)


def test_environment_bpr_on_device_when_warps_take_several_triplets(device, monkeypatch):
    monkeypatch.setattr("prorec_fast.ops.environment_bpr._BLOCKS", 2)
    check(*on(device, batch_of(9, 8, 16, 2, 3, 45)))


@pytest.mark.parametrize("which", range(3))
def test_environment_bpr_on_device_grad_of_each_result_alone(device, which):
    check(*on(device, batch_of(9, 8, 24, 4, 3, 20)), results=(which,))


def test_environment_bpr_on_device_grad_of_each_input_alone(device):
    tensors, triplets, weights = on(device, batch_of(9, 8, 24, 4, 3, 20))

    def gradients(*wanted):
        *tables, alignment = given = [t.detach().requires_grad_(n in wanted) for n, t in enumerate(tensors)]
        losses.environment_bpr(*tables, triplets, weights, alignment=alignment).total.backward()
        return [t.grad for t in given]

    together = gradients(*range(5))
    for which in range(5):
        alone = gradients(which)
        assert [grad is None for grad in alone] == [n != which for n in range(5)]
        assert torch.equal(alone[which], together[which])


def test_environment_bpr_on_device_strided_and_confident(device):
    tensors, triplets, weights = on(device, batch_of(9, 8, 64, 4, 3, 20, scale=4.0))
    *tables, alignment = tensors
    check([*(t[..., 1::2] for t in tables), alignment], triplets, weights)
    check([*(t[..., :40] for t in tables), alignment], tuple(triplets.unbind(1)), weights)
    by_row = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tables[2:]]
    check([*tables[:2], *by_row, alignment], triplets, weights)


def test_environment_bpr_on_device_properties(device):
    (*tables, alignment), triplets, weights = on(device, batch_of(9, 8, 24, 4, 3, 20))
    tables = [t.requires_grad_() for t in tables]
    alignment.requires_grad_()
    none = losses.environment_bpr(*tables, triplets[:0], weights, alignment=alignment)
    torch.testing.assert_close(none.per_environment, alignment)
    *grads, by_alignment = torch.autograd.grad(none.per_environment.sum(), (*tables, alignment))
    assert not any(g.any() for g in grads) and (by_alignment == 1).all()
    one = losses.environment_bpr(*tables, triplets, weights[:1])
    assert one.variance == 0 and one.total == one.per_environment[0]
    with torch.no_grad():
        quiet = losses.environment_bpr(*tables, triplets, weights)
    for a, b in zip(quiet, losses.environment_bpr(*tables, triplets, weights), strict=True):
        assert torch.equal(a, b)
    beyond = [t.detach() for t in tables]
    beyond[2][1, int(triplets[4, 0]), 5] = torch.nan
    assert all(t.isnan().all() for t in losses.environment_bpr(*beyond, triplets, weights))


def test_environment_bpr_on_device_traces(device):
    (*tables, alignment), triplets, weights = on(device, batch_of(6, 5, 8, 2, 3, 12))
    given = [t.requires_grad_() for t in (*tables, alignment)]

    def loss(*given):
        return losses.environment_bpr(*given[:4], triplets, weights, alignment=given[4]).total

    grads = [
        torch.autograd.grad(function(*given), given)
        for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))
    ]
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)
