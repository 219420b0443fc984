"""The page docs/restore-exact.md: posteriors that are known, and how far each method's samples are from them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import typer
from torch import Tensor

import fewstep as fs
from benchmarks.command import Out, say, write
from benchmarks.problems.mixtures import GaussianMixture
from fewstep.bench.markdown import table
from fewstep.prediction import Denoiser
from fewstep.restore import Linear, Spectrum, deblurring, inpainting, joint, posterior, red_diff, superresolution
from fewstep.restore.joint import Stacked, Sum
from fewstep.restore.posterior import Solve

__all__ = [
    "METHODS",
    "NOISES",
    "SCHEDULE",
    "SHAPE",
    "Found",
    "Problem",
    "conditioned",
    "drawn",
    "found",
    "gaussian",
    "gaussians",
    "hazy",
    "measured",
    "mixture",
    "mixtures",
    "operators",
    "page",
    "spectrum",
]

SHAPE = (1, 8, 8)
NOISES = (0.05, 0.2)
WIDEST, NARROWEST = 1.0, 0.003  # variances of the cosines, from the slowest to the fastest
SMOOTH = 1e-6  # the fastest of haze
MEAN = 0.3
SCHEDULE = fs.EDM(data_std=0.32)  # of the pixels of `gaussian`

BUDGETS = (5, 6, 10, 20)
SAMPLES = 1000
CONVERGED = 50  # calls of UniPC-3
STEPS = 300  # of RED-Diff
TIGHT = {"tolerance": 1e-3, "iterations": 64}


def spectrum(narrowest: float = NARROWEST) -> Spectrum:
    """Cosines whose variances fall evenly, in logarithms, with their frequency, to `narrowest`."""
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) for side in SHAPE[1:]], indexing="ij")
    frequency = (rows.square() + columns.square()).sqrt()
    variances = WIDEST * (narrowest / WIDEST) ** (frequency / frequency.max())
    return Spectrum(variances[None], torch.ones(1, 1, dtype=torch.float64))


def gaussian(narrowest: float = NARROWEST) -> GaussianMixture:
    """One component of this spectrum, with a mean that is not zero."""
    made = spectrum(narrowest)
    size = made.variances.numel()
    basis = made._images(torch.eye(size, dtype=torch.float64).reshape(-1, *SHAPE)).reshape(size, -1).T
    draw = torch.Generator().manual_seed(0)
    mean = MEAN * torch.randn(1, size, generator=draw, dtype=torch.float64)
    return GaussianMixture(torch.ones(1, dtype=torch.float64), mean, made.variances.reshape(1, -1), basis[None], SHAPE)


def mixture() -> GaussianMixture:
    """Two Gaussians of the kind, a quarter as wide; their means, one of its draws apart, differ as its images do."""
    one = gaussian()
    draw = torch.Generator().manual_seed(5)
    z = torch.randn(one.variances.shape, generator=draw, dtype=torch.float64)
    half = torch.einsum("kd,ked->ke", z * one.variances.sqrt() / 2, one.vectors)
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    means = torch.cat([one.means + half, one.means - half])
    return GaussianMixture(weights, means, (one.variances / 4).expand(2, -1), one.vectors.expand(2, -1, -1), SHAPE)


def operators() -> dict[str, Linear]:
    draw = torch.Generator().manual_seed(1)
    mask = (torch.rand(SHAPE[1:], generator=draw) < 0.5).double()
    return {
        "mask": inpainting(mask, SHAPE),
        "downsampling": superresolution(2, SHAPE),
        "blur": deblurring(1.0, SHAPE),
    }


def conditioned(prior: GaussianMixture, operator: Any, y: Tensor, noise: float) -> GaussianMixture:
    """The law of x_0 given y (1, *), component by component: Kalman's formulas, and the evidence of each."""
    size = prior.means.shape[1]
    matrix = operator.A(torch.eye(size, dtype=torch.float64).reshape(-1, *prior.shape)).reshape(size, -1).T
    logs, means, variances, vectors = [], [], [], []
    for weight, mean, values, basis in zip(prior.weights, prior.means, prior.variances, prior.vectors, strict=True):
        covariance = (basis * values) @ basis.T
        seen = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(seen, matrix @ covariance).T
        away = y.flatten() - matrix @ mean
        evidence = -(away @ torch.linalg.solve(seen, away) + torch.linalg.slogdet(seen).logabsdet) / 2
        left = covariance - gain @ matrix @ covariance
        spectrum_, axes = torch.linalg.eigh((left + left.T) / 2)
        logs.append(weight.log() + evidence)
        means.append(mean + gain @ away)
        variances.append(spectrum_.clamp_min(0))
        vectors.append(axes)
    return GaussianMixture(
        torch.stack(logs).softmax(0), torch.stack(means), torch.stack(variances), torch.stack(vectors), prior.shape
    )


