"""Independent pixels, each a mixture of Gaussians: the sampling ODE is solved exactly, though no solver is linear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.schedule import DATA_STD, Node

__all__ = ["Product", "product"]

FAR = 12.0  # standard deviations from every mode, beyond which no state is
HALVINGS = 60  # of the interval that holds the solution: to the last digit


@dataclass(frozen=True)
class Product:
    """Pixel d is of the mixture of N(means[d, k], stds[d, k]^2) with weights[d, k]; all (D, K), float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        """The mean of x_0 given x (B, D), also at alpha = 0."""
        centres, spreads = self._noisy(node)
        away = x[..., None] - centres
        shares = (self.weights.log() - (away / spreads).square() / 2 - spreads.log()).softmax(-1)
        return (shares * (self.means + node.alpha * (self.stds / spreads).square() * away)).sum(-1)

    def solution(self, x: Tensor, s: Node, t: Node) -> Tensor:
        """Where the probability-flow ODE carries x from s to t: in one dimension each quantile to itself."""
        wanted = self._log_odds(x, s)
        centres, spreads = self._noisy(t)
        low = (centres - FAR * spreads).amin(-1).expand_as(x)
        high = (centres + FAR * spreads).amax(-1).expand_as(x)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = self._log_odds(middle, t) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _noisy(self, node: Node) -> tuple[Tensor, Tensor]:
        return node.alpha * self.means, (node.alpha**2 * self.stds.square() + node.sigma**2).sqrt()

    def _log_odds(self, x: Tensor, node: Node) -> Tensor:
        """log(P / (1 - P)) of the distribution function P, exact in both tails."""
        centres, spreads = self._noisy(node)
        z, weights = (x[..., None] - centres) / spreads, self.weights.log()
        below, above = (torch.logsumexp(weights + torch.special.log_ndtr(sign * z), -1) for sign in (1, -1))
        return below - above


def product(pixels: int, components: int, widths: tuple[float, float], seed: int = 0) -> Product:
    """Random mixtures of mean 0 and standard deviation 1/2, with modes of relative widths log-uniform in `widths`."""
    draw = torch.Generator().manual_seed(seed)
    size = (pixels, components)
    weights = torch.rand(size, generator=draw, dtype=torch.float64) + 0.1
    weights = weights / weights.sum(-1, keepdim=True)
    means = torch.randn(size, generator=draw, dtype=torch.float64)
    low, high = map(math.log, widths)
    stds = (low + (high - low) * torch.rand(size, generator=draw, dtype=torch.float64)).exp()
    means = means - (weights * means).sum(-1, keepdim=True)
    scale = DATA_STD / (weights * (means.square() + stds.square())).sum(-1, keepdim=True).sqrt()
    return Product(weights, scale * means, scale * stds)
