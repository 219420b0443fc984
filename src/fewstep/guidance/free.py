"""Guidance by a second denoiser: classifier-free guidance, and what has been done to it since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..prediction import KINDS, Denoiser, Prediction, agreed, each, from_denoised, to_denoised
from ..schedule import Node, Schedule
from ..solvers.core.inner import Inner, floored
from .base import answer, checked, pair, times

__all__ = ["apg", "cfgpp", "guidance_interval", "guided", "rescaled"]


@dataclass(frozen=True, eq=False)
class Guided:
    """What `guided` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weight: float | Tensor  # scale - 1
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        denoised, plain = pair(self.denoiser, self.uncond, x, t)
        return denoised + times(self.weight, denoised - plain)


def guided(denoiser: Denoiser, uncond: Denoiser, scale: float | Tensor) -> Denoiser:
    """Classifier-free guidance: D + (scale - 1) (D - D_uncond), so that scale 1 is no guidance, to the bit.

    `scale` is one for all, or a tensor (B,) of one a sample. Ho & Salimans (2022), eq. (6) with w = scale - 1; the
    scale of diffusers. Each call evaluates both, at once if they are `Batched` of one network; `uncond` may also be a
    weaker model of the same data (autoguidance). ValueError for a scale that is not finite, and for denoisers of two
    schedules.
    """
    return Guided(denoiser, uncond, checked(scale) - 1, agreed((denoiser, uncond)))


@dataclass(frozen=True, eq=False)
class Rescaled:
    """What `rescaled` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weight: float | Tensor  # scale - 1
    share: float | Tensor
    of: Prediction
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        denoised, plain = pair(self.denoiser, self.uncond, x, t)
        strong = denoised + times(self.weight, denoised - plain)
        if self.of == "sample" or self.schedule is None:
            return self._rescaled(denoised, strong)
        node = each(self.schedule.node, t)
        outputs = (from_denoised(self.of, answered, x, node) for answered in (denoised, strong))
        return to_denoised(self.of, self._rescaled(*outputs), x, node).to(x.dtype)

    def _rescaled(self, denoised: Tensor, strong: Tensor) -> Tensor:
        ratio = (variance(denoised) / floored(variance(strong))).sqrt()
        change = strong * ratio.to(strong.dtype) - strong
        return strong + times(self.share, change, "share")


def variance(x: Tensor) -> Tensor:
    """Of each sample, (B, 1, ...), in float32 or better, but for a constant."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inner = Inner(wide, None)
    centred = wide - inner.dot(wide, torch.ones_like(wide)) / wide[0].numel()
    return inner.dot(centred, centred)


def rescaled(
    denoiser: Denoiser,
    uncond: Denoiser,
    scale: float | Tensor,
    share: float | Tensor = 0.7,
    *,
    of: Prediction = "sample",
) -> Denoiser:
    """Classifier-free guidance G whose samples have the spread of the conditional D, against overexposure:

        share G std(D) / std(G) + (1 - share) G,    G = D + (scale - 1) (D - D_uncond)

    with the standard deviation over each sample. Lin et al., Common Diffusion Noise Schedules and Sample Steps are
    Flawed (2023), eq. (15)-(16), with their phi = 0.7. `of` names the prediction whose spread it is: the denoised x,
    or what the network predicts, as in diffusers' `guidance_rescale` and ComfyUI's RescaleCFG ("v_prediction"); the
    latter needs denoisers that carry their schedule. `scale` and `share` are one for all, or tensors (B,) of one a
    sample. Each call evaluates both, at once if they are `Batched` of one network.
    """
    part = checked(share, "share")
    if not bool(((torch.as_tensor(part) >= 0) & (torch.as_tensor(part) <= 1)).all()):
        raise ValueError(f"share must lie in [0, 1]; got share={share!r}")
    if of not in KINDS:
        raise ValueError(f"of must be one of {', '.join(KINDS)}; got {of!r}")
    schedule = agreed((denoiser, uncond))
    if of != "sample" and schedule is None:
        raise ValueError(f"of={of!r} needs denoisers that carry their schedule, as as_denoiser makes them")
    return Rescaled(denoiser, uncond, checked(scale) - 1, part, of, schedule)


@dataclass(frozen=True, eq=False)
class Interval:
    """What `guidance_interval` returns."""

    inside: Denoiser
    outside: Denoiser
    low: float
    high: float
    schedule: Schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        within = each(self._within, t)
        if not isinstance(within, list) or len(set(within)) == 1:
            return answer(self.inside if np.all(within) else self.outside, x, t)
        inside, outside = pair(self.inside, self.outside, x, t)
        return torch.where(torch.tensor(within, device=x.device).reshape(-1, *[1] * (x.ndim - 1)), inside, outside)

    def _within(self, t: float) -> bool:
        return self.low < self.schedule.node(t).nsr <= self.high


