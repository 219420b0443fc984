"""`tune`: nodes and weights for one model, measured on it in a few thousand evaluations.

    1. A reference: where the ODE carries the noise of the seeds, by the default in so many calls that half as many
       hardly change it.
    2. The family: the numbers behind the default's grid, prior and trust (`Family`), by Levenberg-Marquardt on the
       error of the whole run, from the best of a few beginnings.
    3. All nodes, all weights, and what level the model is told in each call, by the same, pulled towards those that
       the family plans.
    4. The other half of the seeds says what was gained. A budget where that is nothing keeps the default.

The residual r is what the objective sees of the run's end less what it sees of the reference's. Of few seeds a sample's
is over the root of its size: then it is the sizes of errors that are added, not their squares, of which one or two
samples between two outcomes would be most. MANY show enough of such samples, and there it is the squares. A derivative
is a difference of two runs, of which the second begins where the number that was changed first acts; so any denoiser
will do. With J of all numbers, G = J J^T and D the diagonal of G, a round goes by

    step = -(G + mu D + P)^-1 (J r + P (v - v_0)),    P = PULL |r|^2 / WIDTHS^2,

for the best of a few mu; v_0 is the family's plan, and for the family where it began. G and J r are sums over seeds, of
as many as the round can pay for; whether a step is taken all of them decide. What goes on in a run, trust included, is
what goes on when it is used.

Nothing but G, J r and errors outlives a batch. Each of them is kept as soon as it is known, where a file is asked for:
an interrupted tune goes through the same numbers again and makes no call twice.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import __version__
from .answers import DenoiserError, check_answer
from .prediction import Denoiser, schedule_of
from .sampling import plan, sample, unit_noise
from .schedule import Node, Schedule
from .solvers import EVODiff, Stage
from .solvers.evodiff.differences import LEAD
from .solvers.evodiff.family import Family
from .solvers.evodiff.trust import Split, TrustingStage
from .solvers.evodiff.variance import HISTORY, LAST_REACH, RESTORED
from .solvers.tuned import VERSION, Measured, Outcome, Tuned
from .solvers.tuned.measured import asked
from .statistics.kept import Once, kept
from .statistics.tables import describe

__all__ = ["OBJECTIVES", "cost", "details", "tune"]

TEACHER = 42  # calls of the reference; half as many check it
MOST = 5_000  # evaluations of single samples, for a budget
FEWEST_SEEDS = 4
ROUNDS = 3  # that share what there is: one of the family, then of all numbers; what they leave pays for more
LEVELS, WEIGHTS = ("node", "told"), ("predict", "correct")
FAMILY_REACH, FAMILY_STEP, OWN_STEP = 3.0, 0.1, 0.02  # how far its numbers go, and the differences of derivatives
LONGEST = 1.0  # of a round's step, in any number
# A number this far from the family's plan, or the family's from where it began, must take PULL off the error's square.
PULL = 0.3
WIDTHS = {"family": 1.0, "node": 0.3, "told": 0.2, "predict": 0.2, "correct": 0.2}
FLAT = 1e-3  # of the mean curvature: what the data hardly decide stays
DAMPING = (1e-3, 1e-1, 10.0)
BOUND = LEAD * (1 + RESTORED * LAST_REACH)  # of a row's newest difference, and of the sum of the others
CLOSEST = 0.02  # of two nodes, in half log-SNR
MANY = 256  # samples that are tuned on, from which on squares of errors are added
LEAST = 1e-2  # of the mean square, that a sample's is counted as: a weight is finite
RESAMPLES = 1000
CONVERGED = 0.3  # of the tuned error: what the reference may be off by
# Where a search may begin besides the default: data of another size, a grid for noisy models, a smooth path.
BEGINNINGS = (
    Family(center=0.9, rise=0.3, fall=0.2, surprise=-0.4, reach=-0.3),
    Family(surprise=-0.9, slope=0.6, reach=-2.0),
    Family(rise=-0.7, fall=-0.7),
)

Vector = NDArray[np.float64]
Objective = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], object]
Plan = tuple[Sequence[Node], Sequence[Stage]]
TunedPlan = tuple[Sequence[Node], Sequence[TrustingStage]]


def details(x: Tensor) -> Tensor:
    """Of (B, *, H, W): x, and how large differences of neighbours are at scales of 1, 2 and 4 pixels.

    The sizes of differences, unlike the differences, do not average out where an image is blurred.
    """
    parts = [x.flatten(1)]
    while min(x.shape[-2:]) >= 4 and len(parts) < 4:
        across, down = x[..., :-1, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, :-1]
        parts.append((across.square() + down.square()).sqrt().flatten(1) * 2 ** (len(parts) - 1))
        x = torch.nn.functional.avg_pool2d(x.flatten(0, -3).unsqueeze(1), 2).reshape(
            *x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2
        )
    return torch.cat(parts, 1)


OBJECTIVES: dict[str, Objective] = {"rmse": lambda x: x, "details": details}


def cost(nfe: Sequence[int], seeds: int, most: int = MOST) -> int:
    """The most evaluations of a single sample that `tune` takes."""
    return seeds * (TEACHER + TEACHER // 2) + sum(most + 2 * calls * (seeds - seeds // 2) for calls in nfe)


def tune(
    denoiser: Any,
    schedule: Schedule | None = None,
    *,
    shape: Sequence[int],
    nfe: Sequence[int] = (5, 6, 8, 10),
    seeds: Iterable[int] = range(32),
    objective: Literal["rmse", "details"] | Objective = "rmse",
    by_seed: bool = False,
    most: int = MOST,
    batch: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    fingerprint: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Measure a plan for each budget of `nfe` calls on `denoiser`.

    Args:
        denoiser: as for `sample`; with `by_seed`, a function of a list of seeds that returns that of their batch, such
            as of their classes.
        schedule: the denoiser's own if not given.
        shape: of one sample.
        seeds: of the noise, 4 or more. The first half is tuned on, the second says what was gained. With 512 or more
            the mean square of errors is tuned for, with fewer the mean size.
        objective: what of a sample counts: "rmse" its elements, "details" (images) those and the sizes of differences
            of neighbours at three scales, or a function of (B, *) that returns (B, k). The report is of the RMSE.
        most: evaluations of a single sample that a budget may cost, reference and report apart.
        batch: samples at a time.
        fingerprint: of the model and its guidance, kept in the result: `fewstep.fingerprint`.
        out: the file, needs `fingerprint`. Until it is there what is known is kept in a folder beside it, `out` and
            ".parts": when the same tune is asked for again, it goes on from there. Once it is there, the same tune is
            read from it.
        overwrite: replace another file `out`, when the plan is done, and what another tune has kept beside it.
        progress: called with evaluations done and the most that there will be (`cost`).

    Returns:
        A solver. Its `report` has for each budget the errors on the held-out seeds, tuned and default, and an interval
        of their ratio.

    Raises:
        ValueError, TypeError: wrong arguments, before the first call.
        FileExistsError: `out` is there and is not of this tune, or the folder beside it is not, and no `overwrite`.
        OSError: `out` cannot be written. This and the above are told before the first call.
        DenoiserError: the denoiser's answer is not a tensor like x, or not finite on the default's path or the
            reference's.

    Warns:
        UserWarning: where the reference has not converged, so that gains below its error say nothing.
    """
    found = schedule_of(denoiser, schedule)
    if not isinstance(found, Schedule):
        raise TypeError(f"schedule must be a schedule such as EDM(); got {found!r}")
    try:
        numbers, budgets = ([operator.index(number) for number in each] for each in (seeds, sorted(set(nfe))))
        most, batch = operator.index(most), operator.index(batch)
    except TypeError as error:
        raise TypeError(
            "seeds and nfe must be lists of integers, most and batch integers; "
            f"got {seeds!r}, {nfe!r}, {most!r} and {batch!r}"
        ) from error
    if not isinstance(fingerprint, str | None) or not (progress is None or callable(progress)):
        raise TypeError(f"fingerprint must be words and progress a function; got {fingerprint!r} and {progress!r}")
    if len(numbers) < FEWEST_SEEDS or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be {FEWEST_SEEDS} or more, all different; got {numbers!r}")
    if not budgets or budgets[0] < 2:
        raise ValueError(f"nfe must be budgets of 2 calls or more, as in (5, 8); got {nfe!r}")
    half = len(numbers) // 2
    least = (len(BEGINNINGS) + 2) * budgets[-1] * half  # where the search may begin
    if most < least or batch < 1:
        raise ValueError(
            f"most must be at least {least:,} for {budgets[-1]} calls and {half} seeds, and batch at least 1; "
            f"got most={most!r}, batch={batch!r}"
        )
    see = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    if not callable(see):
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, or a function; got {objective!r}")
    if objective == "details" and len(shape) < 3:
        raise ValueError(f'objective="details" is for images, of shape (C, H, W); got shape={shape!r}')
    probe = see(unit_noise(numbers[:2], shape, dtype=dtype, device=device))  # by which it is told from others
    if not isinstance(probe, Tensor) or probe.ndim < 2 or len(probe) != 2 or not probe.isfinite().all():
        raise ValueError(f"objective must make (B, k), finite, of samples (B, *); of 2 samples it made {probe!r}")
    word = objective if isinstance(objective, str) else getattr(objective, "__qualname__", type(objective).__name__)
    facts = {
        "seeds": numbers, "objective": word, "shape": list(shape), "most": most, "dtype": str(dtype),
        "fewstep": __version__, "torch": torch.__version__,
    }  # fmt: skip
    how = {**facts, "nfe": budgets, "batch": batch, "format": VERSION}  # which other numbers are searched for
    total = cost(budgets, len(numbers), most)

    def measured(once: Once, origin: str | None) -> Tuned:
        count = Count(progress, total)

        def batches(part: list[int], name: str) -> Iterator[Batch]:
            for first in range(0, len(part), batch):
                chosen = part[first : first + batch]
                noise = unit_noise(chosen, shape, dtype=dtype, device=device)
                yield Batch.of(denoiser(chosen) if by_seed else denoiser, found, noise, once, f"{name}-{first}", count)

        tuned_on, held_out = list(batches(numbers[:half], "tuned-on")), list(batches(numbers[half:], "held-out"))
        off = _rms([each.off for each in (*tuned_on, *held_out)])
        size = _rms([_norms(each.exact) for each in held_out])
        plans: dict[int, Measured] = {}
        report = []
        before = Family()
        for calls in budgets:
            search = Search(calls, found, tuned_on, see, once, count)
            chosen, before, spent = search.best(before, most)
            default = plan(found, EVODiff(), nfe=calls)
            errors = [
                torch.cat(
                    [each.errors(run, once, f"{calls}-{name}-{i}", count) for i, each in enumerate(held_out)]
                ).numpy()
                for run, name in ((default, "default"), (chosen, "tuned"))
            ]
            outcome = _outcome(calls, errors[0], errors[1], size, spent)
            report.append(outcome)
            if outcome.kept:
                std = found.data_scale * math.exp(before.scale)
                plans[calls] = Measured.of(found, *chosen, std, before)
        count.done()
        return Tuned(plans, describe(found), fingerprint, {**facts, "reference_error": off}, tuple(report), origin)

    result = kept(out, overwrite, Tuned, fingerprint, found, (probe,), how, measured)
    off = result.facts["reference_error"]
    for outcome in result.report:
        if outcome.kept and off > CONVERGED * outcome.tuned:
            warnings.warn(
                f"the reference is off by about {off:.2g}, the tuned plan of {outcome.calls} calls by "
                f"{outcome.tuned:.2g}: gains below that say nothing",
                stacklevel=2,
            )
    return result


