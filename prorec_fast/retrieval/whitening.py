"""Whitening of profile vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast._checks import describe, float_matrix, positive_int

from .tables import finite_matrix, row_parts


class Whitening:
    """Principal components scaled to unit variance (ProMax Eq. 2-4).

        mean = sum_i x_i / n;  C = sum_i (x_i - mean)(x_i - mean)^T / (n - 1);  C v_k = lambda_k v_k
        transform(x) = (x - mean) [v_1 / sqrt(lambda_1), ..., v_dim / sqrt(lambda_dim)],  lambda descending

    All of it in float64. Every v_k is given the sign that makes its entry of largest magnitude positive, so that a fit
    does not depend on the eigensolver's choice.

    Attributes:
        dim: the number of components.
        mean [d], projection [d, dim], eigenvalues [dim]: float64, None before `fit`.
    """

    def __init__(self, dim: int) -> None:
        positive_int("dim", dim)
        self.dim = dim
        self.mean: Tensor | None = None
        self.projection: Tensor | None = None
        self.eigenvalues: Tensor | None = None

    @torch.no_grad()
    def fit(self, x: Tensor) -> Whitening:
        """Learns mean and projection from x [n, d], n > 1; returns itself.

        Raises:
            TypeError, ValueError: x is not a finite floating matrix with 2 rows or more, or has fewer than `dim`
                components: an eigenvalue counts as zero at or below max(n, d) * 2.2e-16 times the largest.
        """
        finite_matrix("x", x)
        rows, width = x.shape
        if rows < 2:
            raise ValueError(f"x: want at least 2 rows to take a covariance of, got {describe(x)}")
        mean = sum(part.double().sum(0) for part in row_parts(x)) / rows
        covariance = x.new_zeros(width, width, dtype=torch.float64)
        for part in row_parts(x):
            centred = part.double() - mean
            covariance += centred.T @ centred
        eigenvalues, vectors = torch.linalg.eigh(covariance / (rows - 1))
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
        # A constant column leaves the rounding of its mean in the covariance, which is no component either.
        rounding = max(rows, width) * torch.finfo(torch.float64).eps
        floor = rounding * torch.maximum(eigenvalues[0], rounding * mean.square().sum())
        rank = int((eigenvalues > floor).sum())
        if rank < self.dim:
            raise ValueError(f"dim: want at most {rank}, the rank of the {rows} centred rows of x, got {self.dim}")
        eigenvalues, vectors = eigenvalues[: self.dim], vectors[:, : self.dim]
        largest = vectors.abs().argmax(0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        self.mean, self.eigenvalues, self.projection = mean, eigenvalues.clone(), vectors / eigenvalues.sqrt()
        return self

    @torch.no_grad()
    def transform(self, x: Tensor) -> Tensor:
        """x [n, d] -> [n, dim], float64 for a float64 x and float32 otherwise.

        Raises:
            RuntimeError: `fit` has not been called.
            TypeError, ValueError: x is not a floating matrix of the width fitted.
        """
        if self.mean is None or self.projection is None:
            raise RuntimeError("Whitening.transform: call fit first")
        float_matrix("x", x, cols=self.mean.numel())
        mean, projection = self.mean.to(x.device), self.projection.to(x.device)
        out = x.new_empty(x.size(0), self.dim, dtype=torch.promote_types(x.dtype, torch.float32))
        for part, to in zip(row_parts(x), row_parts(out), strict=True):
            to.copy_((part.double() - mean) @ projection)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """What `fit` learnt: mean, projection and eigenvalues."""
        if self.mean is None or self.projection is None or self.eigenvalues is None:
            raise RuntimeError("Whitening.state_dict: call fit first")
        return {"mean": self.mean, "projection": self.projection, "eigenvalues": self.eigenvalues}

    def load_state_dict(self, state: dict[str, Tensor]) -> Whitening:
        """Takes over what another `Whitening` of the same dim has learnt; returns itself.

        Raises:
            KeyError, ValueError: an entry is missing or of another width.
        """
        mean, projection, eigenvalues = (state[key].double() for key in ("mean", "projection", "eigenvalues"))
        if projection.shape != (mean.numel(), self.dim) or eigenvalues.shape != (self.dim,):
            raise ValueError(f"state: want a projection to {self.dim} dimensions, got {describe(projection)}")
        self.mean, self.projection, self.eigenvalues = mean, projection, eigenvalues
        return self