def drawn(law: GaussianMixture, count: int, seed: int) -> Tensor:
    """Exact samples, (count, *shape)."""
    draw = torch.Generator().manual_seed(seed)
    members = torch.multinomial(law.weights, count, replacement=True, generator=draw)
    z = torch.randn(count, law.means.shape[1], generator=draw, dtype=torch.float64) * law.variances[members].sqrt()
    return (law.means[members] + torch.einsum("nd,ned->ne", z, law.vectors[members])).reshape(count, *law.shape)


class Found(NamedTuple):
    """Of samples: the error of their mean over the law's standard deviation, their total variance over the law's, and
    their energy distance to exact samples as a share of the distance between two of these."""

    bias: float
    variance: float
    energy: float


def found(samples: Tensor, law: GaussianMixture) -> Found:
    moments = law.moments()
    total = moments.covariance.trace()
    flat = samples.double().flatten(1)
    bias = (flat.mean(0) - moments.mean).norm() / total.sqrt()
    exact = drawn(law, len(flat), seed=12345).flatten(1)
    within = _apart(exact)
    energy = (2 * torch.cdist(flat, exact).mean() - _apart(flat) - within) / within
    return Found(float(bias), float(flat.var(0).sum() / total), float(energy))


def _apart(x: Tensor) -> Tensor:
    """The mean distance of two different samples."""
    return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))


@dataclass(frozen=True, eq=False)
class Problem:
    """A measurement `y` of images, or of the sum of `denoisers` of such, and the law of what was measured."""

    name: str
    denoisers: tuple[Denoiser, ...]
    operator: Any
    y: Tensor
    noise: float
    law: GaussianMixture

    def given(self, **options: Any) -> Denoiser:
        if len(self.denoisers) > 1:
            return joint(self.denoisers, self.y, noise=self.noise, **options)
        return posterior(self.denoisers[0], self.operator, self.y, noise=self.noise, **options)


def _problem(name: str, priors: Iterable[GaussianMixture], operator: Any, noise: float, seed: int) -> Problem:
    priors = tuple(priors)
    prior = priors[0] if len(priors) == 1 else _stacked(priors)
    clean = operator.A(drawn(prior, 1, seed))
    draw = torch.Generator().manual_seed(seed + 1)
    y = clean + noise * torch.randn(clean.shape, generator=draw, dtype=clean.dtype)
    denoisers = tuple(each.denoiser(SCHEDULE) for each in priors)
    return Problem(name, denoisers, operator, y, noise, conditioned(prior, operator, y, noise))


def _stacked(parts: tuple[GaussianMixture, ...]) -> GaussianMixture:
    """Gaussians, independent, as one of their images stacked."""
    means, variances = (torch.cat([getattr(each, name) for each in parts], 1) for name in ("means", "variances"))
    vectors = torch.block_diag(*[each.vectors[0] for each in parts])[None]
    return GaussianMixture(parts[0].weights, means, variances, vectors, (len(parts), *parts[0].shape))


