"""The distribution of a finite set of images, as it is or blurred: the sharpest denoisers there are, known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.bench.metrics import Moments
from fewstep.schedule import Node

__all__ = ["Empirical", "posterior"]


@dataclass(frozen=True)
class Empirical:
    """x_0 ~ one of `images` (n, *), each as likely as the others, plus N(0, blur^2 I); float64.

    With v = alpha^2 blur^2 + sigma^2 and weights w = softmax(-|x - alpha x_i|^2 / (2 v)),

        D(x) = sum_i w_i x_i + alpha blur^2 / v (x - alpha sum_i w_i x_i).

    blur = 0 is the ideal denoiser of a training set, which ends at one of its images: the nearest, at sigma = 0.
    """

    images: Tensor
    blur: float = 0.0

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        points, flat = self.images.flatten(1), x.double().flatten(1)
        variance = (node.alpha * self.blur) ** 2 + node.sigma**2
        # |x|^2 is the same for all images.
        distances = node.alpha**2 * points.square().sum(1) - 2 * node.alpha * flat @ points.T
        mean = posterior(distances, variance) @ points
        if self.blur:
            mean = mean + node.alpha * self.blur**2 / variance * (flat - node.alpha * mean)
        return mean.reshape(x.shape).to(x.dtype)

    def nearest(self, x: Tensor) -> Tensor:
        """The index of the image that each of x (B, *) is nearest to."""
        return torch.cdist(x.double().flatten(1), self.images.flatten(1)).argmin(1)

    def moments(self) -> Moments:
        """Of x_0, pixel by pixel."""
        flat = self.images.flatten(1)
        covariance = torch.cov(flat.T, correction=0) + self.blur**2 * torch.eye(flat.shape[1], dtype=flat.dtype)
        return Moments(flat.mean(0), covariance)


def posterior(distances: Tensor, variance: float) -> Tensor:
    """The weights of points at squared `distances` (..., n), up to a constant, under noise of `variance`.

    They are the nearest point's alone at variance 0.
    """
    if variance == 0:
        nearest = distances.argmin(-1, keepdim=True)
        return torch.zeros_like(distances).scatter_(-1, nearest, 1.0)
    return (distances / (-2 * variance)).softmax(-1)
