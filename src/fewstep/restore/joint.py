"""Joint posterior sampling: the parts of a sum, each with a denoiser of its own.

For y = x_1 + ... + x_n + noise, a signal and structured interference such as haze, the parts stacked along a new first
dimension are one image z. Its denoiser is that of each part apart, as they are independent, and y = [I ... I] z + noise
is a linear measurement of it. So the posterior of `posterior` is that of the parts, by one run of any solver, with
every part at the same noise level.

Stevens, van Gorp, Meral, Shin, Yu, Robert & van Sloun, Removing Structured Noise with Diffusion Models (2023), and
Dehazing Ultrasound using Diffusion Models (2023), have two parts, and guidance in place of the posterior mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.base import answer
from ..prediction import Denoiser, agreed
from ..schedule import Schedule
from .posterior import posterior

__all__ = ["Stacked", "Sum", "joint"]


@dataclass(frozen=True, eq=False)
class Stacked:
    """The denoiser of independent parts, stacked (B, n, *)."""

    denoisers: tuple[Denoiser, ...]
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        if x.ndim < 3 or x.shape[1] != len(self.denoisers):
            raise ValueError(
                f"x must be {len(self.denoisers)} parts (B, {len(self.denoisers)}, *); got {tuple(x.shape)}"
            )
        # Copies: a model may work in place on its input, and two may answer in one buffer.
        pairs = zip(self.denoisers, x.unbind(1), strict=True)
        return torch.stack([answer(denoiser, part.clone(), t).clone() for denoiser, part in pairs], dim=1)


@dataclass(frozen=True)
class Sum:
    """The sum of `parts` parts, (B, parts, *) to (B, *)."""

    parts: int

    def A(self, x: Tensor) -> Tensor:
        return x.sum(1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y[:, None].expand(-1, self.parts, *y.shape[1:])


def joint(
    denoisers: Sequence[Denoiser], y: Tensor, *, noise: float, schedule: Schedule | None = None, **options: Any
) -> Denoiser:
    """The denoiser of the parts of y = x_1 + ... + x_n + noise given y, of x (B, n, *): give `sample` noise of n parts.

        haze_free = sample(joint([model, haze], y, noise=0.05), unit_noise(seeds, (2, *model.shape)))[:, 0]

    `denoisers` have one schedule; `options` are those of `restore.posterior`. A part that is scaled or blurred in y is
    the part of a denoiser of scaled or blurred images. Cost: that of `posterior`, for every denoiser.
    """
    denoisers = tuple(denoisers)
    if len(denoisers) < 2 or not all(map(callable, denoisers)):
        raise ValueError(f"denoisers must be two functions or more, denoiser(x, t), one a part; got {denoisers!r}")
    for denoiser in denoisers:
        part = getattr(denoiser, "shape", None)
        if part is not None and isinstance(y, Tensor) and tuple(y.shape[1:]) != tuple(part):
            lacks = tuple(y.shape) == tuple(part)
            raise ValueError(
                f"y must be a sum of parts, one for all samples or one a sample: (1, *) or (B, *) with * = "
                f"{tuple(part)}, the shape of a part; got {tuple(y.shape)}{': give y[None]' if lacks else ''}"
            )
    stacked = Stacked(denoisers, agreed(denoisers, schedule))
    return posterior(stacked, Sum(len(denoisers)), y, noise=noise, schedule=schedule, **options)
