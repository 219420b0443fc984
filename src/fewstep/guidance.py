"""Denoisers made of denoisers: guidance, thresholding and clipping, for any solver.

Each carries the schedule of what it is made of, and can be pickled if that can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .answers import check_answer
from .prediction import Denoiser, agreed, each
from .schedule import Node, Schedule

__all__ = ["cfgpp", "clip", "guided", "magnitude", "threshold"]


@dataclass(frozen=True, eq=False)
class Guided:
    """What `guided` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weight: float | Tensor  # scale - 1, one for all or one a sample in float64
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        # Copies: a model may work in place on its input, and both may answer in one buffer.
        denoised = answer(self.denoiser, x.clone(), t).clone()
        change = denoised - answer(self.uncond, x, t, "the unconditional denoiser")
        weight = self.weight
        if isinstance(weight, float):
            return denoised + weight * change
        if weight.shape != x.shape[:1]:
            raise ValueError(f"scale must be one for all or one a sample, {len(x)}; got {len(weight)}")
        # In float32 or better, as a number would be, and rounded once.
        weight = weight.to(x.device, torch.promote_types(change.dtype, torch.float32)).reshape(-1, *[1] * (x.ndim - 1))
        return denoised + (weight * change).to(change.dtype)


def guided(denoiser: Denoiser, uncond: Denoiser, scale: float | Tensor) -> Denoiser:
    """Classifier-free guidance: D + (scale - 1) (D - D_uncond), so that scale 1 is no guidance, to the bit.

    `scale` is one for all, or a tensor (B,) of one a sample. Ho & Salimans (2022), eq. (6) with w = scale - 1; the
    scale of diffusers. Each call evaluates both; `uncond` may also be a weaker model of the same data (autoguidance).
    ValueError for a scale that is not finite, and for denoisers of two schedules.
    """
    scales = torch.as_tensor(scale, dtype=torch.float64, device="cpu")
    if scales.ndim > 1 or not bool(scales.isfinite().all()):
        raise ValueError(f"scale must be finite, one for all or a tensor (B,); got scale={scale!r}")
    weight = scales - 1 if scales.ndim else float(scales) - 1
    return Guided(denoiser, uncond, weight, agreed((denoiser, uncond)))


@dataclass(frozen=True, eq=False)
class Plus:
    """What `cfgpp` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weights: Mapping[float, float]  # by the time of a call
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        found = each(self._weight, t)
        weight = torch.tensor(found, dtype=torch.float64) if isinstance(found, list) else found
        return Guided(self.denoiser, self.uncond, weight, self.schedule)(x, t)

    def _weight(self, t: float) -> float:
        if t not in self.weights:
            raise ValueError(f"CFG++ was made for calls at other nodes; got time {t!r}: give it the nodes of this run")
        return self.weights[t] - 1


def cfgpp(denoiser: Denoiser, uncond: Denoiser, scale: float, nodes: Sequence[Node]) -> Denoiser:
    """CFG++: a step to the guided image with the noise of the unconditional answer, for a run over `nodes`.

    The step s -> t of DDIM, alpha_t D_scale + sigma_t e_uncond with D_scale = D_uncond + scale (D - D_uncond) and a
    `scale` mostly in (0, 1], is the step with one denoiser of classifier-free guidance whose scale follows the step,

        scale / (1 - n_t / n_s),   n = sigma / alpha

    exactly, so that it is made here, in the denoiser, and any solver of one call a step can run it: with `DDIM` it is
    the authors' and ComfyUI's Euler form, with a multistep solver an extrapolation of these images. To sigma = 0, or
    from alpha = 0, it is `scale`. Each call evaluates both. ValueError at a call that is not at a node, for a scale
    that is not finite and for nodes whose noise rises.

    Chung et al., CFG++: Manifold-Constrained Classifier-Free Guidance for Diffusion Models (2024), Algorithm 2.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got scale={scale!r}")
    nodes = tuple(nodes)
    if len(nodes) < 2 or not all(isinstance(node, Node) for node in nodes):
        raise TypeError(f"nodes must be those of the run, as a grid makes them; got {nodes!r}")
    weights = {}
    for s, t in pairwise(nodes):
        if t.nsr >= s.nsr:
            raise ValueError(f"CFG++ needs nodes of falling noise; got time {t.time!r} after {s.time!r}")
        weights[s.time] = scale / (1 - (t.nsr / s.nsr if s.alpha else 0.0))
    weights[nodes[-1].time] = scale  # for what calls at the end, to correct it
    return Plus(denoiser, uncond, weights, agreed((denoiser, uncond)))


def answer(denoiser: Denoiser, x: Tensor, t: float | Tensor, who: str = "the denoiser") -> Tensor:
    """What `denoiser` makes of x; DenoiserError if that is not a tensor like x."""
    denoised = denoiser(x, t)
    check_answer(denoised, x, who, t)
    return denoised


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