class Count:
    """How many evaluations were made or read, told on."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.made = progress, total, 0

    def add(self, evaluations: int) -> None:
        self.made += evaluations
        if self.progress is not None:
            self.progress(min(self.made, self.total), self.total)

    def done(self) -> None:
        """Less may be needed than was foreseen."""
        self.add(self.total)


@dataclass
class Batch:
    """Samples with their denoiser: where they start, unit noise, and end, `exact`; `off` is the error of that."""

    denoiser: Denoiser
    noise: Tensor
    exact: Tensor
    off: Vector

    @classmethod
    def of(cls, denoiser: Denoiser, schedule: Schedule, noise: Tensor, once: Once, name: str, count: Count) -> Batch:
        def ends() -> Tensor:
            runs = [sample(denoiser, noise, nfe=calls, schedule=schedule) for calls in (TEACHER, TEACHER // 2)]
            return torch.stack(runs).cpu()

        fine, coarse = once(name, ends).to(noise.device)
        count.add((TEACHER + TEACHER // 2) * len(noise))
        off = _norms(fine - coarse) / (2**3 - 1)  # of third order
        return cls(denoiser, noise, fine, off)

    def run(self, plan: Plan, tape: list[Any] | None = None, start: int = 0) -> Tensor:
        """The end of a run, recorded on an empty `tape`, or from call `start` of a full one on.

        A call of the tape is not made again. The end may hold NaN; the denoiser's answers are checked for shape alone.
        """
        nodes, stages = plan
        state: Any = None
        x = self.noise.to(torch.promote_types(self.noise.dtype, torch.float32)) * nodes[0].sigma
        known, record = (tape[start], None) if tape else (None, tape)
        with torch.no_grad():
            for stage in stages[start:]:
                if known is not None:
                    state, x, answer = known
                    known = None
                else:
                    given = x.to(self.noise.dtype, copy=True)
                    answer = self.denoiser(given, stage.node.time)
                    check_answer(answer, given, "the denoiser", stage.node.time, sigma=stage.node.sigma)
                    answer = answer.to(x.dtype, copy=True)
                    if record is not None:
                        record.append((state, x, answer))
                x, state = stage(state, x, answer)
        return x

    def errors(self, plan: Plan, once: Once, name: str, count: Count) -> Tensor:
        """RMSE of each sample's end."""
        count.add(len(plan[1]) * len(self.noise))
        return once(name, lambda: torch.from_numpy(_norms(self.run(plan) - self.exact)))


