"""Which calls of a run may reuse features: decided before it, on a few samples, against calling less.

A good solver in few calls wastes none of them, and a call that reuses features is a worse one. So each candidate is
held against as many whole calls as the same cost buys, and what does not win is not planned:

    1. The errors of whole runs of nfe / 2 to nfe calls, to a run of many: root mean squares of each sample, and of
       these the geometric mean, so that no sample that goes its own way decides for all. Between whole numbers of
       calls they are taken as log-linear.
    2. From the last call to the end of the first third, which decides the image: may this one reuse too? Foretold are
       the skipped features F at lam = log(alpha / sigma) from the last two whole calls,

           F_0 + share (lam - lam_0) / (lam_0 - lam_1) (F_0 - F_1),    share 0, 1/2 or 1,

       by the share that leaves the least error; twice in a row no gain ends the search.
    3. Planned is the candidate whose error is least over that of whole calls at its cost, if it is below MARGIN of it.

Share 1/2 is what a regression would take of a line that is half noise: best at the last calls, where features go on
least. Costs are floating point operations of linear layers, convolutions and attention, which are the seconds to 5 %
on the packaged network. docs/cheaper.md has what is found for which solver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..arguments import count
from ..prediction import Denoiser, schedule_of
from ..sampling import plan, sample
from ..schedule import Schedule
from ..solvers import EVODiff, Solver, Stage
from .cache import Cached, Weights
from .cuts import depths

__all__ = ["CachePlan", "Trial", "every", "plan_cache", "share_left", "weights_of"]

REFERENCE = 40  # calls of EVODiff, of an error below a tenth of that of 15
SHARES = (0.0, 0.5, 1.0)
MARGIN = 0.97  # what is won must be more than what few samples can tell
PATIENCE = 2


class Trial(NamedTuple):
    """What reusing features in these calls costs, in whole calls, and leaves; `fewer` is what that many whole calls do.

    `reused` has for each such call the share of the line; errors are as `plan_cache` has them.
    """

    depth: int
    reused: Mapping[int, float]
    cost: float
    error: float
    fewer: float

    def __str__(self) -> str:
        calls = ", ".join(f"{k} ({share:g})" for k, share in sorted(self.reused.items()))
        verdict = "better" if self.error < MARGIN * self.fewer else "worse"
        return (
            f"depth {self.depth}, calls {calls}: cost {self.cost:.2f}, error {self.error:.3g}; "
            f"{self.cost:.2f} whole calls leave {self.fewer:.3g}: {verdict}"
        )


@dataclass(frozen=True)
class CachePlan:
    """The calls of a run, and those in which `wrap` makes the network reuse features.

    times: of the calls. weights: None, a whole call, or of the features of the last whole calls, newest first. cost: in
    whole calls. whole: the errors of so many whole calls. trials: all that was tried, with the chosen one.
    """

    solver: Solver
    times: tuple[float, ...]
    weights: tuple[Weights | None, ...]
    depth: int
    cost: float
    chosen: Trial | None = None
    whole: Mapping[int, float] | None = None
    trials: tuple[Trial, ...] = ()

    def wrap(self, denoiser: Denoiser, network: nn.Module) -> Cached:
        """`denoiser`, which calls `network`, in a run of this plan: `sample(plan.wrap(...), noise, nfe=..., ...)`."""
        return Cached(denoiser, network, times=self.times, weights=self.weights, depth=self.depth)

    def __str__(self) -> str:
        calls = len(self.times)
        reused = [k for k, weights in enumerate(self.weights) if weights is not None]
        if self.chosen is None and reused:
            said = f"{calls} calls of {self.solver!r} at the cost of {self.cost:.2f}: {reused} reuse, by a rule"
        elif self.chosen is None:
            said = f"{calls} whole calls of {self.solver!r}: nothing is reused" + (
                ", since fewer whole calls are better at the cost of everything tried" if self.trials else ""
            )
        else:
            saved = 100 * (1 - self.cost / calls)
            said = (
                f"{calls} calls of {self.solver!r} at the cost of {self.cost:.2f}, {saved:.0f} % less: error "
                f"{self.chosen.error:.3g}, where {self.cost:.2f} whole calls leave {self.chosen.fewer:.3g}"
            )
        return "\n".join([said, *map(str, self.trials)])


def every(solver: Solver, schedule: Schedule, nfe: int, interval: int, depth: int, left: float) -> CachePlan:
    """The rule of the DeepCache package, to compare with: each `interval`-th call is whole, the others reuse.

    `depth` is a cut of the network (`cuts.depths`), `left` what a call that reuses costs, in whole calls.
    """
    if not 1 <= interval <= nfe or depth < 0 or left < 0 or left > 1:  # NaN: not known
        raise ValueError(
            f"interval must be from 1 to nfe, depth 0 or more and left from 0 to 1; "
            f"got interval={interval!r} with nfe={nfe!r}, depth={depth!r}, left={left!r}"
        )
    _, stages = plan(schedule, solver, nfe=nfe)
    reused = {k: 0.0 for k in range(nfe) if k % interval}
    return _planned(solver, stages, depth, reused, left)


def plan_cache(
    denoiser: Denoiser,
    network: nn.Module,
    noise: Tensor,
    *,
    nfe: int = 10,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    cuts: Sequence[int] | None = None,
) -> CachePlan:
    """Find which of `nfe` calls may reuse features, on the samples of `noise`.

    Args:
        denoiser, network: the denoiser of these samples, conditions and guidance included, and the module that it
            calls. The plan holds for that guidance.
        noise: (B, *), unit Gaussian; 4 samples tell.
        nfe: 2 or more, as the first call is always whole.
        solver: EVODiff() if not given; none that draws noise. Its own grid is taken, as `sample` does.
        schedule: the denoiser's own if not given.
        cuts: depths to try (`cuts.depths` has those of a network); the two cheapest if not given.

    Cost: 40 calls for the reference, or 2 nfe if that is more; 3/8 nfe^2 + 3/4 nfe for whole runs; and for each of what
    is tried, at most 2 nfe a cut, the calls from two before the first that reuses. Raises ValueError for networks that
    cannot be cut, and what `sample` raises.
    """
    solver = EVODiff() if solver is None else solver
    found = schedule_of(denoiser, schedule)
    known = depths(network)
    cuts = tuple(known[:2]) if cuts is None else tuple(cuts)
    if not cuts or not set(cuts) <= set(known):
        raise ValueError(f"cuts must be of those of this network, {known.start} to {known.stop - 1}; got {cuts!r}")
    if count(nfe) < 2:
        raise ValueError(f"nfe must be an integer of at least 2, since the first call is always whole; got {nfe!r}")
    nodes, stages = plan(found, solver, nfe=nfe)
    if stages[0].node != nodes[0] or any(stage.noise for stage in stages):
        raise ValueError(
            f"solver must draw no noise, which would hide what reuse costs; got {solver!r}: plan with one that draws "
            "none, such as EVODiff()"
        )
    times = tuple(stage.node.time for stage in stages)
    exact = sample(denoiser, noise, nfe=max(REFERENCE, 2 * nfe), schedule=found)

    def error(of: Denoiser, calls: int) -> float:
        off = sample(of, noise, nfe=calls, solver=solver, schedule=found) - exact
        return float(off.double().square().flatten(1).mean(1).log().mean().div(2).exp())

    answers: list[Tensor] = []

    def told(x: Tensor, t: float | Tensor) -> Tensor:
        answers.append(denoiser(x, t))
        return answers[-1].clone()

    def tried_out(each: CachePlan, first: int) -> float:
        """Of a run whose calls before the two that precede `first` are known."""
        start = max(0, first - 2)
        while times[start] in times[start + 1 :]:  # a run is known by its first time
            start -= 1
        known = iter(answers[:start])
        later = Cached(denoiser, network, times=times[start:], weights=each.weights[start:], depth=each.depth)

        def answer(x: Tensor, t: float | Tensor) -> Tensor:
            before = next(known, None)
            return later(x, t) if before is None else before.clone()

        return error(answer, nfe)

    least = max(1, nfe // 2)
    whole = {calls: error(denoiser, calls) for calls in range(least, nfe)}
    whole[nfe] = error(told, nfe)
    trials: list[Trial] = []
    best: Trial | None = None
    left = {depth: share_left(denoiser, network, noise, (times[0], times[-1]), depth) for depth in cuts}
    for depth in cuts:
        reused: dict[int, float] = {}
        failed = 0
        for k in range(nfe - 1, max(2, math.ceil(nfe / 3)) - 1, -1):
            tried = []
            for share in SHARES:
                each = _planned(solver, stages, depth, {**reused, k: share}, left[depth])
                if each.cost < least:
                    continue
                off = tried_out(each, k)
                tried.append(Trial(depth, {**reused, k: share}, each.cost, off, _between(whole, each.cost)))
            if not tried:
                break
            chosen = min(tried, key=lambda trial: trial.error)
            trials.append(chosen)
            won = chosen.error < MARGIN * chosen.fewer
            if won:
                reused = dict(chosen.reused)
                if best is None or chosen.error / chosen.fewer < best.error / best.fewer:
                    best = chosen
            failed = 0 if won else failed + 1
            if failed == PATIENCE:
                break
    depth = best.depth if best else cuts[0]
    made = _planned(solver, stages, depth, best.reused if best else {}, left[depth])
    return replace(made, chosen=best, whole=whole, trials=tuple(trials))


def weights_of(lams: Sequence[float], reused: Mapping[int, float]) -> tuple[Weights | None, ...]:
    """For each call at its half log-SNR the weights of the last whole calls' features; None is a whole call."""
    known: list[float] = []  # newest first
    found: list[Weights | None] = []
    for k, lam in enumerate(lams):
        if k not in reused:
            known.insert(0, lam)
            found.append(None)
        elif len(known) < 2 or not reused[k] or not math.isfinite(known[1]) or known[0] == known[1]:  # no line
            found.append((1.0,))
        else:
            reach = reused[k] * (lam - known[0]) / (known[0] - known[1])
            found.append((1.0 + reach, -reach))
    return tuple(found)


def share_left(denoiser: Denoiser, network: nn.Module, x: Tensor, times: tuple[float, float], depth: int) -> float:
    """The share of a call's operations that a call with reuse still makes; two `times` of the clock."""
    cached = Cached(denoiser, network, times=times, weights=(None, (1.0,)), depth=depth)
    counts = []
    for time in times:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cached(x, time)
        counts.append(counter.get_total_flops())
    return float(counts[1] / counts[0])


def _planned(
    solver: Solver, stages: Sequence[Stage], depth: int, reused: Mapping[int, float], left: float
) -> CachePlan:
    weights = weights_of([stage.node.lam for stage in stages], reused)
    cost = len(stages) - len(reused) * (1 - left)
    return CachePlan(solver, tuple(stage.node.time for stage in stages), weights, depth, cost)


def _between(whole: Mapping[int, float], cost: float) -> float:
    """The error of `cost` whole calls, log-linear between whole numbers."""
    below = min(int(cost), max(whole))
    above = min(below + 1, max(whole))
    part = cost - below
    return math.exp((1 - part) * math.log(whole[below]) + part * math.log(whole[above]))
