"""Distances between images, and between sets of images.

The Fréchet distance is written out here, ten lines, because the libraries that have it compute it between two sets of
images in Inception's features, and we need it against known moments and in features of our own too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Moments", "Running", "frechet_distance", "gains", "interval", "psnr", "resamples", "rmse", "rmses"]


class FeatureNetwork(Protocol):
    def features(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a distribution of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Those of a sample (N, d), N of 2 or more, with the unbiased covariance."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be (N, d) with N of 2 or more; got {tuple(features.shape)}")
        values = features.double()
        return cls(values.mean(0), torch.atleast_2d(torch.cov(values.T)))

    @classmethod
    @torch.no_grad()
    def of_images(cls, images: Tensor, network: FeatureNetwork, batch: int = 250) -> Moments:
        """Those of the features of images (N, 3, H, W) in [-1, 1]."""
        return cls.of(torch.cat([network.features(part) for part in images.split(batch)]))

    def through(self, linear: Callable[[Tensor], Tensor]) -> Moments:
        """Those of linear(f) for features f; `linear` takes rows (N, d) to rows (N, k), and zero to zero."""
        return Moments(linear(self.mean[None])[0], linear(linear(self.covariance).T))


class Running:
    """The moments of features that come in parts, in float64: memory does not grow with their number.

    Chan, Golub & LeVeque (1983): the squares about the mean of both parts, and of their means about the common one.
    The result depends, in its last bits, on how the features are parted; it does not on who computed them.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """The next features, (N, d) with N of 1 or more."""
        values = features.double()
        mean, count = values.mean(0), len(values)
        squares = (values - mean).T @ (values - mean)
        if not self.count:
            self.mean, self.squares, self.count = mean, squares, count
            return
        total = self.count + count
        apart = mean - self.mean
        self.squares += squares + torch.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Mean and unbiased covariance; ValueError for fewer than 2 samples."""
        if self.count < 2:
            raise ValueError(f"moments need 2 samples or more; got {self.count}: draw more images")
        return Moments(self.mean, self.squares / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance of Gaussians, |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    A and B are the covariances. Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), eq. (6). From
    samples it is biased upwards, the more the fewer they are: compare only distances of equal numbers of samples.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both must be of the same features; got dimensions {len(a.mean)} and {len(b.mean)}")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # Covariances of few samples are singular: rounding may make zeros negative.
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    total = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(total)


def rmse(images: Tensor, exact: Tensor) -> float:
    """Per pixel, over all samples, in float64."""
    return (images.double() - exact.double()).square().mean().sqrt().item()


def rmses(images: Tensor, exact: Tensor) -> Tensor:
    """The RMSE of each sample, per pixel, against its own solution; both (B, *), the result (B,) in float64."""
    return (images.double() - exact.double()).flatten(1).square().mean(1).sqrt()


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Of each, (*), of images (*, C, H, W): in dB for a range of 2, what lies outside [-1, 1] clipped; in float64.

    Of no error that of rounding, so that it is finite.
    """
    off = (images.clamp(-1, 1) - truth).double().square().flatten(-3).mean(-1)
    return 10 * torch.log10(4 / off.clamp(min=torch.finfo(images.dtype).eps ** 2))


def gains(images: Tensor, exact: Tensor) -> Tensor:
    """The contrast of each sample as a share of its solution's, (B,): the slope of the best line through the pixels.

    <x - mean x, y - mean y> / |y - mean y|^2 for an image x and its solution y. 1 is right; more is too much contrast.
    NaN where the solution has no contrast.
    """
    x, y = (each.double().flatten(1) - each.double().flatten(1).mean(1, keepdim=True) for each in (images, exact))
    return (x * y).sum(1) / y.square().sum(1)


def resamples(samples: int, count: int) -> Tensor:
    """`count` draws of `samples` indices with replacement, the same in every run: the bootstrap, paired."""
    return torch.randint(samples, (count, samples), generator=torch.Generator().manual_seed(0))


def interval(value: float, logs: Tensor) -> tuple[float, float]:
    """The 95 % interval of a positive `value` whose resampled logarithms are `logs`: their quantiles, about the value.

    About the value, because the Fréchet distance of a resample is biased upwards, though its spread is not.
    """
    low, high = (logs - logs.mean()).quantile(torch.tensor([0.025, 0.975], dtype=logs.dtype)).exp().tolist()
    return value * low, value * high
