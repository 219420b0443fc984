"""An analytical denoiser that is local because pixels are correlated, and so does not repeat its training images.

Lukoianov, Yuan, Solomon & Sitzmann, Locality in Image Diffusion Models Emerges from Data Statistics (2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from fewstep.bench.metrics import Moments
from fewstep.schedule import Node

from .empirical import posterior

__all__ = ["Local"]

THRESHOLD = 0.1
MASKS = 256  # of 0.5 MB each at 16 x 16


@dataclass(frozen=True, eq=False)
class Local:
    """A posterior mean over `images` (n, C, H, W) at each pixel q, with distances that count the pixels q depends on:

        D(x)_q = sum_i w_iq x_iq,   w_q = softmax(-sum_p m_qp |x_p - alpha x_ip|^2 / (2 sigma^2))

    From the paper is the form, with the mask m taken from the sensitivity of the best linear denoiser, the Wiener
    filter W = alpha^2 S (alpha^2 S + sigma^2)^-1 of data of covariance S; its code takes m_qp = 1 where |W_qp / W_qq|
    reaches 0.02, else 0. Ours are three changes. That mask jumps as sigma falls, and an ODE that jumps has no rate of
    convergence: we take the smooth u^2 / (u^2 + 0.1^2) of u = |W_qp| / |W_qq|. It begins at 0.1 because with hundreds
    of images in place of a whole data set 0.02 still ends at one of them. And a pixel's channels stay together, |W_qp|
    being the Frobenius norm of a block of C x C: a ninth of the work, and no colours from different images.

    `covariance` is S, (CHW, CHW), of as many images as there are; float64. Not a distribution's exact denoiser: there
    are no moments to compare with.
    """

    images: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, images: Tensor, population: Tensor) -> Local:
        """Over `images`, with the covariance of a larger `population` of their kind."""
        return cls(images, Moments.of(population.flatten(1)).covariance)

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        pixels = x.double().flatten(2).permute(2, 0, 1)
        points = self._pixels
        # Pixel first, (HW, B, n): |x_p|^2 is the same for all images.
        distances = (pixels @ points.mT).mul_(-2 * node.alpha).add_(node.alpha**2 * points.square().sum(2)[:, None])
        masked = (self._mask(node.alpha, node.sigma) @ distances.flatten(1)).reshape(distances.shape)
        denoised: Tensor = posterior(masked, node.sigma**2) @ points
        return denoised.permute(1, 2, 0).reshape(x.shape).to(x.dtype)

    @cached_property
    def _pixels(self) -> Tensor:
        """(HW, n, C)."""
        return self.images.flatten(2).permute(2, 0, 1).contiguous()

    @cached_property
    def _mask(self) -> Callable[[float, float], Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        values = values.clamp_min(0)
        channels, size = self.images.shape[1], self.images[0, 0].numel()

        @lru_cache(MASKS)
        def mask(alpha: float, sigma: float) -> Tensor:
            # W / alpha^2, whose ratios are W's and stay finite at alpha = 0.
            gains = values / (alpha**2 * values + sigma**2)
            blocks = ((vectors * gains) @ vectors.T).reshape(channels, size, channels, size).square().sum((0, 2))
            shares: Tensor = blocks / (blocks + THRESHOLD**2 * blocks.diagonal()[:, None])
            return shares

        return mask
