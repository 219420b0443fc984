"""The problems of the stress bench: nothing like images, and asked at levels that no one chose for them.

A cell is a problem on a schedule, a kind of levels and a number of calls. The splits have the same families with
other random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.grid import Grid, karras, log_snr, time_uniform
from fewstep.sampling import unit_noise
from fewstep.schedule import EDM, Flow, Schedule, VPLinear

from ..problems.base import Law
from . import galaxies, trees
from .laws import Categories, Guided, Mixture, Separate, Sphere, field

__all__ = ["KINDS", "LEVELS", "OWN", "SPLITS", "Cell", "Problem", "cells", "exact", "networks", "only", "problems"]

KINDS = ("exact", "networks", "trees")

OWN = "own"  # the grid of the solver that is measured
LEVELS: Mapping[str, Grid | None] = {
    OWN: None,
    "Karras": karras,
    "log-SNR": log_snr,
    "time": time_uniform,
}
CALLS = (5, 6, 8, 10, 15)
ALL = tuple(LEVELS)
USUAL = (OWN, "Karras", "log-SNR")
SPLITS = {"dev": 0, "report": 1_000_000}  # the first seed
TREES_CONVERGED = 5e-3  # they jump: the order is 1 at best
# Where samples may end elsewhere, one or two of 1,000 would be most of a cell's error, or one of 16 of a network.
SAMPLES, TREE_SAMPLES, NETWORK_SAMPLES = 8000, 128, 64
STANDARD: Mapping[str, VPLinear | Flow | EDM] = {"VP": VPLinear(), "flow": Flow(3.0), "EDM": EDM()}
STABLE_DIFFUSION = EDM(0.0292, 14.61)  # sigmas of its betas
WIDE = EDM(0.002, 150.0)
NOISE_TRAINED = {"VP": VPLinear(), "EDM": EDM(), "EDM-150": WIDE}
GUIDANCE = (1.0, 3.0, 5.0, 7.5)


@dataclass(frozen=True, eq=False)
class Problem:
    """A law of x_0 of `shape` with all that is asked of it.

    std: the data's standard deviation. guidance: for the tables. seed: of the first sample's noise. converged: what
    twice as many steps may change a solution by, in data standard deviations.
    """

    name: str
    family: str
    law: Law
    shape: tuple[int, ...]
    std: float
    seed: int
    schedules: Mapping[str, Schedule]
    guidance: float = 1.0
    pretrained: bool = False
    levels: tuple[str, ...] = USUAL
    calls: tuple[int, ...] = (5, 8, 15)
    samples: int = SAMPLES
    converged: float = 2e-5

    @cached_property
    def noise(self) -> Tensor:
        return unit_noise(range(self.seed, self.seed + self.samples), self.shape, dtype=torch.float64)


class Cell(NamedTuple):
    problem: str
    schedule: str
    levels: str
    calls: int


def cells(found: Mapping[str, Problem], quick: bool = False) -> Iterator[Cell]:
    """All, or for a quick look one schedule and two numbers of calls of each problem."""
    for i, problem in enumerate(found.values()):
        schedules, calls = list(problem.schedules), problem.calls
        if quick:
            schedules, calls = [schedules[i % len(schedules)]], calls[1::2]
        for each in product(schedules, problem.levels, calls):
            yield Cell(problem.name, *each)


def only(found: Mapping[str, Problem], part: str) -> Mapping[str, Problem]:
    """The problems of a family, or with `part` in their names; ValueError if there is none."""
    kept = {name: each for name, each in found.items() if part in name or part == each.family}
    if not kept:
        raise ValueError(f"no problem has {part!r} in its name; they are {', '.join(found)}")
    return kept


def problems(kind: str, split: str, folder: Path) -> Mapping[str, Problem]:
    """Those of a split, by name: "exact", with a denoiser in closed form, "networks" or "trees".

    What is downloaded is kept in `folder`. The first kind needs nothing, the last treeffuser.
    """
    if kind == "networks":
        return networks(split, folder)
    return trained_trees(split) if kind == "trees" else exact(split)


@cache
def exact(split: str) -> Mapping[str, Problem]:
    """The problems with exact denoisers."""
    found: dict[str, Problem] = {}
    seed = SPLITS[split]

    def add(
        name: str, family: str, law: Law, dim: int, std: float, schedules: Mapping[str, Schedule], **rest: Any
    ) -> None:
        found[name] = Problem(name, family, law, (dim,), std, seed + SAMPLES * (1 + len(found)), schedules, **rest)

    # Guided sharp mixtures: a class of one component, and of two.
    for label, members, std in (("one", 1, 0.2), ("pair", 2, 0.05)):
        mixture = _random(4, 48, 0.5, std, seed + members)
        told = mixture.of_classes(members, SAMPLES)
        for scale in GUIDANCE:
            guided = Guided(told, mixture, scale) if scale != 1 else told
            add(
                f"{label}, guidance {scale:g}", "guided", guided, 48, mixture.std, STANDARD,
                guidance=scale, levels=ALL, calls=CALLS,
            )  # fmt: skip
    mixture = _random(4, 48, 0.5, 0.1, seed + 3)
    add("unconditional", "mixture", mixture, 48, mixture.std, STANDARD, levels=ALL, calls=CALLS)
    # Errors of the noise prediction.
    for size, rough in ((0.004, 0.5), (0.004, 2.0), (0.02, 0.5), (0.02, 2.0)):
        erring = field(mixture, mixture.std, size, rough, 48, seed + 4)
        name = f"error {size:.1%}, {'smooth' if rough < 1 else 'rough'}"
        add(name, "errors", erring, 48, mixture.std, NOISE_TRAINED, calls=(6, 10))
    for size, rough in ((0.02, 0.5), (0.02, 2.0)):
        erring = replace(field(mixture, mixture.std, size, rough, 48, seed + 4), what="velocity")
        name = f"velocity's error {size:.1%}, {'smooth' if rough < 1 else 'rough'}"
        add(name, "errors", erring, 48, mixture.std, {"flow": STANDARD["flow"]}, calls=(6, 10))
    # Heavy tails: Student's t of 3 degrees of freedom, over all coordinates alike, and in each; a wide range of scales.
    t = _student(3.0, 0.5)
    add("t, common scale", "tails", _broad(t, 16), 16, t.std, STANDARD)
    add("t, coordinates", "tails", Separate(t), 16, t.std, STANDARD)
    scales = _scales(torch.logspace(-2, 0.5, 6, dtype=torch.float64))
    add("scales 0.01 to 3", "tails", Separate(scales), 16, scales.std, STANDARD)
    # Lattices: some of the points of a grid.
    for dim, count, share in ((2, 5, 0.6), (3, 4, 0.4)):
        lattice = _lattice(dim, count, share, 0.03, seed + 5)
        add(f"lattice, {dim}d", "lattice", lattice, dim, lattice.std, STANDARD)
    # Low dimensions.
    for dim in (1, 2, 4):
        low = _random(5, dim, 1.0, 0.1, seed + 6 + dim)
        add(f"{dim} dimensions", "low", low, dim, low.std, STANDARD)
    # Velocities nearly linear in time: posteriors, far narrower than the noise, away from its centre, or wider.
    for std in (0.05, 0.3, 3.0):
        narrow = _random(2, 5, 0.5 * std, std, seed + 11).moved(1.0, 1.0)
        add(f"posterior, {std:g}", "posterior", narrow, 5, narrow.std, {"flow-1": Flow()}, levels=ALL)
    # Units: with the range of levels in the same, and not.
    unit = _random(4, 48, 0.5, 0.1, seed + 12)
    for c, offset in ((0.01, 0.0), (0.1, 0.0), (127.5, 127.5), (300.0, 0.0)):
        law = unit.moved(c, offset)
        add(f"units of {c:g}", "units", law, 48, law.std, {"EDM-scaled": EDM(0.002 * c, 80.0 * c, data_std=law.std)})
    for c in (0.1, 16.0):
        law = unit.moved(c)
        add(f"scale {law.std:.2g}", "scale", law, 48, law.std, _told(law.std))
    gaussian = _random(1, 16, 0.0, 0.05, seed + 13)
    add("Gaussian 0.05", "scale", gaussian, 16, gaussian.std, _told(gaussian.std))
    add("SD's range", "range", mixture, 48, mixture.std, {"SD": STABLE_DIFFUSION}, calls=CALLS)
    shifts = {f"flow-{shift:g}": Flow(shift) for shift in (1.0, 7.0)}
    add("shifts", "range", mixture, 48, mixture.std, shifts, levels=ALL)
    # What is decided once and for all: directions, bits, categories.
    sphere = Sphere(0.5 * math.sqrt(3))
    add("sphere", "decided", sphere, 3, sphere.std, STANDARD, levels=ALL)
    bits = Separate(_bits(seed + 14))
    add("bits", "decided", bits, 32, bits.std, STANDARD, levels=ALL)
    kinds = torch.randn(10, generator=torch.Generator().manual_seed(seed + 15), dtype=torch.float64).softmax(0)
    categories = Categories(kinds, 8)
    add("categories", "decided", categories, 80, categories.std, STANDARD, levels=ALL)
    return found


def networks(split: str, folder: Path) -> Mapping[str, Problem]:
    """The pretrained networks; their wheel is kept in `folder`."""
    path, seed = galaxies.wheel(folder), SPLITS[split]
    found = {}
    for name, file in galaxies.NETWORKS[split].items():
        law = galaxies.ScoreNetwork.load(path, file)
        found[name] = Problem(
            name, "networks", law, (1, law.side, law.side), galaxies.STD, seed, {"VP, beta 1": galaxies.SCHEDULE},
            pretrained=True, levels=ALL, calls=CALLS, samples=NETWORK_SAMPLES, converged=2e-4,
        )  # fmt: skip
    return found


def trained_trees(split: str) -> Mapping[str, Problem]:
    """Boosted trees, fitted here."""
    found = {}
    for i, name in enumerate(trees.DATA[split]):
        law = trees.Trees.fitted(split, name, TREE_SAMPLES)
        shape, seed = (len(law.models),), SPLITS[split] + 1000 * i
        found[name] = Problem(
            name, "trees", law, shape, 1.0, seed, {"VE": trees.SCHEDULE},
            calls=CALLS, samples=TREE_SAMPLES, converged=TREES_CONVERGED,
        )  # fmt: skip
    return found


def _told(std: float) -> Mapping[str, Schedule]:
    """The usual schedules, told the data's standard deviation."""
    return {name: replace(schedule, data_std=std) for name, schedule in STANDARD.items()}


