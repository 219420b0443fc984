"""The negative of residual guidance (RCFG): a denoiser that costs no call, as it knows one image and answers that.

Classifier-free guidance asks the model twice. RCFG asks it once, and takes for the unconditional noise e_uncond what
would lead from x back to an image that is known, `delta` times. In denoised images, with x = alpha x_0 + sigma noise:

    e  = delta (x - alpha reference) / sigma          the paper's eq. for the virtual residual noise
    D' = (x - sigma e) / alpha = delta reference + (1 - delta) x / alpha

so that RCFG is `guided` by this D'. The reference is the input image ("self-negative", no further call) or what the
unconditional model makes of the run's first x ("onetime-negative", one).

Kodaira et al., StreamDiffusion: A Pipeline-Level Solution for Real-Time Interactive Generation (2023), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..prediction import Denoiser, each, spread
from ..schedule import Schedule

__all__ = ["residual"]


def residual(reference: Tensor, delta: float = 1.0, schedule: Schedule | None = None) -> Denoiser:
    """What to give `guided` in place of the unconditional denoiser: `guided(denoiser, residual(image), 1.5)`.

    `reference` is (B, *), or (1, *) for all. `delta`, the paper's, is how much of the residual counts; other than 1 it
    needs the `schedule`, and levels with alpha > 0.
    """
    if delta != 1 and schedule is None:
        raise ValueError(f"delta other than 1 needs the schedule, for alpha; got delta={delta!r} and no schedule")
    return Residual(reference, delta, schedule)


@dataclass(frozen=True, eq=False)
class Residual:
    """What `residual` returns."""

    reference: Tensor
    delta: float
    schedule: Schedule | None

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        reference = self.reference.to(x).expand_as(x)
        if self.delta == 1 or self.schedule is None:
            return reference
        (share,) = spread(each(self._share, t), x)
        denoised: Tensor = self.delta * reference + share * x
        return denoised.to(x.dtype)

    def _share(self, t: float) -> tuple[float]:
        assert self.schedule is not None  # as `residual` sees to
        _, alpha, _ = self.schedule.node(t)
        if alpha == 0:
            raise ValueError(f"delta={self.delta!r} needs data in x; at time {t!r} alpha is 0: start later, or take 1")
        return ((1 - self.delta) / alpha,)