def gaussians() -> list[Problem]:
    return [
        _problem(f"{name}, noise {noise}", [gaussian()], operator, noise, seed=3)
        for name, operator in operators().items()
        for noise in NOISES
    ]


def mixtures() -> list[Problem]:
    """The measurement leaves the component open, more or less."""
    noise = NOISES[-1]
    return [
        _problem(f"{name}, noise {noise}", [mixture()], operator, noise, seed=7)
        for name, operator in operators().items()
    ]


def hazy() -> list[Problem]:
    """The sum of an image and of a smooth one."""
    parts = [gaussian(), gaussian(SMOOTH)]
    return [_problem(f"image and haze, noise {noise}", parts, Sum(len(parts)), noise, seed=3) for noise in NOISES]


@dataclass
class Counted:
    """A denoiser, and how often it was called."""

    denoiser: Denoiser
    schedule: fs.schedule.Schedule = SCHEDULE
    calls: int = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.calls += 1
        return self.denoiser(x, t)


@dataclass
class Cost:
    """Of one run, for its batch: calls and gradients of the denoiser; of each call and sample, the iterations."""

    calls: int = 0
    gradients: int = 0
    iterations: list[Tensor] = field(default_factory=list)

    def add(self, solve: Solve) -> None:
        self.gradients += solve.gradients
        self.iterations.append(solve.iterations)


def _sampled(problem: Problem, noise: Tensor, nfe: int | None, method: str, **options: Any) -> tuple[Tensor, Cost]:
    """By EVODiff in `nfe` calls, or converged."""
    cost = Cost()
    if nfe is None and method != "dps":
        options |= TIGHT
    given = Counted(problem.given(method=method, callback=cost.add, **options))
    solver: fs.Solver = fs.EVODiff() if nfe else fs.UniPC(order=3)
    samples = fs.sample(given, noise, nfe=nfe or CONVERGED, solver=solver)
    cost.calls = given.calls
    return samples, cost


def _optimised(problem: Problem, noise: Tensor, nfe: int | None) -> tuple[Tensor, Cost]:
    denoiser = problem.denoisers[0] if len(problem.denoisers) == 1 else Stacked(problem.denoisers, SCHEDULE)
    counted = Counted(denoiser)
    y = problem.y.expand(len(noise), *problem.y.shape[1:])
    seeds = range(len(noise))
    ends = red_diff(counted, problem.operator, y, noise=problem.noise, seeds=seeds, nfe=nfe or STEPS)
    return ends, Cost(counted.calls)


def _ideal(problem: Problem, noise: Tensor, nfe: int | None) -> tuple[Tensor, Cost]:
    counted = Counted(problem.law.denoiser(SCHEDULE))
    solver: fs.Solver = fs.EVODiff() if nfe else fs.UniPC(order=3)
    return fs.sample(counted, noise, nfe=nfe or CONVERGED, solver=solver), Cost(counted.calls)


Run = Callable[[Problem, Tensor, int | None], tuple[Tensor, Cost]]
IDEAL, MOMENT, SPECTRAL = "the posterior's own denoiser", "moment matching", "proximal, its spectrum"
METHODS: Mapping[str, Run] = {
    IDEAL: _ideal,
    MOMENT: partial(_sampled, method="moment"),
    SPECTRAL: partial(_sampled, method="proximal", spectrum=spectrum()),
    "proximal": partial(_sampled, method="proximal"),
    "PiGDM": partial(_sampled, method="pigdm"),
    "DPS": partial(_sampled, method="dps"),
    "RED-Diff": _optimised,
}


class Measured(NamedTuple):
    found: Found
    first: float  # share of the samples that are the first component's
    cost: Cost


def measured(problem: Problem, method: str, nfe: int | None, count: int = SAMPLES) -> Measured:
    noise = fs.unit_noise(range(count), problem.law.shape, dtype=torch.float64)
    samples, cost = METHODS[method](problem, noise, nfe)
    return Measured(found(samples, problem.law), _first(samples, problem.law), cost)


