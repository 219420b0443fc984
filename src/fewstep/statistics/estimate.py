"""Estimates of a model's statistics on images: `EMS` for DPM-Solver-v3, `Gamma` for Analytic-DPM.

At a half log-SNR lam, for images x_0 with noise, x = alpha x_0 + sigma noise, y = x / alpha, D the denoised image, and
products element by element:

    l = 1 - E[v (v J)], J = dD / dy, v random signs: the mean diagonal of sigma d noise / dx
    f = (y - D) - l y,    f' = df / dlam along the sampling ODE y' = D - y
      = (l - 1) (y - D) - l' y - D'
    s = Cov(f, f') / Var(f),    b = E f' - s E f:    the best f' = s f + b
    Gamma = E |noise predicted|^2 / d,   noise predicted = (x - alpha D) / sigma

v J is one backward pass ("reverse"), or J v, whose product with v has the same mean, one forward-mode derivative
("forward"). D' is a central difference along the ODE, so that the model is only asked at float times; it costs two
calls. All points see the same images, noise and signs, which keeps the statistics smooth in lam; l' is a difference of
the table of l.

Zheng, Lu, Chen & Zhu, DPM-Solver-v3 (2023), Section 3.1 and the appendix on estimating EMS; Bao, Li, Zhu & Zhang,
Analytic-DPM (2022), Section 3. Sums are in float64, over as many images at a time as `batch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..prediction import Denoiser
from ..schedule import Node, Schedule
from .kept import Once, kept
from .tables import EMS, Gamma, describe

__all__ = ["estimate_ems", "estimate_gamma"]

Progress = Callable[[int, int], object]

# Half the length in lam over which D' is a difference, unless the table is finer: its error is REACH^2 / 6 D''', that
# of a float32 model's rounding 1e-6 / REACH.
REACH = 1 / 32
FEWEST = 8
ROUNDINGS = 16  # of y, in f


def estimate_ems(
    denoiser: Any,
    schedule: Schedule,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    points: int = 120,
    samples: int | None = None,
    probes: int = 1,
    batch: int = 64,
    seed: int = 0,
    derivative: Literal["reverse", "forward"] = "reverse",
    fingerprint: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EMS:
    """The statistics l, s, b of `denoiser` at `points` half log-SNRs, evenly over `schedule.lam_range`.

    Args:
        denoiser: as for `sample`, differentiable; with `labels`, a function of a batch of labels that returns one, such
            as `model.conditioned`.
        images: (N, *), clean, in the range that the model knows, on its device. `samples` of them are used, in random
            order and over again if there are fewer; each once, if not given. The authors use 1024 to 4096.
        labels: (N,), if the denoiser needs them.
        probes: how many random signs for each image.
        derivative: "forward" takes less memory, if all operations of the model have a forward-mode derivative (in torch
            2.13 the group norms of diffusers' UNets do not on every layout).
        fingerprint: of the model, to be recorded: `fewstep.statistics.fingerprint`, or `EDMModel.fingerprint`.
        out: a file for what is estimated, needs `fingerprint`. Until it is there each point is kept in a folder beside
            it, `out` and ".parts": when the same estimate is asked for again, it goes on from there. Once it is there,
            the same estimate is read from it.
        overwrite: replace another file `out`, when the estimate is done, and what another estimate has kept beside it.
        progress: called with what is done and of how much, in units of its own.

    Costs about 6 calls for each point and sample, a backward pass counted as two.

    Raises:
        ValueError, TypeError: wrong arguments, or a denoiser without the derivative.
        FileExistsError: `out` is there and is not of this estimate, or the folder beside it is not, and no `overwrite`.
        OSError: `out` cannot be written. This and the above are told before the first call.
    """
    if points < FEWEST or probes < 1 or batch < 1:
        raise ValueError(
            f"points must be at least {FEWEST}, of which l' is a difference, probes and batch 1; "
            f"got points={points!r}, probes={probes!r}, batch={batch!r}"
        )
    if derivative not in ("reverse", "forward"):
        raise ValueError(f"derivative must be 'reverse' or 'forward'; got {derivative!r}")
    lams = np.linspace(*schedule.lam_range, points)
    reach = min(REACH, float(lams[1] - lams[0]) / 2)
    # The difference for D' stays on the clock: the ends of the table are estimated `reach` inside.
    at = lams.clip(lams[0] + reach, lams[-1] - reach)
    nodes = [schedule.node(schedule.time_at(lam)) for lam in at]
    tell = progress or (lambda done, total: None)

    def draws() -> Iterator[Drawn]:
        return _draws(denoiser, images, labels, samples, batch, seed, probes)

    def diagonal(i: int) -> Tensor:
        total, count = torch.zeros(images.shape[1:], dtype=torch.float64, device="cpu"), 0
        for drawn in draws():
            total += _signed(drawn, nodes[i], derivative)
            count += drawn.signs.shape[0] * drawn.signs.shape[1]
        return total / count

    def pair(i: int, level: Tensor, slope: Tensor) -> Tensor:
        batches = (_f_and_slope(drawn, schedule, nodes[i], reach, level, slope) for drawn in draws())
        return torch.stack(_regression(batches))

    how = {"points": points, "samples": samples, "probes": probes, "batch": batch, "seed": seed, "by": derivative}

    def estimated(once: Once, origin: str | None) -> EMS:
        diagonals, pairs = [], []
        for i in range(points):
            diagonals.append(once(f"l-{i}", partial(diagonal, i)))
            tell(i + 1, 2 * points)
        l = 1 - torch.stack(diagonals)  # noqa: E741
        slopes = torch.gradient(l, spacing=(torch.from_numpy(at),), dim=0, edge_order=2)[0]
        for i in range(points):
            pairs.append(once(f"s-b-{i}", partial(pair, i, l[i], slopes[i])))
            tell(points + i + 1, 2 * points)
        s, b = torch.stack(pairs, 1)
        return EMS(torch.from_numpy(lams), l, s, b, describe(schedule), fingerprint, origin)

    return kept(out, overwrite, EMS, fingerprint, schedule, (images, labels), how, estimated)


def estimate_gamma(
    denoiser: Any,
    schedule: Schedule,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    points: int = 120,
    samples: int | None = None,
    batch: int = 64,
    seed: int = 0,
    fingerprint: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Gamma:
    """Gamma of `denoiser`; arguments and errors as for `estimate_ems`. Costs one call for each point and sample."""
    if points < 2 or batch < 1:
        raise ValueError(f"points must be at least 2, and batch 1; got points={points!r}, batch={batch!r}")
    lams = np.linspace(*schedule.lam_range, points)
    tell = progress or (lambda done, total: None)

    def gamma(lam: float) -> Tensor:
        node = schedule.node(schedule.time_at(lam))
        total, count = 0.0, 0
        for drawn in _draws(denoiser, images, labels, samples, batch, seed, 0):
            x = node.alpha * drawn.x0 + node.sigma * drawn.noise
            with torch.no_grad():
                predicted = (x - node.alpha * drawn.denoiser(x, node.time)).double() / node.sigma
            total += predicted.square().sum().item()
            count += predicted.numel()
        return torch.tensor(total / count, dtype=torch.float64, device="cpu")

    how = {"points": points, "samples": samples, "batch": batch, "seed": seed}

    def estimated(once: Once, origin: str | None) -> Gamma:
        gammas = []
        for i, lam in enumerate(lams):
            gammas.append(once(f"gamma-{i}", partial(gamma, lam)))
            tell(i + 1, points)
        return Gamma(torch.from_numpy(lams), torch.stack(gammas), describe(schedule), fingerprint, origin)

    return kept(out, overwrite, Gamma, fingerprint, schedule, (images, labels), how, estimated)


class Drawn(NamedTuple):
    """A batch: clean images, noise, random signs (probes, B, *), and the denoiser of their labels."""

    x0: Tensor
    noise: Tensor
    signs: Tensor
    denoiser: Denoiser


def _draws(
    denoiser: Any, images: Tensor, labels: Tensor | None, samples: int | None, batch: int, seed: int, probes: int
) -> Iterator[Drawn]:
    """The same batches for the same seed."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim < 2 or not len(images):
        raise TypeError("images must be a floating point tensor (N, *), in the range that the model knows")
    samples = len(images) if samples is None else samples
    if samples < 2:
        raise ValueError(f"samples must be at least 2; got {samples!r}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"labels must be one an image; got {len(labels)} for {len(images)} images")
    generator = torch.Generator().manual_seed(seed)
    # The types and the device are named: torch's defaults are anybody's to set.
    repeats = math.ceil(samples / len(images))
    rounds = [torch.randperm(len(images), generator=generator, device="cpu") for _ in range(repeats)]
    for rows in torch.cat(rounds)[:samples].split(batch):
        # One image after another: what is drawn for it does not depend on the batch.
        shape = images.shape[1:]
        drawn = [
            (
                torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu"),
                torch.randint(0, 2, (probes, *shape), generator=generator, device="cpu"),
            )
            for _ in rows
        ]
        noise = torch.stack([each for each, _ in drawn]).to(images)
        signs = torch.stack([each for _, each in drawn], 1).to(images) * 2 - 1
        chosen = denoiser if labels is None else denoiser(labels[rows.to(labels.device)])
        yield Drawn(images[rows.to(images.device)], noise, signs, chosen)


def _signed(drawn: Drawn, node: Node, derivative: str) -> Tensor:
    """The sum over images and signs of v (v J) or v (J v), in float64 on the CPU."""
    x = node.alpha * drawn.x0 + node.sigma * drawn.noise
    products = _forward if derivative == "forward" else _reverse
    total = torch.zeros(x.shape[1:], dtype=torch.float64, device="cpu")
    for v in drawn.signs:
        total += (products(lambda x: drawn.denoiser(x, node.time), x, v) * v).double().sum(0).cpu() * node.alpha
    return total


def _reverse(denoise: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        denoised = denoise(at)
        if not denoised.requires_grad:
            raise ValueError("the denoiser hides its derivative, as under torch.no_grad: use derivative='forward'")
        return torch.autograd.grad(denoised, at, v)[0]


def _forward(denoise: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    # The plain kernel of attention is the one that has a forward-mode derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            turned: Tensor = torch.func.jvp(denoise, (x,), (v,))[1]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"the denoiser has no forward-mode derivative ({reason}): use 'reverse'") from error
    return turned


def _f_and_slope(
    drawn: Drawn, schedule: Schedule, node: Node, reach: float, level: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f, f' for a level l and a slope l', and the size of the rounding of f, of a batch; in float64 on the CPU."""

    def denoised(y: Tensor, node: Node) -> Tensor:
        with torch.no_grad():
            answer = drawn.denoiser((y * node.alpha).to(drawn.x0), node.time)
        return answer.cpu().double()

    y = drawn.x0.cpu().double() + drawn.noise.cpu().double() * node.nsr
    removed = y - denoised(y, node)
    # Rounding must not take the ends of the table off the clock.
    low, high = schedule.lam_range
    ahead, behind = (schedule.node(schedule.time_at(min(max(node.lam + way, low), high))) for way in (reach, -reach))
    # Along y' = D - y; what its second derivative adds cancels in the difference.
    change = (denoised(y - reach * removed, ahead) - denoised(y + reach * removed, behind)) / (2 * reach)
    rounding = y * (ROUNDINGS * torch.finfo(drawn.x0.dtype).eps)
    return removed - level * y, (level - 1) * removed - slope * y - change, rounding


def _regression(batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """s and b, the coefficients of the best f' = s f + b."""
    count, mean_f, mean_g, square, product, least = (
        0,
        *(torch.zeros((), dtype=torch.float64, device="cpu") for _ in range(5)),
    )
    for f, g, rounding in batches:
        # As Chan, Golub & LeVeque (1983) add up variances, without the cancellation of E f^2 - (E f)^2.
        n = len(f)
        off_f, off_g = f.mean(0) - mean_f, g.mean(0) - mean_g
        weight = count * n / (count + n)
        centred = f - f.mean(0)
        square = square + centred.square().sum(0) + weight * off_f**2
        product = product + (centred * g).sum(0) + weight * off_f * off_g
        mean_f, mean_g = mean_f + off_f * n / (count + n), mean_g + off_g * n / (count + n)
        least = least + rounding.square().sum(0)
        count += n
    # An f that is constant, but for the rounding of y - D, says nothing of f'.
    known = square > least
    s = torch.where(known, product / torch.where(known, square, 1.0), 0.0)
    return s, mean_g - s * mean_f
