from __future__ import annotations

import pytest
import torch
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import losses
from prorec_fast.reference.gaussian_kl import gaussian_kl as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUM_INPUTS = (2, 4)


def gaussians(num_inputs: int, batch: int, dim: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch * 1000 + dim)
    return [torch.randn(batch, dim, generator=generator).to(dtype) for _ in range(num_inputs)]


def check(tensors, **options):
    check_against_reference(lambda *t: losses.gaussian_kl(*t, **options), lambda *t: reference(*t, **options), tensors)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_gaussian_kl_matches_reference(num_inputs, reduction, dtype):
    for batch, dim in ((1, 1), (1, 8), (129, 33), (20, 200), (9, 513)):
        check(gaussians(num_inputs, batch, dim, dtype), reduction=reduction, beta=0.3)


@pytest.mark.parametrize("beta", [0, 0.0, 0.25, 1.0, 1])
@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_gaussian_kl_weighs_both_priors(num_inputs, beta):
    check(gaussians(num_inputs, 60, 24), beta=beta, reduction="none")


def test_gaussian_kl_is_the_divergence_of_torch():
    mean, logvar, prior_mean, prior_logvar = (t.double() for t in gaussians(4, 20, 7))
    normal = torch.distributions.Normal
    q, prior = normal(mean, (logvar / 2).exp()), normal(prior_mean, (prior_logvar / 2).exp())
    divergence = torch.distributions.kl_divergence
    standard = divergence(q, normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    want = 0.3 * standard + 0.7 * divergence(q, prior).sum(1)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        inputs = [t.to(dtype) for t in (mean, logvar, prior_mean, prior_logvar)]
        got = losses.gaussian_kl(*inputs, beta=0.3, reduction="none")
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=0)
    got = losses.gaussian_kl(mean.float(), logvar.float(), reduction="none")
    torch.testing.assert_close(got.double(), standard, rtol=1e-5, atol=0)


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


@pytest.mark.every_level
def test_gaussian_kl_holds_small_divergences_to_relative_precision():
    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-5, 1.2, 300)[:, None]
    for sign in (1, -1):
        logvar = sign * size
        assert_relative([size.flip(0), logvar], 1.0, 2e-6)
        prior_mean, prior_logvar = torch.randn(2, 300, 1, generator=generator)
        prior_logvar = (prior_logvar * 64).round() / 64
        # Differences that float32 holds: what is subtracted is exact.
        logvar = prior_logvar + (sign * size * 2**18).round() / 2**18
        assert_relative([prior_mean, logvar, prior_mean, prior_logvar], 0.0, 3e-6)
    assert losses.gaussian_kl(*torch.zeros(2, 3, 5)) == 0