def _first(samples: Tensor, law: GaussianMixture) -> float:
    """The share of them that the first component makes likelier than any other."""
    z = torch.einsum("bkd,kde->bke", samples.flatten(1)[:, None] - law.means, law.vectors)
    likelihood = -(z.square() / law.variances + law.variances.log()).sum(-1)
    return float((likelihood.argmax(1) == 0).double().mean())


Grid = Mapping[tuple[str, str, int | None], Measured]  # problem, method, calls


def _grid(problems: Iterable[Problem], methods: Iterable[str], count: int) -> Grid:
    cells = {}
    for problem in problems:
        for method in methods:
            for nfe in (*BUDGETS, None):
                say(f"{problem.name}, {method}, {nfe or 'converged'}")
                cells[problem.name, method, nfe] = measured(problem, method, nfe, count)
    return cells


def page(count: int = SAMPLES) -> str:
    plain, mixed, parts = gaussians(), mixtures(), hazy()
    cells = _grid(plain, METHODS, count)
    of_mixtures = _grid(mixed, METHODS, count)
    of_parts = _grid(parts, [name for name in METHODS if name != SPECTRAL], count)
    exact = [found(drawn(each.law, count, seed=99), each.law) for each in (*plain, *mixed, *parts)]
    sound = _range(max(each.bias for each in exact), min(each.bias for each in exact))
    return PAGE.format(
        count=count,
        bound=3 / count**0.5,
        exact_bias=sound,
        exact_variance=_range(*(each.variance for each in exact)),
        exact_energy=_range(*(each.energy for each in exact), digits=4),
        verdicts="\n".join(_verdict(name, cells, count) for name in METHODS if name != IDEAL),
        costs=_costs(cells),
        gaussians=_tables(cells),
        mixtures="\n".join(
            f"- {each.name}: the first component has the weight {each.law.weights[0]:.3f}." for each in mixed
        ),
        mixed=_tables(of_mixtures, first=True),
        limit=_limit(of_mixtures, mixed),
        parts=_tables(of_parts),
        converged=CONVERGED,
        steps=STEPS,
    )


def _names(cells: Grid) -> tuple[list[str], list[str]]:
    """Problems and methods."""
    return list(dict.fromkeys(name for name, _, _ in cells)), list(dict.fromkeys(method for _, method, _ in cells))


def _tables(cells: Grid, first: bool = False) -> str:
    problems, methods = _names(cells)
    out = []
    for problem in problems:
        rows = [
            [method, *(_cell(cells[problem, method, nfe], first) for nfe in (*BUDGETS, None))] for method in methods
        ]
        out += [f"### {problem}", "", table(["", *(f"{nfe} calls" for nfe in BUDGETS), "converged"], rows)]
    return "\n".join(out).strip()


def _cell(one: Measured, first: bool) -> str:
    text = f"{one.found.bias:.2f} / {one.found.variance:.2f} / {one.found.energy:.3f}"
    return f"{text} / {one.first:.3f}" if first else text