class Slot(NamedTuple):
    """A number to be tuned: the k-th of the family, the node `stage`, how much further the level is that its call is
    told, or the k-th weight of a stage's row."""

    kind: Literal["family", "node", "told", "predict", "correct"]
    stage: int
    k: int = 0

    @property
    def first(self) -> int:
        """The first call whose step it changes."""
        return max(0, self.stage - (self.kind in ("node", "told")))


class Beyond(Exception):
    """There is no such plan."""


class Search:
    """Of the nodes and stages for so many calls; numbers v, one for each of `slots`, 0 for the default's."""

    def __init__(
        self, calls: int, schedule: Schedule, batches: Sequence[Batch], see: Objective, once: Once, count: Count
    ):
        self.calls, self.schedule, self.batches, self.see, self.count = calls, schedule, batches, see, count
        self.once, self.spent, self.asked = once, 0, 0
        self.samples = sum(len(batch.noise) for batch in batches)
        self._power = 2 if self.samples >= MANY else 1
        nodes = Family().nodes(schedule, calls)
        rows = range(1, calls - (nodes[-1].sigma == 0))
        self.slots = [
            *(Slot("family", 0, k) for k in range(len(Family._fields))),
            *(Slot(kind, k) for kind in ("node", "told") for k in range(1, calls)),
            *(Slot(kind, i, j) for i in rows for kind in ("predict", "correct") for j in range(min(i, HISTORY - 1))),
        ]

    def best(self, before: Family, most: int) -> tuple[TunedPlan, Family, int]:
        """The plan, its family, and what it cost; begun at the default, at `before` and elsewhere."""
        own = np.zeros(len(self.slots) - len(before))
        size = math.log(
            _rms([_norms(batch.exact - batch.exact.mean()) for batch in self.batches]) / self.schedule.data_scale
        )
        beginnings = (
            [Family(), before, Family(scale=size)] if any(before) else [Family(), Family(scale=size), *BEGINNINGS]
        )
        tried = [np.concatenate([each, own]) for each in dict.fromkeys(beginnings)]
        losses = [self._losses(v) for v in tried]
        if not math.isfinite(losses[0].mean()):
            raise DenoiserError(f"the default's run of {self.calls} calls ends at NaN or inf: check the model")
        first = min(range(len(tried)), key=lambda i: float(losses[i].mean()))
        v = centre = tried[first]
        reached = losses[first]
        for i in range(most):  # each costs more than one
            if i == 1:
                centre = v
            left = most - self.spent
            share = left / max(ROUNDS - i, 1)
            chosen = self._affordable(share, left) if i else np.arange(len(before))
            found, reached = self._round(v, reached, centre, chosen, share, left, i)
            if i and found is v:
                break
            v = found
        return self._plan(v), Family(*v[: len(before)].tolist()), self.spent

    def _round(
        self,
        v: Vector,
        losses: Vector,
        centre: Vector,
        chosen: NDArray[np.int64],
        share: float,
        left: int,
        turn: int,
    ) -> tuple[Vector, Vector]:
        """One step of Levenberg-Marquardt in the `chosen` numbers; v itself where that is no better, or too dear.

        It may cost its `share`, and all that is `left` for a single batch. Where it is derived from some batches, in
        turns, the others decide whether it is better. `losses` are those of v.
        """
        turned = [(turn + k) % len(self.batches) for k in range(len(self.batches))]
        costs = self._costs(chosen, turned)
        if costs[0] > left:
            return v, losses
        some = [k for k, cost in zip(turned, costs, strict=True) if cost <= max(share, costs[0])]
        gram, slope, size = self._normal(v, chosen, [self.batches[k] for k in some])
        if not (np.isfinite(gram).all() and np.isfinite(slope).all()):
            return v, losses
        curved = gram.diagonal() + FLAT * gram.diagonal().mean()
        pull = PULL * size / np.array([WIDTHS[self.slots[k].kind] ** 2 for k in chosen])
        downhill = -slope - pull * (v - centre)[chosen]
        owner = np.repeat(np.arange(len(self.batches)), [len(batch.noise) for batch in self.batches])
        deciding = np.isin(owner, turned[len(some) :] or turned)
        better = v
        for damping in DAMPING:
            step = np.linalg.solve(gram + np.diag(damping * curved + pull), downhill)
            trial = v.copy()
            trial[chosen] += step * min(1.0, LONGEST / max(np.abs(step).max(), math.ulp(0)))
            found = self._losses(trial)
            if found[deciding].mean() < losses[deciding].mean():
                better, losses = trial, found
            elif better is not v:
                break
        return better, losses

    def _affordable(self, share: float, left: int) -> NDArray[np.int64]:
        """What a round varies: all, or levels and the newest weights, by all that is left if need be; or levels."""
        levels, newest, every = (
            np.array([k for k, slot in enumerate(self.slots) if slot.kind in kinds and slot.k <= last])
            for kinds, last in ((LEVELS, 0), ((*LEVELS, *WEIGHTS), 0), (WIDTHS, HISTORY))
        )
        for paid in (share, left):
            for chosen in (every, newest):
                if self._costs(chosen, [0])[0] <= paid:
                    return chosen
        return levels

    def _costs(self, chosen: NDArray[np.int64], order: Sequence[int]) -> list[int]:
        """Of a round in the chosen numbers, derived from the first of so ordered batches, the first two, ..."""
        trials = len(DAMPING) * self.calls * self.samples
        return [self._each(chosen) * end + trials for end in accumulate(len(self.batches[k].noise) for k in order)]

    def _each(self, chosen: NDArray[np.int64]) -> int:
        """Calls for a sample of which the chosen numbers are derived."""
        return self.calls + sum(self.calls - 1 - self.slots[k].first for k in map(int, chosen))

    def _losses(self, v: Vector) -> Vector:
        """Of each sample, the size of what the objective sees of its error, or its square where they are MANY.

        inf where there is no such plan or no finite end.
        """
        try:
            plan = self._plan(v)
        except Beyond:
            return np.full(self.samples, math.inf)
        self._pay(self.calls * self.samples)

        def measured() -> Tensor:
            sizes = [_norms(self.see(batch.run(plan)) - self.see(batch.exact)) for batch in self.batches]
            return torch.from_numpy(np.concatenate(sizes))

        sizes: Vector = self._once(measured).numpy()
        return np.where(np.isfinite(sizes), sizes, math.inf) ** self._power

    def _normal(self, v: Vector, chosen: NDArray[np.int64], batches: Sequence[Batch]) -> tuple[Vector, Vector, float]:
        """J J^T, J r and |r|^2 over some of the batches."""
        self._pay(self._each(chosen) * sum(len(batch.noise) for batch in batches))

        def measured() -> Tensor:
            return torch.stack([self._normal_of(batch, v, chosen) for batch in batches]).mean(0)

        found = self._once(measured).numpy()
        return found[1:, 1:], found[1:, 0], float(found[0, 0])

    def _normal_of(self, batch: Batch, v: Vector, chosen: NDArray[np.int64]) -> Tensor:
        tape: list[Any] = []
        seen = self.see(batch.run(self._plan(v), tape)).flatten(1)
        residual = seen - self.see(batch.exact).flatten(1)
        sizes = residual.square().mean(1, keepdim=True)
        weights = (sizes + LEAST * sizes.mean()) ** (self._power / 4 - 0.5)
        rows = [(residual * weights).flatten()]
        for k in chosen:
            step = FAMILY_STEP if self.slots[k].kind == "family" else OWN_STEP
            try:
                moved = self._plan(v + step * _unit(k, len(v)))
            except Beyond:
                step = -step
                moved = self._plan(v + step * _unit(k, len(v)))
            ended = batch.run(moved, tape, self.slots[k].first)
            rows.append(((self.see(ended).flatten(1) - seen) * (weights / step)).flatten())
        changes = torch.stack(rows)
        return (changes @ changes.T).cpu().double()

    def _plan(self, v: Vector) -> TunedPlan:
        """Nodes and stages; `Beyond` where numbers leave their bounds, or nodes, or what is told at them, meet."""
        size = len(Family._fields)
        if np.abs(v[1:size]).max() > FAMILY_REACH:
            raise Beyond
        family = Family(*v[:size].tolist())
        nodes = list(family.nodes(self.schedule, self.calls))
        own: dict[tuple[str, int, int], float] = {
            (slot.kind, slot.stage, slot.k): by for slot, by in zip(self.slots, v, strict=True)
        }
        for k in range(1, len(nodes) - 1):
            if (by := own["node", k, 0]) and math.isfinite(nodes[k].lam):
                nodes[k] = self.schedule.node(self.schedule.time_at(nodes[k].lam + by))
        nodes = list(asked(self.schedule, nodes, [own.get(("told", k, 0), 0.0) for k in range(self.calls)]))
        if any(t.lam - s.lam < CLOSEST or t.time >= s.time for s, t in pairwise(nodes)):
            raise Beyond
        stages = family.stages(nodes, self.schedule.data_scale, self.schedule.lam_range[1])
        for i, stage in enumerate(stages[1:], 1):
            # What nothing foretells, trust cannot leave out: the newest difference alone.
            known = min(i, HISTORY - 1) if stage.foretold else 1
            predict, correct = (
                _added(split, [own.get((kind, i, k), 0.0) for k in range(known)], node.alpha)
                for kind, split, node in (
                    ("predict", stage.predict, nodes[i + 1]),
                    ("correct", stage.correct, nodes[i]),
                )
            )
            stages[i] = stage._replace(predict=predict, correct=correct, most=math.inf)
        return nodes, stages

    def _pay(self, evaluations: int) -> None:
        self.spent += evaluations
        self.count.add(evaluations)

    def _once(self, measured: Callable[[], Tensor]) -> Tensor:
        self.asked += 1
        return self.once(f"{self.calls}-{self.asked}", measured)