@pytest.mark.every_level
def test_gaussian_kl_is_stable_for_any_log_variance():
    grid = torch.linspace(-30, 20, 41)
    logvar, prior_logvar = (t.reshape(-1, 1) for t in torch.meshgrid(grid, grid, indexing="ij"))
    mean = torch.full_like(logvar, 0.75)
    assert_relative([mean, logvar, torch.zeros_like(mean), prior_logvar], 0.5, 1e-5)
    assert_relative([mean, logvar], 1.0, 1e-5)
    assert losses.gaussian_kl(mean[:1], torch.full((1, 1), 90.0)).isinf()
    assert losses.gaussian_kl(mean[:1], torch.full((1, 1), -torch.inf)).isinf()
    ends = torch.tensor([-100.0, -88.0, -87.0, -86.9, 86.0, 88.4])[:, None]  # of what e^v can be in float32
    assert_relative([mean[: len(ends)], ends], 1.0, 1e-5)
    large = losses.gaussian_kl(mean[:1], torch.full((1, 1), 88.72))
    torch.testing.assert_close(large, torch.tensor(88.72).exp() / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_kl_takes_any_strides(dtype):
    wide = gaussians(4, 60, 64, dtype)
    for cut in (lambda t: t[::2, 1::2], lambda t: t[:, :40], lambda t: t.T, lambda t: t[:1].expand(9, 64)):
        check([cut(t) for t in wide], beta=0.4)


@pytest.mark.parametrize("which", range(4))
def test_gaussian_kl_grad_of_each_input_alone(which):
    tensors = gaussians(4, 65, 24)
    every = leaves(tensors)
    losses.gaussian_kl(*every, beta=0.6).backward()
    tensors[which].requires_grad_()
    losses.gaussian_kl(*tensors, beta=0.6).backward()
    assert torch.equal(tensors[which].grad, every[which].grad)
    assert [t.grad is None for t in tensors] == [i != which for i in range(4)]


@pytest.mark.every_level
def test_gaussian_kl_properties():
    tensors = gaussians(4, 300, 200)
    assert losses.gaussian_kl(*(t[:0] for t in tensors)) == 0
    assert losses.gaussian_kl(tensors[0], tensors[1], tensors[0], tensors[1], beta=0) == 0
    half = losses.gaussian_kl(*tensors[:2], beta=0.5), losses.gaussian_kl(*tensors[:2])
    torch.testing.assert_close(2 * half[0], half[1])
    for i in range(4):
        spoiled = [t.clone() for t in tensors]
        spoiled[i][7, 199] = torch.nan
        rows = losses.gaussian_kl(*spoiled, beta=0.5, reduction="none")
        assert rows.isnan().nonzero().tolist() == [[7]]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            inputs = leaves(tensors)
            loss = losses.gaussian_kl(*inputs, beta=0.5, reduction="none")
            results.append([loss, *torch.autograd.grad(loss.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_gaussian_kl_gradcheck_float64(num_inputs):
    tensors = leaves(gaussians(num_inputs, 3, 4), torch.float64)
    assert torch.autograd.gradcheck(lambda *t: losses.gaussian_kl(*t, beta=0.3), tensors)


def test_gaussian_kl_refuses_a_second_derivative():
    tensors = leaves(gaussians(2, 3, 4))
    (grad,) = torch.autograd.grad(losses.gaussian_kl(*tensors), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_kl: its second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("num_inputs, name", [(2, "gaussian_kl"), (4, "prior_gaussian_kl")])
def test_gaussian_kl_compiles_and_registers(num_inputs, name):
    tensors = leaves(gaussians(num_inputs, 40, 16))
    torch.library.opcheck(getattr(torch.ops.prorec_fast, name), (*tensors, 0.3, torch.rand(40)))
    torch.library.opcheck(getattr(torch.ops.prorec_fast, name + "_rows"), (*tensors, 0.3))
    for reduction in ("mean", "none"):
        assert_compiled_equals_eager(lambda *t, r=reduction: losses.gaussian_kl(*t, beta=0.3, reduction=r), tensors)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda m, v, pm, pv: (m[0], v), {}, "mean: want shape"),
        (lambda m, v, pm, pv: (m, v[:-1]), {}, "logvar: want shape"),
        (lambda m, v, pm, pv: (m, v, pm), {}, "prior_mean, prior_logvar: want both or neither"),
        (lambda m, v, pm, pv: (m, v, None, pv), {}, "prior_mean, prior_logvar: want both or neither"),
        (lambda m, v, pm, pv: (m, v, pm[:, 1:], pv), {}, "prior_mean: want shape"),
        (lambda m, v, pm, pv: (m, v, pm, pv.double()), {}, "prior_logvar: want the device and dtype of mean"),
        (lambda m, v, pm, pv: (m.long(), v), {}, "mean: want a floating tensor"),
        (lambda m, v, pm, pv: (m, None), {}, "logvar: want a 2-d floating tensor"),
        (lambda *t: t, dict(beta=1.5), r"beta: want a number in \[0, 1\]"),
        (lambda *t: t, dict(beta=float("nan")), r"beta: want a number in \[0, 1\]"),
        (lambda *t: t, dict(beta=torch.tensor(0.5)), r"beta: want a number in \[0, 1\]"),
        (lambda *t: t, dict(reduction="median"), "reduction: want"),
    ],
)
def test_gaussian_kl_rejects(change, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        losses.gaussian_kl(*change(*gaussians(4, 4, 8)), **options)
