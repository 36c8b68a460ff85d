from __future__ import annotations

import pytest
import torch
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.reference.mix_environments import mix_environments as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def inputs(shape, environments: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape) * 100 + environments)
    profiles = torch.randn(shape, generator=generator).to(dtype)
    return [profiles, torch.rand(environments, shape[0], generator=generator).to(dtype)]


def check(tensors):
    check_against_reference(losses.mix_environments, reference, tensors)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, environments",
    [((1, 1), 1), ((4, 7), 3), ((3, 33, 5), 2), ((4, 129, 32), 4), ((2, 3, 11, 40), 5), ((17, 70, 33), 9),
     ((4, 600, 513), 3)],
)  # fmt: skip
def test_mix_environments_matches_reference(shape, environments, dtype):
    check(inputs(shape, environments, dtype))


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_environments_takes_any_strides(dtype):
    profiles, _ = inputs((50, 4, 96), 3, dtype)
    for view in (
        profiles.transpose(0, 1),  # a user's profiles side by side
        profiles.transpose(0, 1)[:, ::3],
        profiles.transpose(0, 1)[..., :40],
        profiles.transpose(0, 1)[..., ::2],
        profiles[:, 0].expand(4, 50, 96),
        profiles.permute(1, 2, 0),
        profiles.view(50, 4, 8, 12).permute(1, 2, 0, 3),
    ):
        weight = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        check([view, weight.T.contiguous().T])
        assert torch.equal(losses.mix_environments(view, weight), losses.mix_environments(view.contiguous(), weight))


def test_mix_environments_keeps_wider_weights():
    profiles, weights = inputs((4, 200, 32), 3)
    stored = profiles.bfloat16()
    mixed = losses.mix_environments(stored, weights)
    assert mixed.dtype == torch.bfloat16
    truth = torch.tensordot(weights.double(), stored.double(), 1)
    assert ((mixed.double() - truth).abs() <= 2**-8 * truth.abs() + 1e-5).all()
    rounded = torch.tensordot(weights.bfloat16().double(), stored.double(), 1)
    assert not torch.equal(mixed, rounded.bfloat16())
    weights.requires_grad_()
    losses.mix_environments(stored, weights).float().sum().backward()
    assert weights.grad.dtype == torch.float32
    torch.testing.assert_close(weights.grad, stored.float().sum((1, 2)).expand(3, 4))


@pytest.mark.every_level
def test_mix_environments_properties():
    profiles, weights = inputs((4, 65, 24), 3)
    assert losses.mix_environments(profiles[:, :0], weights).shape == (3, 0, 24)
    none = losses.mix_environments(profiles.requires_grad_(), weights[:0])
    assert none.shape == (0, 65, 24)
    assert not torch.autograd.grad(none.sum(), profiles)[0].any()
    profiles.requires_grad_(False)
    assert torch.equal(losses.mix_environments(profiles, torch.eye(4)), profiles)
    for special in (torch.nan, torch.inf):
        profiles[2, 7, 3] = special
        for stored in (profiles, profiles.bfloat16()):
            found = (~losses.mix_environments(stored, weights).isfinite()).nonzero()
            assert found.tolist() == [[e, 7, 3] for e in range(3)]
    largest = torch.full((1, 40), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    assert losses.mix_environments(largest, torch.full((1, 1), 2.0)).isinf().all()


@pytest.mark.every_level
def test_mix_environments_rounds_as_torch_does():
    generator = torch.Generator().manual_seed(0)
    profiles = torch.randint(-255, 256, (4, 3000), generator=generator).bfloat16()  # sums of ten bits: many ties
    weights = torch.randint(-1, 3, (5, 4), generator=generator).float()
    want = losses.mix_environments(profiles.float(), weights).bfloat16()
    assert torch.equal(losses.mix_environments(profiles, weights), want)
    weights[0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN next to 0 if it were rounded
    assert losses.mix_environments(profiles, weights)[0].isnan().all()


def test_mix_environments_is_the_same_on_any_number_of_threads():
    profiles, weights = inputs((4, 3000, 33), 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = losses.mix_environments(profiles, weights)
        torch.set_num_threads(3)
        assert torch.equal(losses.mix_environments(profiles, weights), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("which", range(2))
def test_mix_environments_grad_of_each_input_alone(which):
    tensors = inputs((4, 65, 24), 3)
    every = leaves(tensors)
    losses.mix_environments(*every).square().sum().backward()
    tensors[which].requires_grad_()
    losses.mix_environments(*tensors).square().sum().backward()
    assert torch.equal(tensors[which].grad, every[which].grad)
    assert tensors[1 - which].grad is None


def test_mix_environments_gradients_can_be_differentiated():
    results = []
    for dtype in (torch.float32, torch.float64):
        profiles, weights = leaves(inputs((3, 20, 8), 2), dtype)
        grads = torch.autograd.grad(
            losses.mix_environments(profiles, weights).square().sum(), (profiles, weights), create_graph=True
        )
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), (profiles, weights)))
    for got, truth in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-3)
    tensors = leaves(inputs((3, 4, 2), 2), torch.float64)
    assert torch.autograd.gradcheck(losses.mix_environments, tensors)


def test_mix_environments_compiles_and_registers():
    tensors = leaves(inputs((4, 30, 16), 3))
    torch.library.opcheck(torch.ops.prorec_fast.mix_environments, tensors)
    torch.library.opcheck(torch.ops.prorec_fast.mix_environments, [tensors[0].detach().transpose(1, 2), tensors[1]])
    assert_compiled_equals_eager(losses.mix_environments, tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, w: (p[0, 0], w), "profiles: want shape"),
        (lambda p, w: (None, w), "profiles: want a floating tensor"),
        (lambda p, w: (p.long(), w), "profiles: want a floating tensor"),
        (lambda p, w: (p[:0], w[:, :0]), "profiles: want shape"),
        (lambda p, w: (p[..., :0], w), "profiles: want shape"),
        (lambda p, w: (p, w.T), r"weights: want shape \[any, 4\]"),
        (lambda p, w: (p, w.int()), "weights: want a floating tensor"),
        (lambda p, w: (p, w.to("meta")), "weights: want a tensor on cpu"),
    ],
)
def test_mix_environments_rejects(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        losses.mix_environments(*change(*inputs((4, 6, 8), 3)))