def _range(*numbers: float, digits: int = 2) -> str:
    low, high = (f"{number:.{digits}f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _verdict(method: str, cells: Grid, count: int) -> str:
    def of(nfe: int | None) -> list[Found]:
        return [cell.found for (_, name, calls), cell in cells.items() if (name, calls) == (method, nfe)]

    def words(nfe: int | None) -> str:
        biases, variances = (_range(*(getattr(each, key) for each in of(nfe))) for key in ("bias", "variance"))
        return f"the mean is off by {biases} standard deviations, the variance is {variances} of the true one"

    right = [each.bias < 3 / count**0.5 and 0.95 < each.variance < 1.05 for each in of(None)]
    name = "is unbiased" if all(right) else "is biased" if not any(right) else "is biased on some"
    return _item(f"**{method}** {name}. In 10 calls {words(10)}; converged, {words(None)}.")


def _item(text: str) -> str:
    return textwrap.fill(f"- {text}", 120, subsequent_indent="  ")


def _costs(cells: Grid) -> str:
    _, methods = _names(cells)
    rows = []
    for method in methods:
        costs = [cell.cost for (_, name, nfe), cell in cells.items() if (name, nfe) == (method, 10)]
        each = [torch.cat(cost.iterations).double() for cost in costs if cost.iterations]
        rows.append(
            [
                method,
                _range(*(cost.calls for cost in costs), digits=0),
                _range(*(cost.gradients for cost in costs), digits=0),
                _range(*(float(x.mean()) for x in each), digits=1) if each else "none",
                _range(*(float(x.max()) for x in each), digits=0) if each else "none",
            ]
        )
    return table(["", "calls", "gradients", "iterations a call and sample", "most"], rows)


def _limit(cells: Grid, problems: list[Problem]) -> str:
    lines = []
    for each in problems:
        one = cells[each.name, MOMENT, None]
        lines.append(
            f"{each.name}: the mean off by {one.found.bias:.2f} standard deviations, {one.found.variance:.2f} of the "
            f"variance, {one.first:.3f} of the samples in the first component."
        )
    pigdm, moment = ([cells[each.name, name, None].found.bias for each in problems] for name in ("PiGDM", MOMENT))
    lines.append(f"PiGDM, for comparison: the mean off by {_range(*pigdm)}, of moment matching {_range(*moment)}.")
    return "\n".join(map(_item, lines))


PAGE = """# Restoring, against known posteriors

For people who need to trust what [restoring](restore.md) draws: error bars, several readings, a mean. You get, for
each method, how far its samples are from a posterior that is known in closed form. On data far from Gaussian all are
approximate: the mixtures below show by how much. [On images](restore-images.md) a real network is measured.

Written by `make restore-exact`. Images of 8 x 8 pixels, Gaussian, with a mean that is not zero and a spectrum in
cosines with variances from 1 to 0.003; the denoiser is exact, so that what is wrong is the method's or the solver's.
{count} samples a cell by `EVODiff()`; "converged" is {converged} calls of `UniPC(order=3)`, of RED-Diff {steps} steps.

Cells are **bias / variance / energy**: the error of the samples' mean over the posterior's standard deviation; their
total variance over the true one; their energy distance to exact samples, over the mean distance of two of these. As
many exact samples have {exact_bias} / {exact_variance} / {exact_energy}: a bias below {bound:.3f}, three
standard errors, is none.

## Who is biased

{verdicts}

DPS and PiGDM have the variance of y given x_t for their scale. The step of the DPS paper, 1 over the norm of the
residual, is for a thousand steps, and is not measured here. RED-Diff looks for one image, not for samples: its
"variance" is that of its ends over seeds; at noise 0.2 more steps of it fit the noise. `proximal` knows the data's
spectrum in one row and their variance alone in the other.

## What they cost

Counted, in a run of 10 calls, over the six measurements: calls and vector-Jacobian products of the denoiser for the
batch, and the iterations of conjugate residuals, which go on for each sample until 1 % of its residual is left, or 20.

{costs}
## Gaussian images

{gaussians}

## Mixtures: the limit of moment matching

Two Gaussians, a quarter as wide, whose means differ as images do. The fourth number is the share of the samples in the
first component.

{mixtures}

Given x_t the image is no Gaussian there, and moment matching takes it for one. More calls do not mend that; converged:

{limit}

{mixed}

## The parts of a sum

`restore.joint`: an image of the kind above and haze, smoother, given their sum. Both parts count.

{parts}
"""


def main(out: Out = None) -> None:
    """Measure every method of fewstep.restore against known posteriors, and write docs/restore-exact.md."""
    write(out, page)


if __name__ == "__main__":
    typer.run(main)
