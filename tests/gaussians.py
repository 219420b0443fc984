"""Gaussian vectors in closed form: as denoisers, and given a linear measurement."""

import math
from typing import NamedTuple

import torch


def normal(shape, seed):
    """As unit noise: of a generator of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Gaussian(NamedTuple):
    """N(mean, covariance) of vectors (d,); a denoiser on EDM's clock, x / alpha at sigma / alpha."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def __call__(self, x, t):
        gain = torch.linalg.solve(self.covariance + t**2 * torch.eye(len(self.mean)), self.covariance).T
        return self.mean + (x.double() - self.mean) @ gain.T

    def given(self, matrix, y, noise):
        """For y (k,) = matrix x + noise."""
        seen = matrix @ self.covariance @ matrix.T + noise**2 * torch.eye(len(y))
        gain = torch.linalg.solve(seen, matrix @ self.covariance).T
        return Gaussian(self.mean + gain @ (y - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance)


def smooth(size, reach, std, mean=0.0):
    """Of a stationary process that is correlated over `reach` of its points."""
    apart = torch.arange(size, dtype=torch.float64)
    covariance = std**2 * torch.exp(-((apart[:, None] - apart) ** 2) / (2 * reach**2))
    return Gaussian(torch.full((size,), mean, dtype=torch.float64), covariance + 1e-4 * torch.eye(size))


class Operator(NamedTuple):
    """A matrix (k, d) on rows."""

    matrix: torch.Tensor

    def A(self, x):
        return x @ self.matrix.T.to(x.dtype)

    def A_adjoint(self, y):
        return y @ self.matrix.to(y.dtype)


def errors(samples, law):
    """Of samples (n, d): the largest error of a mean in standard errors, and the total variance over the law's."""
    off = (samples.mean(0) - law.mean) / (law.covariance.diagonal() / len(samples)).sqrt()
    return float(off.abs().max()), float(samples.var(0).sum() / law.covariance.trace()), math.sqrt(2 / samples.numel())