def _added(split: Split | None, own: Sequence[float], alpha: float) -> Split | None:
    """`split` with so much more of each difference, over alpha, and no more of any than the default may have.

    What a row of several counts twice, the newest difference, is added where trust does not leave it out.
    """
    if split is None and not any(own):
        return None
    lead, rest = split or Split(0.0, ())
    more = [0.0, *(by * alpha for by in own[1:])] if any(own[1:]) else []
    summed = [a + b for a, b in zip_longest(rest, more, fillvalue=0.0)]
    size = sum(map(abs, summed))
    share = min(1.0, BOUND * alpha / size) if size else 1.0
    lead = min(max(lead + own[0] * alpha, -BOUND * alpha), BOUND * alpha)
    return Split(lead, tuple(weight * share for weight in summed))


def _outcome(calls: int, default: Vector, tuned: Vector, size: float, spent: int) -> Outcome:
    """Of errors of samples of `size`; the interval is of resampled samples. Rounding of float32 is no error."""
    if not np.isfinite(default).all():
        raise DenoiserError(f"the default's run of {calls} calls ends at NaN or inf: check the model and its schedule")
    if not np.isfinite(tuned).all():  # held out, it diverges
        return Outcome(calls, _rms([default]), _rms([default]), 1.0, 1.0, 1.0, spent, False)
    drawn = np.random.default_rng(calls).integers(len(tuned), size=(RESAMPLES, len(tuned)))
    least = max(size * float(np.finfo(np.float32).eps), float(np.finfo(np.float64).tiny))
    before, after = (np.sqrt((each[drawn] ** 2).mean(1)).clip(least) for each in (default, tuned))
    low, high = np.quantile(after / before, (0.025, 0.975)).tolist()
    ratio = max(_rms([tuned]), least) / max(_rms([default]), least)
    return Outcome(calls, _rms([default]), _rms([tuned]), ratio, low, high, spent, ratio < 1)


def _norms(x: Tensor) -> Vector:
    """The root mean square of each sample."""
    found: Vector = x.flatten(1).cpu().double().square().mean(1).sqrt().numpy()
    return found


def _rms(errors: Sequence[Vector]) -> float:
    return float(np.sqrt((np.concatenate(errors) ** 2).mean()))


def _unit(k: int, size: int) -> Vector:
    unit = np.zeros(size)
    unit[k] = 1.0
    return unit
