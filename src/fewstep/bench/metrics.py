"""Distances between sets of images.

The Fréchet distance is written out here, ten lines, because the libraries that have it compute it between two sets of
images in Inception's features, and we need it against known moments and in features of our own too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance"]


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
