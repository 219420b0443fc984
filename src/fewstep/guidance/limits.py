"""Limits of what a denoiser may answer: dynamic thresholding and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..prediction import Denoiser, agreed
from ..schedule import Schedule
from .base import answer

__all__ = ["clip", "magnitude", "threshold"]


@dataclass(frozen=True, eq=False)
class Thresholded:
    """What `threshold` returns."""

    denoiser: Denoiser
    quantile: float
    floor: float
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        denoised = answer(self.denoiser, x, t)
        limit = magnitude(denoised, self.quantile).clamp_min(self.floor)
        return (denoised.clamp(-limit, limit) / (limit / self.floor)).to(denoised.dtype)


def threshold(denoiser: Denoiser, quantile: float = 0.995, floor: float = 1.0) -> Denoiser:
    """Dynamic thresholding: clamp each image to its own `quantile` of |x_0|, at least `floor`, and rescale to `floor`.

    Saharia et al., Imagen (2022), section 2.3. Only for pixels in [-floor, floor], not for latents. ValueError for a
    quantile outside (0, 1] or a floor that is not positive.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1]; got quantile={quantile!r}")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be positive; got floor={floor!r}")
    return Thresholded(denoiser, quantile, floor, agreed((denoiser,)))


def magnitude(x: Tensor, quantile: float) -> Tensor:
    """The `quantile` of |x| over each sample, (B, 1, ...), in float32 or better."""
    size = x.flatten(1).abs().to(torch.promote_types(x.dtype, torch.float32))
    # Two order statistics and the line between them: torch.quantile refuses more than 2^24 elements.
    place = quantile * (size.shape[1] - 1)
    low = size.kthvalue(math.floor(place) + 1, dim=1).values
    high = size.kthvalue(math.ceil(place) + 1, dim=1).values
    return low.lerp(high, place - math.floor(place)).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Clipped:
    """What `clip` returns."""

    denoiser: Denoiser
    low: float
    high: float
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return answer(self.denoiser, x, t).clamp(self.low, self.high)


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The denoised image clamped to [low, high]; ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"clip needs low < high; got low={low!r}, high={high!r}")
    return Clipped(denoiser, low, high, agreed((denoiser,)))
