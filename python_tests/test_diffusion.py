"""The diffusion of latents: a chain of noise against Gaussian algebra, and the network that is to undo it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import linear
from training_data import with_random_biases

from prorec_fast.models.diffusion import Denoiser, NoiseSchedule

SCHEDULES = {
    "usual": (5, 0.5, 0.001, 0.005),
    "strong": (4, 1.0, 0.1, 0.9),
    "flat": (3, 1.0, 0.2, 0.2),
    "one": (1, 1, 0.3, 0.9),
}
schedules = pytest.mark.parametrize("setting", SCHEDULES.values(), ids=SCHEDULES)


def variances(num_steps, scale, low, high):
    """1 - abar_t for t = 1..T, and alpha_t, plain floats."""
    rise = (high - low) / max(num_steps - 1, 1)
    noise = [scale * (low + t * rise) for t in range(num_steps)]
    alphas = [(1 - now) / (1 - before) for before, now in zip([0.0, *noise], noise, strict=False)]
    return noise, alphas


@schedules
def test_diffusion_noises_as_its_chain_does(setting):
    """x_t drawn at once, and step by step: the same mean and variance."""
    schedule, (noise, alphas) = NoiseSchedule(*setting), variances(*setting)
    generator, start = torch.Generator().manual_seed(0), torch.tensor([[1.5], [-0.5]]).expand(2, 20_000)
    walked = start.double()
    for t, alpha in enumerate(alphas):
        draw = torch.randn(walked.shape, generator=generator, dtype=torch.float64)
        walked = math.sqrt(alpha) * walked + math.sqrt(1 - alpha) * draw
        at_once = schedule.noised(start, torch.full((2,), t), torch.randn(start.shape, generator=generator))
        for x in (walked, at_once.double()):
            spread = math.sqrt(noise[t])
            torch.testing.assert_close(
                x.mean(1), start[:, 0].double() * math.sqrt(1 - noise[t]), atol=0.03 * spread, rtol=0
            )
            torch.testing.assert_close(x.std(1), torch.full((2,), spread).double(), atol=0, rtol=0.02)


@schedules
def test_diffusion_steps_back_by_conditioning(setting):
    """The mean of x_{t-1} given x_t and x_0, from the joint covariance of the chain."""
    schedule, (_, alphas) = NoiseSchedule(*setting), variances(*setting)
    # x_t = signal_t x_0 + sum_s mix[t, s] noise_s
    size = len(alphas)
    mix, signal = torch.zeros(size + 1, size, dtype=torch.float64), torch.ones(size + 1, dtype=torch.float64)
    for t, alpha in enumerate(alphas, 1):
        mix[t], signal[t] = math.sqrt(alpha) * mix[t - 1], math.sqrt(alpha) * signal[t - 1]
        mix[t, t - 1] = math.sqrt(1 - alpha)
    covariance = mix @ mix.T
    start, noisy = torch.tensor([[0.7]]).double(), torch.tensor([[-1.1]]).double()
    for t in range(1, size + 1):
        gain = covariance[t - 1, t] / covariance[t, t]
        want = signal[t - 1] * start + gain * (noisy - signal[t] * start)
        got = schedule.mean_before(start, noisy, torch.tensor([t - 1]))
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@schedules
def test_diffusion_weighs_by_the_fall_of_the_signal(setting):
    noise, _ = variances(*setting)
    snr = [(1 - v) / v for v in noise]
    want = [1.0, *(before - now for before, now in pairwise(snr))]
    assert NoiseSchedule(*setting).loss_weight.tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    schedule = NoiseSchedule(*setting)
    assert not schedule.state_dict() and schedule.signal.dtype == torch.float32


def test_diffusion_denoiser_is_its_formula():
    network = with_random_biases(Denoiser(6, 4, hidden_dim=9, time_dim=5, dropout=0.5)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    noisy, step = torch.randn(7, 6, generator=generator), torch.tensor([0, 1, 2, 3, 3, 0, 1])
    p = {name: value.double() for name, value in network.named_parameters()}
    angles = step[:, None] * torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], dtype=torch.float64)
    time = linear(torch.cat([angles.cos(), angles.sin()[:, :2]], 1), p["time.weight"], p["time.bias"])
    inner = torch.tanh(linear(torch.cat([noisy.double(), time], 1), p["inner.weight"], p["inner.bias"]))
    want = linear(inner, p["outer.weight"], p["outer.bias"])
    torch.testing.assert_close(network(noisy, step).double(), want, rtol=1e-4, atol=1e-5)
    network.train()
    assert not torch.equal(network(noisy, step), network(noisy, step))
