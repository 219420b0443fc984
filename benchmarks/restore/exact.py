"""Posteriors in closed form, and how far samples are from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.problems.mixtures import GaussianMixture
from fewstep.restore import Linear, Spectrum, deblurring, inpainting, superresolution

__all__ = ["NOISES", "SHAPE", "Found", "conditioned", "drawn", "found", "gaussian", "mixture", "operators", "spectrum"]

SHAPE = (1, 8, 8)
NOISES = (0.05, 0.2)
WIDEST, NARROWEST = 1.0, 0.003  # variances of the cosines, from the slowest to the fastest
MEAN = 0.3
CONVERGED = 100  # steps of UniPC-3


def spectrum() -> Spectrum:
    """Cosines whose variances fall evenly, in logarithms, with their frequency."""
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) for side in SHAPE[1:]], indexing="ij")
    frequency = (rows.square() + columns.square()).sqrt()
    variances = WIDEST * (NARROWEST / WIDEST) ** (frequency / frequency.max())
    return Spectrum(variances[None], torch.ones(1, 1, dtype=torch.float64))


def gaussian() -> GaussianMixture:
    """One component of this spectrum, with a mean that is not zero."""
    made = spectrum()
    size = made.variances.numel()
    basis = made._images(torch.eye(size, dtype=torch.float64).reshape(-1, *SHAPE)).reshape(size, -1).T
    draw = torch.Generator().manual_seed(0)
    mean = MEAN * torch.randn(1, size, generator=draw, dtype=torch.float64)
    return GaussianMixture(torch.ones(1, dtype=torch.float64), mean, made.variances.reshape(1, -1), basis[None], SHAPE)


def mixture() -> GaussianMixture:
    """Two of the kind, at either side of that mean, a quarter as wide."""
    one = gaussian()
    away = torch.cat([one.means + 0.4, one.means - 0.4])
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return GaussianMixture(half, away, (one.variances / 4).expand(2, -1), one.vectors.expand(2, -1, -1), SHAPE)


def operators() -> dict[str, Linear]:
    draw = torch.Generator().manual_seed(1)
    mask = (torch.rand(SHAPE[1:], generator=draw) < 0.5).double()
    return {
        "mask": inpainting(mask, SHAPE),
        "downsampling": superresolution(2, SHAPE),
        "blur": deblurring(1.0, SHAPE),
    }


def conditioned(prior: GaussianMixture, operator: Any, y: Tensor, noise: float) -> GaussianMixture:
    """The law of x_0 given y (1, *), component by component: Kalman's formulas, and the evidence of each."""
    size = prior.means.shape[1]
    matrix = operator.A(torch.eye(size, dtype=torch.float64).reshape(-1, *prior.shape)).reshape(size, -1).T
    logs, means, variances, vectors = [], [], [], []
    for weight, mean, values, basis in zip(prior.weights, prior.means, prior.variances, prior.vectors, strict=True):
        covariance = (basis * values) @ basis.T
        seen = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(seen, matrix @ covariance).T
        away = y.flatten() - matrix @ mean
        evidence = -(away @ torch.linalg.solve(seen, away) + torch.linalg.slogdet(seen).logabsdet) / 2
        left = covariance - gain @ matrix @ covariance
        spectrum_, axes = torch.linalg.eigh((left + left.T) / 2)
        logs.append(weight.log() + evidence)
        means.append(mean + gain @ away)
        variances.append(spectrum_.clamp_min(0))
        vectors.append(axes)
    return GaussianMixture(
        torch.stack(logs).softmax(0), torch.stack(means), torch.stack(variances), torch.stack(vectors), prior.shape
    )


def drawn(law: GaussianMixture, count: int, seed: int) -> Tensor:
    """Exact samples, (count, *shape)."""
    draw = torch.Generator().manual_seed(seed)
    members = torch.multinomial(law.weights, count, replacement=True, generator=draw)
    z = torch.randn(count, law.means.shape[1], generator=draw, dtype=torch.float64) * law.variances[members].sqrt()
    return (law.means[members] + torch.einsum("nd,ned->ne", z, law.vectors[members])).reshape(count, *law.shape)


class Found(NamedTuple):
    """Of samples: the error of their mean over the law's standard deviation, their total variance over the law's, and
    their energy distance to exact samples as a share of the distance between two of these."""

    bias: float
    variance: float
    energy: float


def found(samples: Tensor, law: GaussianMixture) -> Found:
    moments = law.moments()
    total = moments.covariance.trace()
    flat = samples.double().flatten(1)
    bias = (flat.mean(0) - moments.mean).norm() / total.sqrt()
    exact = drawn(law, len(flat), seed=12345).flatten(1)
    within = _apart(exact)
    energy = (2 * torch.cdist(flat, exact).mean() - _apart(flat) - within) / within
    return Found(float(bias), float(flat.var(0).sum() / total), float(energy))


def _apart(x: Tensor) -> Tensor:
    """The mean distance of two different samples."""
    return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
