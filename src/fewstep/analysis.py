"""`analyze`: where a model decides, as conditional variance and entropy of what it makes, by noise level.

With x_0 of the model's own, drawn by the default in many calls, and x = alpha x_0 + sigma noise, noise anew,

    variance(lam) = E |x_0 - D(x)|^2 / d                 of x_0 given x: the error of reconstruction
    rate(lam) = e^{2 lam} variance(lam)                  of the noise given x, which is (x - alpha x_0) / sigma
              = -dH(x_0 | x) / dlam

lam being half log-SNR, d the number of elements and H in nats an element. The last line is exact for any data: mutual
information grows with SNR by half the mean squared error (Guo, Shamai & Verdu, 2005), and SNR is e^{2 lam}. So the
entropy of the image falls by the variance of the noise prediction. Data prediction has the less variance of the two
where the signal is larger than the noise, lam > 0, and noise prediction where it is not, for any model.

For a network the variance is its error's: the conditional variance, if it has learnt the conditional mean, and more if
not. Under guidance x_0 are guided samples, and the error is that of the guided answer on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arguments import count
from .prediction import schedule_of
from .sampling import hashed_seed, sample, unit_noise
from .schedule import Schedule

__all__ = ["Analysis", "analyze"]

TEACHER = 42  # calls that x_0 are drawn by
FEWEST_LEVELS = 3
ANEW = 2  # the stream of a seed that noise is added from: `sampling` has that of steps

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Analysis:
    """At the half log-SNRs `lams`, rising: `variance`, of x_0 given x, and its standard error over samples."""

    lams: Vector
    variance: Vector
    error: Vector

    @property
    def rate(self) -> Vector:
        """The variance of the noise given x: nats an element by which the entropy of x_0 falls, a unit of lam."""
        return np.exp(2 * self.lams) * self.variance

    @property
    def left(self) -> Vector:
        """Nats an element that are still to be decided between the level and the last, by the trapezoid rule."""
        steps = np.diff(self.lams) * (self.rate[1:] + self.rate[:-1]) / 2
        return np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])

    @property
    def decided(self) -> float:
        """The half log-SNR by which half of that is decided: where a grid should have its middle."""
        return float(np.interp(-self.left[0] / 2, -self.left, self.lams))


def analyze(
    denoiser: Any,
    schedule: Schedule | None = None,
    *,
    shape: Sequence[int],
    seeds: Iterable[int] = range(32),
    levels: int = 24,
    by_seed: bool = False,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Analysis:
    """Where the conditional entropy of what `denoiser` makes falls, at `levels` even half log-SNRs of the schedule.

    Arguments are as for `tune`. Costs 42 + `levels` evaluations for each seed; `progress` is told how many were made,
    and of how many.
    """
    found = schedule_of(denoiser, schedule)
    numbers = list(seeds)
    if len(numbers) < 2 or count(batch) < 1 or count(levels) < FEWEST_LEVELS:
        raise ValueError(
            f"seeds must be 2 or more, batch and levels integers of at least 1 and {FEWEST_LEVELS}; "
            f"got {len(numbers)} seeds, batch={batch!r}, levels={levels!r}"
        )
    lams = np.linspace(*found.lam_range, levels)
    nodes = [found.node(found.time_at(float(lam))) for lam in lams]
    total, made = len(numbers) * (TEACHER + levels), 0
    tell = progress or (lambda done, total: None)
    parts = []
    for first in range(0, len(numbers), batch):
        chosen = numbers[first : first + batch]
        own = denoiser(chosen) if by_seed else denoiser
        x0 = sample(own, unit_noise(chosen, shape, dtype=dtype, device=device), nfe=TEACHER, schedule=found)
        made += TEACHER * len(chosen)
        tell(made, total)
        noise = unit_noise([hashed_seed(seed % 2**64, ANEW) for seed in chosen], shape, dtype=dtype, device=device)
        errors = []
        for node in nodes:
            with torch.no_grad():
                answer = own(node.alpha * x0 + node.sigma * noise, node.time)
            errors.append(mse(answer, x0))
            made += len(chosen)
            tell(made, total)
        parts.append(torch.stack(errors))
    each = torch.cat(parts, 1).numpy()
    if not np.isfinite(each).all():
        bad = float(lams[np.flatnonzero(~np.isfinite(each).all(1))[0]])
        raise ValueError(f"the denoiser answers NaN or inf at half log-SNR {bad:.3g}: check the model there")
    return Analysis(lams, each.mean(1), each.std(1, ddof=1) / math.sqrt(len(numbers)))


def mse(one: Tensor, other: Tensor) -> Tensor:
    """(B,), of each sample, in float64 on the CPU."""
    return (one - other).flatten(1).cpu().double().square().mean(1)
