"""Gaussian diffusion of vectors, and the network that undoes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prorec_fast._checks import positive_int, positive_number

from .variational import dense_layer


class NoiseSchedule(nn.Module):
    """The chain q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I) of steps t = 1..T, by the variances of
    q(x_t | x_0), which rise linearly (Wang et al., 2023, arXiv 2304.04971):

        1 - abar_t = scale (low + (t - 1) / (T - 1) (high - low)),   abar_t = alpha_1 ... alpha_t

    Steps are given as int64 t - 1.

    Args:
        num_steps: T.
        scale, low, high: scale * high is below 1.

    Attributes:
        loss_weight: float32 [T], of the squared error of x_0 in the bound of the likelihood, up to a common factor:
            SNR(t - 1) - SNR(t) with SNR(t) = abar_t / (1 - abar_t), and 1 for t = 1.
    """

    def __init__(self, num_steps: int, scale: float, low: float, high: float) -> None:
        super().__init__()
        positive_int("num_steps", num_steps)
        for name, value in (("noise_scale", scale), ("noise_min", low), ("noise_max", high)):
            positive_number(name, value)
        if low > high or scale * high >= 1:
            raise ValueError(
                f"noise_max: want at least noise_min ({low}), and below 1 times noise_scale ({scale}), got {high}"
            )
        self.num_steps = num_steps
        variance = scale * torch.linspace(low, high, num_steps, dtype=torch.float64, device="cpu")
        kept = 1 - variance
        before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
        alpha, snr = kept / before, kept / variance
        self.signal: Tensor
        self.noise: Tensor
        self.loss_weight: Tensor
        self.of_start: Tensor
        self.of_noisy: Tensor
        for name, value in {
            "signal": kept.sqrt(),
            "noise": variance.sqrt(),
            "loss_weight": torch.cat([torch.ones_like(snr[:1]), snr[:-1] - snr[1:]]),
            "of_start": (1 - alpha) * before.sqrt() / variance,
            "of_noisy": (1 - before) * alpha.sqrt() / variance,
        }.items():
            self.register_buffer(name, value.float(), persistent=False)

    def noised(self, start: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) of start [B, dim] at steps [B], with standard normal noise [B, dim]."""
        return self.signal[step, None] * start + self.noise[step, None] * noise

    def mean_before(self, start: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """[B, dim]: the mean of q(x_{t-1} | x_t, x_0), which is x_0 itself for t = 1."""
        return self.of_start[step, None] * start + self.of_noisy[step, None] * noisy


class Denoiser(nn.Module):
    """x_0 from x_t and t: two layers, tanh between, of x_t beside a linear map of the sinusoids of t.

    Args:
        dim: width of x.
        num_steps: T.
        hidden_dim: width between the layers.
        time_dim: number of sinusoids, cosines first, of frequencies that fall geometrically from 1 towards 1/10000.
        dropout: while training, each entry of x_t is left out with this probability.
    """

    def __init__(self, dim: int, num_steps: int, *, hidden_dim: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        half = (time_dim + 1) // 2
        frequency = torch.exp(torch.arange(half, dtype=torch.float64, device="cpu") * (-math.log(10_000) / half))
        angle = torch.arange(num_steps, dtype=torch.float64, device="cpu")[:, None] * frequency
        sinusoids = torch.cat([angle.cos(), angle.sin()], dim=1)[:, :time_dim]
        self.sinusoids: Tensor
        self.register_buffer("sinusoids", sinusoids.float(), persistent=False)  # [T, time_dim]
        self.dropout = nn.Dropout(dropout)
        self.time = dense_layer(time_dim, time_dim)
        self.inner = dense_layer(dim + time_dim, hidden_dim)
        self.outer = dense_layer(hidden_dim, dim)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """[B, dim] from noisy [B, dim] and steps t - 1, int64 [B]."""
        beside = torch.cat([self.dropout(noisy), self.time(self.sinusoids[step])], dim=1)
        return self.outer(torch.tanh(self.inner(beside)))
