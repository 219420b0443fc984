"""Mixtures of Gaussians: the denoiser is known exactly, and for one component the sampling ODE too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.bench.metrics import Moments
from fewstep.prediction import Denoiser, as_denoiser
from fewstep.schedule import Node, Schedule

__all__ = ["ClassGaussians", "GaussianMixture", "fitted", "gaussian"]


@dataclass(frozen=True)
class GaussianMixture:
    """x_0 ~ sum_k weights_k N(means_k, vectors_k diag(variances_k) vectors_k^T) over images of `shape`.

    weights (K,), means (K, d), variances (K, d), vectors (K, d, d) with eigenvectors in columns, d = prod(shape);
    float64 throughout. With S_k = alpha^2 cov_k + sigma^2 I and responsibilities r_k,

        D(x) = sum_k r_k (mu_k + alpha cov_k S_k^-1 (x - alpha mu_k)),

    also at alpha = 0, where it is the mean of the data.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    vectors: Tensor
    shape: tuple[int, ...]

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The exact posterior mean; computes in float64 and answers in x's dtype."""
        return as_denoiser(lambda x, t: self.denoised(x, schedule.node(t)).to(x.dtype), "sample", schedule)

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        flat = x.double().reshape(x.shape[0], 1, -1) - node.alpha * self.means
        z = torch.einsum("bkd,kde->bke", flat, self.vectors)
        total = node.alpha**2 * self.variances + node.sigma**2
        log_likelihood = self.weights.log() - (z.square() / total + total.log()).sum(-1) / 2
        pulled = torch.einsum("bke,kde->bkd", z * (node.alpha * self.variances / total), self.vectors) + self.means
        return torch.einsum("bk,bkd->bd", log_likelihood.softmax(-1), pulled).reshape(x.shape)

    def solution(self, x: Tensor, s: Node, t: Node) -> Tensor:
        """Where the probability-flow ODE carries `x` from s to t, in closed form; for one component only.

        x_t = alpha_t mu + V sqrt((alpha_t^2 v + sigma_t^2) / (alpha_s^2 v + sigma_s^2)) V^T (x - alpha_s mu)
        """
        if len(self.weights) != 1:
            raise ValueError(f"the solution is known for one component; this mixture has {len(self.weights)}")
        mean, variances, vectors = self.means[0], self.variances[0], self.vectors[0]
        z = (x.reshape(x.shape[0], -1) - s.alpha * mean) @ vectors
        stretch = (t.alpha**2 * variances + t.sigma**2) / (s.alpha**2 * variances + s.sigma**2)
        return (t.alpha * mean + (z * stretch.sqrt()) @ vectors.T).reshape(x.shape)

    def component(self, k: int) -> GaussianMixture:
        """Component `k` alone."""
        part = slice(k, k + 1)
        weights = torch.ones_like(self.weights[part])
        return GaussianMixture(weights, self.means[part], self.variances[part], self.vectors[part], self.shape)

    def moments(self) -> Moments:
        """Of x_0, pixel by pixel."""
        mean = self.weights @ self.means
        away = self.means - mean
        covariance = torch.einsum("k,kd,ke->de", self.weights, away, away)
        for weight, variances, vectors in zip(self.weights, self.variances, self.vectors, strict=True):
            covariance += weight * (vectors * variances) @ vectors.T
        return Moments(mean, covariance)


@dataclass(frozen=True)
class ClassGaussians:
    """A Gaussian for each sample: sample i is of component `members[i]` of `mixture`, and the solver is told."""

    mixture: GaussianMixture
    members: tuple[int, ...]

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        return self._by_component(x, lambda part, rows: part.denoised(rows, node))

    def solution(self, x: Tensor, s: Node, t: Node) -> Tensor:
        """As `GaussianMixture.solution`, each sample with its own Gaussian."""
        return self._by_component(x, lambda part, rows: part.solution(rows, s, t))

    def _by_component(self, x: Tensor, answer: Callable[[GaussianMixture, Tensor], Tensor]) -> Tensor:
        members = torch.tensor(self.members)
        out = torch.empty_like(x)
        for k in set(self.members):
            rows = members == k
            out[rows] = answer(self.mixture.component(k), x[rows])
        return out


def fitted(groups: Sequence[Tensor]) -> GaussianMixture:
    """A component for each group of images (N, *), of its mean and covariance, weighted by its size; no shrinkage."""
    sizes = torch.tensor([len(images) for images in groups], dtype=torch.float64)
    moments = [Moments.of(images.flatten(1)) for images in groups]
    spectra = [torch.linalg.eigh(each.covariance) for each in moments]
    return GaussianMixture(
        sizes / sizes.sum(),
        torch.stack([each.mean for each in moments]),
        torch.stack([values.clamp_min(0) for values, _ in spectra]),
        torch.stack([vectors for _, vectors in spectra]),
        tuple(groups[0].shape[1:]),
    )


def gaussian(
    shape: tuple[int, ...] = (2, 4, 4), components: int = 1, seed: int = 0, widest: float = 1.0
) -> GaussianMixture:
    """A random anisotropic problem: standard deviations log-spaced in [0.03, `widest`], means of size 0.5."""
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    variances = (
        torch.logspace(math.log10(0.03), math.log10(widest), d, dtype=torch.float64).square().expand(components, d)
    )
    vectors = torch.linalg.qr(randn(components, d, d)).Q
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    return GaussianMixture(weights, randn(components, d) / 2, variances, vectors, shape)
