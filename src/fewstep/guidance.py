"""Denoisers made of denoisers: guidance, thresholding and clipping, for any solver."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .prediction import Denoiser

__all__ = ["clip", "guided", "magnitude", "threshold"]


def guided(denoiser: Denoiser, uncond: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: D + (scale - 1) (D - D_uncond), so that scale 1 is no guidance, to the bit.

    Ho & Salimans (2022), eq. (6) with w = scale - 1; the scale of diffusers. Each call evaluates both; `uncond`
    may also be a weaker model of the same data (autoguidance). ValueError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got scale={scale!r}")

    def denoise(x: Tensor, t: float) -> Tensor:
        # Copies: a model may work in place on its input, and both may answer in one buffer.
        denoised = denoiser(x.clone(), t).clone()
        return denoised + (scale - 1) * (denoised - uncond(x, t))

    return denoise


def threshold(denoiser: Denoiser, quantile: float = 0.995, floor: float = 1.0) -> Denoiser:
    """Dynamic thresholding: clamp each image to its own `quantile` of |x_0|, at least `floor`, and rescale to `floor`.

    Saharia et al., Imagen (2022), section 2.3. Only for pixels in [-floor, floor], not for latents. ValueError for a
    quantile outside (0, 1] or a floor that is not positive.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1]; got quantile={quantile!r}")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be positive; got floor={floor!r}")

    def denoise(x: Tensor, t: float) -> Tensor:
        denoised = denoiser(x, t)
        limit = magnitude(denoised, quantile).clamp_min(floor)
        return (denoised.clamp(-limit, limit) / (limit / floor)).to(denoised.dtype)

    return denoise


def magnitude(x: Tensor, quantile: float) -> Tensor:
    """The `quantile` of |x| over each sample, (B, 1, ...), in float32 or better."""
    size = x.flatten(1).abs().to(torch.promote_types(x.dtype, torch.float32))
    # Two order statistics and the line between them: torch.quantile refuses more than 2^24 elements.
    place = quantile * (size.shape[1] - 1)
    low = size.kthvalue(math.floor(place) + 1, dim=1).values
    high = size.kthvalue(math.ceil(place) + 1, dim=1).values
    return low.lerp(high, place - math.floor(place)).reshape(-1, *[1] * (x.ndim - 1))


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The denoised image clamped to [low, high]; ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"clip needs low < high; got low={low!r}, high={high!r}")
    return lambda x, t: denoiser(x, t).clamp(low, high)