def _random(count: int, dim: int, spread: float, std: float, seed: int) -> Mixture:
    means = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Mixture(_even(count), spread * means, torch.full((count,), std, dtype=torch.float64))


def _even(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def _scales(stds: Tensor) -> Mixture:
    """One coordinate, of a Gaussian of any of these."""
    return Mixture(_even(len(stds)), torch.zeros(len(stds), 1, dtype=torch.float64), stds)


def _student(freedom: float, scale: float, count: int = 12) -> Mixture:
    """Student's t: variances of scale^2 freedom / chi^2, at `count` middles of equal shares."""
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    half = torch.linspace(1e-6, 40, 400_001, dtype=torch.float64)  # chi^2 / 2 is Gamma(freedom / 2)
    below = torch.special.gammainc(torch.tensor(freedom / 2, dtype=torch.float64), half)
    chi2 = 2 * half[torch.searchsorted(below, shares)]
    return _scales(scale * (freedom / chi2).sqrt())


def _broad(law: Mixture, dim: int) -> Mixture:
    return Mixture(law.weights, law.means.expand(-1, dim).contiguous(), law.stds)


def _bits(seed: int) -> Mixture:
    """0 or 1, all but exactly."""
    share = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    weights, means = (torch.tensor(each, dtype=torch.float64) for each in ([1 - share, share], [[0.0], [1.0]]))
    return Mixture(weights, means, torch.full((2,), 1e-3, dtype=torch.float64))


def _lattice(dim: int, count: int, share: float, std: float, seed: int) -> Mixture:
    line = torch.linspace(-1, 1, count, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * dim)
    kept = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: math.ceil(share * len(points))]
    return Mixture(_even(len(kept)), points[kept], torch.full((len(kept),), std, dtype=torch.float64))