def guidance_interval(inside: Denoiser, outside: Denoiser, low: float, high: float) -> Denoiser:
    """`inside`, the guided denoiser, at noise levels of (low, high]; elsewhere `outside`, the conditional one.

    Levels are sigma / alpha, which is EDM's sigma and exp(-lam) of the half log-SNR on every schedule; high may be
    inf. Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models (2024), eq. (5): (0.28, 5.42] for EDM2-XXL at 512 x 512. A call costs what the one that is asked
    costs, so that outside of the interval an evaluation is saved. ValueError unless 0 <= low < high, and for denoisers
    that carry no schedule or two.
    """
    if not 0 <= low < high:
        raise ValueError(f"guidance_interval needs 0 <= low < high; got low={low!r}, high={high!r}")
    schedule = agreed((inside, outside))
    if schedule is None:
        raise ValueError("guidance_interval needs denoisers that carry their schedule, as as_denoiser makes them")
    return Interval(inside, outside, float(low), float(high), schedule)


@dataclass(frozen=True, eq=False)
class Projected:
    """What `apg` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weight: float | Tensor  # scale - 1
    norm_limit: float
    parallel: float | Tensor
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        denoised, plain = pair(self.denoiser, self.uncond, x, t)
        wide = torch.promote_types(x.dtype, torch.float32)
        along, change = denoised.to(wide), (denoised - plain).to(wide)
        inner = Inner(change, None)
        change = change * (self.norm_limit / floored(inner.dot(change, change)).sqrt()).clamp_max(1)
        parallel = inner.project(change, along) * along
        kept = change - parallel + times(self.parallel, parallel, "parallel")
        return denoised + times(self.weight, kept.to(x.dtype))


def apg(
    denoiser: Denoiser,
    uncond: Denoiser,
    scale: float | Tensor,
    *,
    norm_limit: float = math.inf,
    parallel: float | Tensor = 0.0,
) -> Denoiser:
    """Adaptive projected guidance: D + (scale - 1) (C_orthogonal + parallel C_parallel) of the limited change

        C = (D - D_uncond) min(1, norm_limit / |D - D_uncond|)

    with C_parallel its part along D, which oversaturates, for each sample. Sadat, Hilliges & Weber, Eliminating
    Oversaturation and Artifacts of High Guidance Scales in Diffusion Models (2024), Algorithm 1, with parallel their
    eta and norm_limit their r, a norm over all of a sample (2.5 for EDM2, 15 for SDXL's latents). Without their
    momentum: it needs the calls of a run in order, which a denoiser does not know. Scale 1 is no guidance; parallel 1
    without a limit is `guided`. Each call evaluates both, at once if they are `Batched` of one network.
    """
    if not norm_limit > 0:
        raise ValueError(f"norm_limit must be positive; got norm_limit={norm_limit!r}")
    along = checked(parallel, "parallel")
    return Projected(denoiser, uncond, checked(scale) - 1, float(norm_limit), along, agreed((denoiser, uncond)))


@dataclass(frozen=True, eq=False)
class Plus:
    """What `cfgpp` returns."""

    denoiser: Denoiser
    uncond: Denoiser
    weights: Mapping[float, float]  # by the time of a call
    schedule: Schedule | None
    follows_steps: ClassVar[bool] = True

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
    that is not finite, or one a sample, and for nodes whose noise rises; a run refuses it over rising nodes, and with a
    solver of several calls a step, whose second call would follow the wrong step. Inside a function of your own a run
    does not see it.

    Chung et al., CFG++: Manifold-Constrained Classifier-Free Guidance for Diffusion Models (2024), Algorithm 2.
    """
    one = checked(scale)
    if isinstance(one, Tensor):
        raise ValueError(f"scale must be one for all, as it follows the steps; got scale={scale!r}")
    nodes = tuple(nodes)
    if len(nodes) < 2 or not all(isinstance(node, Node) for node in nodes):
        raise TypeError(f"nodes must be those of the run, as a grid makes them; got {nodes!r}")
    weights = {}
    for s, t in pairwise(nodes):
        if t.nsr >= s.nsr:
            raise ValueError(f"CFG++ needs nodes of falling noise; got time {t.time!r} after {s.time!r}")
        weights[s.time] = one / (1 - (t.nsr / s.nsr if s.alpha else 0.0))
    weights[nodes[-1].time] = one  # for what calls at the end, to correct it
    return Plus(denoiser, uncond, weights, agreed((denoiser, uncond)))
