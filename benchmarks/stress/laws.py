"""Laws of clean data with exact denoisers, nothing like images: mixtures, with guidance, errors and in any units,
spheres and categories."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.schedule import Node

from ..problems.base import FAR, Law

__all__ = ["Categories", "Erring", "Guided", "Mixture", "Separate", "Sphere", "field"]

SMALL = 1e-4  # k, of which k^3 / 45 is nothing beside k / 3


@dataclass(frozen=True)
class Mixture:
    """x_0 ~ sum_k weights_k N(means_k, stds_k^2 I); means (K, d), stds (K,), float64.

    weights (K,), or (B, K) for a batch in which each sample has its own: 0 leaves a component out. With
    v_k = alpha^2 stds_k^2 + sigma^2 and responsibilities r_k,

        D(x) = sum_k r_k (mu_k + alpha stds_k^2 / v_k (x - alpha mu_k)).
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        _, alpha, sigma = node
        variances = self.stds.square()
        total = alpha**2 * variances + sigma**2
        away = x.square().sum(1, keepdim=True) - 2 * alpha * x @ self.means.T + alpha**2 * self.means.square().sum(1)
        r = (self.weights.log() - (away / total + self.means.shape[1] * total.log()) / 2).softmax(1)
        pulled = r * (alpha * variances / total)
        return pulled.sum(1, keepdim=True) * x + (r - alpha * pulled) @ self.means

    def of_classes(self, size: int, batch: int) -> Mixture:
        """Sample i of a batch is of class i, of `size` neighbouring components."""
        count = len(self.stds)
        members = (torch.arange(count) - torch.arange(batch)[:, None]) % count < size
        return replace(self, weights=self.weights * members)

    def moved(self, scale: float, offset: float = 0.0) -> Mixture:
        """scale x_0 + offset."""
        return replace(self, means=scale * self.means + offset, stds=scale * self.stds)

    @property
    def std(self) -> float:
        """About the mean, over all coordinates."""
        weights = self.weights / self.weights.sum()
        away = self.means - weights @ self.means
        return math.sqrt(weights @ (away.square().mean(1) + self.stds.square()))


@dataclass(frozen=True)
class Separate:
    """Independent coordinates, each of the `law` in one dimension."""

    law: Mixture

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        return self.law.denoised(x.reshape(-1, 1), node).reshape(x.shape)

    @property
    def std(self) -> float:
        return self.law.std


@dataclass(frozen=True)
class Sphere:
    """Even on the sphere of `radius` about 0, in three dimensions.

    With k = alpha radius |x| / sigma^2,

        D(x) = radius (coth k - 1 / k) x / |x|.
    """

    radius: float

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        k = node.alpha * self.radius * size / node.sigma**2
        # The difference of large numbers for small k, where its series is k / 3.
        mean = torch.where(k < SMALL, k / 3, 1 / k.tanh() - 1 / k)
        return self.radius * mean / size * x

    @property
    def std(self) -> float:
        return self.radius / math.sqrt(3)


@dataclass(frozen=True)
class Categories:
    """`places`, each of which holds one of K kinds, by `weights` (K,): x_0 (B, places K), 1 for the kind and else 0.

    D(x) = softmax(log weights + alpha x / sigma^2), over the kinds of each place.
    """

    weights: Tensor
    places: int

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        kinds = x.reshape(len(x), self.places, -1)
        return (self.weights.log() + node.alpha / node.sigma**2 * kinds).softmax(2).reshape(x.shape)

    @property
    def std(self) -> float:
        return math.sqrt((self.weights * (1 - self.weights)).mean())


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: D + (scale - 1) (D - D_unconditional)."""

    law: Law
    unconditional: Law
    scale: float

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        return self.law.denoised(x, node).lerp(self.unconditional.denoised(x, node), 1 - self.scale)


@dataclass(frozen=True)
class Erring:
    """A law whose network errs by `size` f: f a fixed random function of root mean square 1 a coordinate.

    The network predicts noise, or on flows the velocity: `what`.

    f = sqrt(2 / K) sum_k a_k cos(w_k . x / s + v_k lam + p_k), s^2 = alpha^2 std^2 + sigma^2; amplitudes a (K, d),
    frequencies w (K, d), rates v (K,) and phases p (K,).
    """

    law: Law
    size: float
    std: float
    amplitudes: Tensor
    frequencies: Tensor
    rates: Tensor
    phases: Tensor
    what: Literal["noise", "velocity"] = "noise"

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        _, alpha, sigma = node
        part = sigma / (alpha if self.what == "noise" else alpha + sigma)  # of the error that the denoised image has
        s = math.hypot(alpha * self.std, sigma)
        waves = (x / s @ self.frequencies.T + self.rates * max(node.lam, -FAR) + self.phases).cos()
        error = math.sqrt(2 / len(self.phases)) * waves @ self.amplitudes
        return self.law.denoised(x, node) - self.size * part * error


def field(law: Law, std: float, size: float, rough: float, dim: int, seed: int, waves: int = 64) -> Erring:
    """`law` with an error that turns once over x / (|x| rough), and over log-SNR by 1 / rough."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    phases = 2 * math.pi * torch.rand(waves, generator=generator, dtype=torch.float64)
    return Erring(
        law, size, std, randn(waves, dim), randn(waves, dim) * rough / math.sqrt(dim), randn(waves) * rough, phases
    )
