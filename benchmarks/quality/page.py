"""The page docs/quality.md: what the bench of image quality found, losses like wins."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby, product
from typing import NamedTuple

from fewstep.bench.markdown import table

from ..problems.suite import DATA, EXACT, IDEAL_IMAGES, LOCAL_IMAGES, OWN, OWN_IMAGES, OWN_STEPS, SPLITS, STEPS
from .ratios import NEGLIGIBLE, PUBLISHED, Cell, Ratio, against, apart, by_frechet, by_rmse, geometric_mean
from .results import Measurement
from .run import (
    CONTENDERS,
    CONTENDS,
    FORMER,
    FRECHET_BUDGETS,
    HEAT,
    HIGHER_END,
    INFORMED,
    OURS_ELSEWHERE,
    POINTS,
    QUALIFIES,
    QUALIFYING,
    SETTINGS,
    STATISTICS_SAMPLES,
    SUIT,
    USUAL,
    USUAL_GRIDS,
    Plan,
    on_grids,
)

__all__ = ["page"]


class Group(NamedTuple):
    """Cells reported together, and the target of the geometric mean of their ratios."""

    title: str
    target: float


GROUPS = {
    "exact": Group("exact problems", 0.90),
    "unguided": Group("trained model, no guidance", 0.95),
    "guided": Group("trained model, guided", 0.95),
}
DISTANCES = {  # by what they are to
    EXACT: Group("exact problems", 0.95),
    DATA: Group("trained model, to training images", 0.95),
    OWN: Group("trained model, to its own distribution", 0.95),
}
HEADS = {EXACT: "Fréchet", DATA: "Fréchet, training images", OWN: "Fréchet, its own images"}
WORST_RMSE, WORST_FRECHET = 1.15, 1.05
FEW = 8  # calls
NEVER = 2  # cells
ASTRAY = 0.1  # an RMSE of one sample: a twentieth of the range of pixels
NOTHING = "–"


def page(cells: Sequence[Cell], plan: Plan, split: str, command: str) -> str:
    """The page as Markdown, from cells of one plan; `command` is what wrote it."""
    if not cells:
        raise ValueError("nothing was measured of these problems: run them first")
    budgets = ", ".join(map(str, plan.budgets))
    informed = INFORMED_NOTE.format(samples=STATISTICS_SAMPLES, points=POINTS) if INFORMED in plan.peers else ""
    parts = [
        INTRODUCTION.format(
            command=command,
            split=split,
            splits="; ".join(
                f'"{name}" has classes {", ".join(map(str, each.classes))}, seeds from {each.first_seed}'
                for name, each in SPLITS.items()
            ),
            budgets=budgets,
            peers=", ".join(plan.peers),
            count=1 + len(plan.peers),
            higher=HIGHER_END,
            usual=", ".join(USUAL),
            qualifying=QUALIFYING,
            qualifies=QUALIFIES,
            heat=HEAT,
            contends=CONTENDS,
            contenders=CONTENDERS,
            suit=SUIT,
            informed=informed,
            grids="; ".join(
                f"{name}: {', '.join(list(SETTINGS[name].grids)[: plan.grids])}" for name in plan.schedules
            ),
            frechet=_frechet_note(cells) if plan.frechet else "",
            steps=STEPS,
            ideal=f"{IDEAL_IMAGES:,}",
            local=LOCAL_IMAGES,
            samples=_samples((cell.problem, len(cell.ours.errors)) for cell in cells),
        ),
        _missing(cells, plan) + "## Summary\n\n### RMSE to the converged solution, EVODiff() over the best peer\n",
        _errors(cells),
    ]
    measured = [cell for cell in cells if cell.ours.distances]
    if measured:
        parts += ["### Fréchet distance, EVODiff() over the best peer\n", _distances(measured)]
    if {PUBLISHED, *plan.peers} >= FORMER:
        parts += [FORMER_NOTE.format(count=len(FORMER), grids=USUAL_GRIDS), _errors(_among_former(cells))]
        if measured:
            parts += ["By Fréchet distance:\n", _distances(_among_former(measured))]
    parts += [AGAINST, _errors_against(cells, (PUBLISHED, *plan.peers))]
    if measured:
        parts += ["By Fréchet distance:\n", _distances_against(measured, (PUBLISHED, *plan.peers))]
    parts += [WINNERS.format(below=NEVER), _winners(cells)]
    parts += [GRIDS_NOTE.format(few=FEW), _best_grids(cells, (PUBLISHED, *plan.peers))]
    parts.append(WHY.format(count=1 + len(plan.peers)))
    exact = _of(cells, "exact")
    if exact:
        parts += [ASTRAY_NOTE.format(astray=ASTRAY), _astray(exact, plan.budgets)]
    anywhere = [cell for cell in cells if cell.elsewhere]
    if anywhere:
        at_best = [_at_best(cell, lambda each: each.rmse) for cell in anywhere]
        parts += [ANYWHERE.format(grids=", ".join(OURS_ELSEWHERE)), _errors(at_best)]
        if measured:
            parts += ["By Fréchet distance, of the best grid by that:\n", _distances(anywhere, _by_frechet_at_best)]
    floors = _converged(measured)
    if floors:
        parts += [_beyond(measured), _distances(floors)]
    parts.append(CELLS)
    for (problem, schedule), rows in groupby(cells, key=lambda cell: (cell.problem, cell.schedule)):
        parts.append(f"### {problem}, {schedule}\n")
        parts += _tables(list(rows))
    return "\n".join(parts)


def _frechet_note(cells: Sequence[Cell]) -> str:
    samples = _samples((cell.problem, each.samples) for cell in cells for each in cell.ours.distances.values())
    return FRECHET_NOTE.format(
        budgets=", ".join(map(str, FRECHET_BUDGETS)), samples=samples, own=f"{OWN_IMAGES:,}", own_steps=OWN_STEPS
    )


def _samples(counted: Iterable[tuple[str, int]]) -> str:
    """How many samples were measured of each problem."""
    counts: dict[int, list[str]] = {}
    for problem, count in counted:
        names = counts.setdefault(count, [])
        if problem not in names:
            names.append(problem)
    return "; ".join(f"{count:,} for {', '.join(names)}" for count, names in sorted(counts.items()))


def _errors(cells: Sequence[Cell]) -> str:
    found = {group: [by_rmse(cell) for cell in _of(cells, name)] for name, group in GROUPS.items()}
    return _summary(found, WORST_RMSE)


def _among_former(cells: Sequence[Cell]) -> list[Cell]:
    return [cell._replace(peers=list(cell.former)) for cell in cells]


def _of(cells: Sequence[Cell], group: str) -> list[Cell]:
    return [cell for cell in cells if cell.group == group]


def _with(cells: Sequence[Cell], to: str) -> list[Cell]:
    """Those whose distance to `to` was measured."""
    return [cell for cell in cells if to in cell.ours.distances]


def _errors_against(cells: Sequence[Cell], peers: Sequence[str]) -> str:
    columns = {
        group.title: partial(against, _of(cells, name), value=lambda each: each.rmse) for name, group in GROUPS.items()
    }
    return _against(columns, peers)


def _distances_against(cells: Sequence[Cell], peers: Sequence[str]) -> str:
    columns = {
        group.title: partial(against, _with(cells, to), value=partial(_distance, to)) for to, group in DISTANCES.items()
    }
    return _against(columns, peers)


def _distance(to: str, measured: Measurement) -> float | None:
    return measured.distances[to].value if to in measured.distances else None


def _against(columns: Mapping[str, Callable[[str], list[float]]], peers: Sequence[str]) -> str:
    """A row for each peer: the geometric mean of our ratios to it, and how many cells are won; and who is nearest."""

    def text(ratios: Sequence[float]) -> str:
        won = sum(ratio < 1 for ratio in ratios)
        return f"{statistics.geometric_mean(ratios):.3f}: {won} of {len(ratios)}" if ratios else NOTHING

    found = {title: {peer: of(peer) for peer in peers} for title, of in columns.items()}
    nearest = []
    for title, column in found.items():
        most = max(map(len, column.values()))
        many = {peer: statistics.geometric_mean(each) for peer, each in column.items() if 2 * len(each) >= most > 0}
        if many:
            peer = max(many, key=lambda each: many[each])
            nearest.append(f"{title}: {peer}, {text(column[peer])}")
    rows = [[peer, *(text(column[peer]) for column in found.values())] for peer in peers]
    return table(["solver", *columns], rows) + f"\nThe nearest in at least half of the cells. {'; '.join(nearest)}.\n"


def _winners(cells: Sequence[Cell]) -> str:
    """A row for each solver and grid that is the best peer of some cells: in how many, by group."""
    best = Counter((by_rmse(cell).peer.key[2:], cell.group) for cell in cells)
    pairs = Counter(key for key, _ in best.elements())
    often = [key for key, count in pairs.most_common() if count > NEVER]
    rows = [[*key, *(str(best[key, group]) for group in GROUPS)] for key in often]
    rows.append(["others", "", *(str(sum(best[key, group] for key in pairs if key not in often)) for group in GROUPS)])
    return table(["best peer", "grid", *(group.title for group in GROUPS.values())], rows)


def _best_grids(cells: Sequence[Cell], peers: Sequence[str]) -> str:
    """A row for each peer: its best grid on each schedule with few calls, and with more."""
    schedules = list(dict.fromkeys(cell.schedule for cell in cells))

    def best(peer: str, schedule: str, few: bool) -> str:
        errors: dict[str, list[float]] = {}
        for cell in cells:
            if cell.schedule == schedule and (cell.nfe <= FEW) == few:
                for grid, error in on_grids(cell.heat, peer).items():
                    errors.setdefault(grid, []).append(max(error, NEGLIGIBLE))
        return min(errors, key=lambda grid: statistics.geometric_mean(errors[grid]), default=NOTHING)

    heads = [f"{schedule}, {calls}" for schedule in schedules for calls in ("few", "more")]
    rows = [[peer, *(best(peer, schedule, few) for schedule in schedules for few in (True, False))] for peer in peers]
    return table(["solver", *heads], rows)


def _by_frechet(cells: Sequence[Cell], to: str) -> list[Ratio]:
    return [by_frechet(cell, to) for cell in _with(cells, to)]


def _by_frechet_at_best(cells: Sequence[Cell], to: str) -> list[Ratio]:
    return _by_frechet([_at_best(cell, lambda each: each.distances[to].value) for cell in _with(cells, to)], to)


def _distances(cells: Sequence[Cell], ratios: Callable[[Sequence[Cell], str], Sequence[Ratio]] = _by_frechet) -> str:
    return _summary({group: ratios(cells, to) for to, group in DISTANCES.items()}, WORST_FRECHET)


def _converged(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the converged solution in our place, where it was measured."""
    return [cell._replace(ours=cell.floor) for cell in cells if cell.floor is not None]


def _beyond(cells: Sequence[Cell]) -> str:
    """How many of the distances above the target no solver true to the ODE would win."""
    lost = beyond = 0
    for to in DISTANCES:
        above = [ratio.cell for ratio in _by_frechet(cells, to) if ratio.value > WORST_FRECHET]
        lost += len(above)
        beyond += sum(ratio.value > 1 for ratio in _by_frechet(_converged(above), to))
    return CONVERGED.format(beyond=beyond, above=lost, worst=WORST_FRECHET)


def _at_best(cell: Cell, value: Callable[[Measurement], float]) -> Cell:
    """The cell with ours on the grid, of all that it ran on, that is best by `value`."""
    return cell._replace(ours=min((cell.ours, *cell.elsewhere), key=value))


def _astray(cells: Sequence[Cell], budgets: Sequence[int]) -> str:
    """A row for each problem and schedule: who loses how many samples, and how the errors of the others compare."""
    rows = []
    for place, group in groupby(cells, key=lambda cell: (cell.problem, cell.schedule)):
        texts = {}
        for cell in group:
            ours, theirs, ratio = apart(by_rmse(cell), ASTRAY)
            texts[cell.nfe] = f"{ours} / {theirs}: " + (NOTHING if ratio is None else f"{ratio:.2f}")
        rows.append([", ".join(place), *(texts.get(nfe, "") for nfe in budgets)])
    return table(["calls", *map(str, budgets)], rows)


def _summary(ratios: Mapping[Group, Sequence[Ratio]], worst_target: float) -> str:
    rows = []
    for group, within in ratios.items():
        if not within:
            continue
        mean, low, high = geometric_mean(within)
        worst = max(within, key=lambda ratio: ratio.value)
        won = sum(ratio.value < 1 for ratio in within)
        rows.append(
            [
                group.title,
                f"{mean:.3f} ({low:.3f}–{high:.3f})",
                f"≤ {group.target:.2f}: {_verdict(mean, group.target)}",
                f"{worst.value:.3f}: {worst.cell.problem}, {worst.cell.schedule}, {worst.cell.nfe} calls",
                f"≤ {worst_target:.2f}: {_verdict(worst.value, worst_target)}",
                f"{won} of {len(within)}",
            ]
        )
    head = ["problems", "geometric mean (95 %)", "target", "worst cell", "target", "cells won"]
    return table(head, rows) + _above(ratios, worst_target)


def _missing(cells: Sequence[Cell], plan: Plan) -> str:
    """What the plan has and the cells have not: a run that was not finished, or problems that were not asked for."""
    there = {(cell.problem, cell.schedule, cell.nfe) for cell in cells}
    measured = {(cell.problem, cell.schedule) for cell in cells if cell.ours.distances}
    missing = []
    for place in product(plan.problems, plan.schedules):
        lacking = [nfe for nfe in plan.budgets if (*place, nfe) not in there]
        if lacking:
            missing.append(", ".join(place) + ("" if len(lacking) == len(plan.budgets) else f" at {_calls(lacking)}"))
    without = [cell for cell in cells if cell.nfe in FRECHET_BUDGETS and not cell.ours.distances]
    for place, rows in groupby(without, key=lambda cell: (cell.problem, cell.schedule)):
        if place in measured:
            missing.append(f"Fréchet distances of {', '.join(place)} at {_calls([cell.nfe for cell in rows])}")
    return f"**Not measured yet:** {'; '.join(missing)}.\n\n" if missing else ""


def _calls(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets)) + " calls"


def _above(groups: Mapping[Group, Sequence[Ratio]], target: float) -> str:
    """The cells above the target for the worst one, by group, problem and schedule."""
    lost = {group: [ratio.cell for ratio in ratios if ratio.value > target] for group, ratios in groups.items()}
    texts = []
    for group, cells in lost.items():
        places = groupby(cells, key=lambda cell: (cell.problem, cell.schedule))
        named = [f"{', '.join(place)}, {_calls([cell.nfe for cell in within])}" for place, within in places]
        if named:
            texts.append(f"*{group.title}*: {'; '.join(named)}.")
    above, measured = (sum(map(len, each.values())) for each in (lost, groups))
    return f"\nAbove {target:.2f} ({above} of {measured}). {' '.join(texts)}".rstrip() + "\n"


def _verdict(value: float, target: float) -> str:
    return "met" if value <= target else "**not met**"


def _tables(cells: Sequence[Cell]) -> list[str]:
    nearest = bool(cells[0].ours.agrees)
    head = ["calls", "EVODiff()", "published", "best peer", "which", "ratio (95 %)", "gain", "its gain"]
    rows = []
    for cell in cells:
        ratio = by_rmse(cell)
        published = min(each.rmse for each in cell.published)
        row = [str(cell.nfe), *_paired(cell.ours.rmse, published, ratio.peer.rmse, "{:.4f}"), *_versus(ratio)]
        row += [f"{each.gain:.3f}" for each in (cell.ours, ratio.peer)]
        rows.append(row + ([_agreement(each) for each in (cell.ours, ratio.peer)] if nearest else []))
    found = [table([*head, *(["nearest", "its nearest"] if nearest else [])], rows)]
    for to, title in HEADS.items():
        distances = [_distance_row(ratio, to) for ratio in _by_frechet(cells, to)]
        if distances:
            found.append(table(["calls", f"{title}: EVODiff()", *head[2:6], "converged"], distances))
    return found


def _distance_row(ratio: Ratio, to: str) -> list[str]:
    cell = ratio.cell
    published = min(each.distances[to].value for each in cell.published)
    values = _paired(cell.ours.distances[to].value, published, ratio.peer.distances[to].value, "{:.3f}")
    floor = NOTHING if cell.floor is None else f"{cell.floor.distances[to].value:.3f}"
    return [str(cell.nfe), *values, *_versus(ratio), floor]


def _paired(ours: float, published: float, best: float, form: str) -> list[str]:
    """The three values, the lesser of ours and the best peer's in bold."""
    texts = [form.format(each) for each in (ours, published, best)]
    winner = 0 if ours < best else 2
    texts[winner] = f"**{texts[winner]}**"
    return texts


def _versus(ratio: Ratio) -> list[str]:
    low, high = ratio.interval
    return [f"{ratio.peer.solver}, {ratio.peer.grid}", f"{ratio.value:.3f} ({low:.3f}–{high:.3f})"]


def _agreement(measured: Measurement) -> str:
    return f"{sum(measured.agrees) / len(measured.agrees):.0%}"


INTRODUCTION = """# Image quality

For people who want to know how good images are, and for reviewers. You get EVODiff's default beside {count} solvers on
problems made of real images, cell by cell, with every loss; [evidence.md](evidence.md) says how to read such tables.

EVODiff's default beside the field, on problems whose solution is known. This page is written by `{command}`; no figure
in its tables is typed by hand. It is of the split "{split}". Solvers are developed on "dev" and reported on "report",
which share neither classes nor noise: {splits}.

**Problems.** All are made of real images, in [-1, 1].

- *gaussian*: a Gaussian for each of two classes at 32×32, of mean and full covariance of its images; closed form.
- *mixture*: such Gaussians of the five classes as a mixture, at 16×16.
- *ideal*: the denoiser of exactly {ideal} images at 16×16, which ends at one of them.
- *blurred-τ*: the same with each image replaced by N(image, τ²).
- *local*: the analytical denoiser of Lukoianov et al. (2025) with {local} images at 16×16: each pixel a posterior mean
  over the pixels that a Wiener filter depends on. `fewstep.adapters.Local` says what is theirs and what ours.
- *model*, *guided-s*: the packaged network without a class, and with the split's classes at guidance s.

**Schedules.** VE is EDM's from 80 to 0.002, VP is linear, flow is α = 1 - t. The denoiser is the same on all of them,
D(x/α; σ/α), the network's noise level clamped to the range that it was trained on.

**Solvers.** `EVODiff()` runs on its own grid. Each peer runs on every one of a schedule's grids, and the best peer and
grid are chosen in each cell, for each metric, after the fact: an oracle for the peers. {usual} and published EVODiff
run on all grids first, on {qualifying} samples, the others on up to {suit} where one of these three is within
{qualifies:g} of the least RMSE. Those within {qualifies:g} of the least run in a heat, on one in {heat} of the samples,
and the {contenders} best of that in RMSE and in distance, but to training images, on all, if within {contends:g}; so
does EVODiff() on other grids than its own, by its own best. All make exactly as many calls; Heun spends an odd one on a
step of first order. On flows, peers that predict noise predict velocities. The order of a last step is chosen by the
run ([numerics.md](numerics.md)), mostly 1; where a name ends in {higher} it is higher, and the grid one of the first
three.{informed}

- Peers: published EVODiff, {peers}.
- Grids: {grids}. EVODiff's own is not among them; [least-variance.md](least-variance.md) has peers on it.
- Calls: {budgets}.

**Metrics.** RMSE per pixel to the converged solution from the same noise, which runs from t_max to t_min whatever grid
a solver takes: in closed form for *gaussian*, by UniPC-3 in {steps} even steps of log-SNR otherwise. Gain: contrast, as
the slope of the output on the solution. Nearest: the share of samples whose nearest training image is the
solution's. Samples: {samples}.{frechet} Intervals are bootstrapped over samples, 95 %, paired between solvers; the
choice of the best peer is not resampled.
"""
INFORMED_NOTE = """ DPM-Solver-v3 takes part where it was given its statistics, on *mixture* and *model* ({samples}
images at {points} noise levels)."""
FRECHET_NOTE = """ Fréchet distance, at {budgets} calls: on exact problems in means over 8×8 squares to the
distribution's exact moments; on the network in the features of the packaged classifier, on VE without guidance, to
training images, and to {own} solutions from other noise, by UniPC-3 in {own_steps} steps: the network's own
distribution, which is all that a solver can get right. Samples: {samples}. "Converged" is the converged solution's own
distance with as many samples, the floor."""
WHY = """## Where it loses, and why

- **An oracle of many.** The best of {count} solvers on all grids, known afterwards, is as near as EVODiff() on exact
  problems, and a fifth to a quarter further on the network. The best peer changes from cell to cell, and is mostly on
  EVODiff's own grid. Over any one of them on its own best grid EVODiff() has half of the error, under guidance two
  thirds.
- **Flows of single images.** DEIS-3 and CAB-2 with θ = 0.5 are nearer on EVODiff's own grid: what extrapolates further
  lands right more often where answers jump. A flow begins at n = 1000 in place of 80 to 150, and so do the nodes of
  that grid. From n = 150 on, EVODiff() has 5 to 11 % less error on *ideal* in 5 to 8 calls, but 40 % more on the
  network in 15, so that it stays ([least-variance.md](least-variance.md)).
- **Sharp against smooth.** The denoisers of single images decide within a narrow band of noise levels; the more of a
  run's calls fall into it, the fewer decide wrongly. Smooth ones, Gaussians and networks, change over the whole range.
  One grid cannot be the best for both: on a grid twice as steep as EVODiff's the error on *ideal* falls and that on
  *mixture* grows, on one half as steep the reverse ([least-variance.md](least-variance.md) has both in its ablation).
  The oracle takes another peer, on another grid, for each. Below, EVODiff's rule has that choice too.
- **Gaussians.** On the way from 5 to 8 calls the gain of second-order peers passes 1 and their error a minimum, so that
  on VE and VP the best peer is better at 6 calls than at 8: the oracle finds the crossing, as it does with F-DPM's at
  12 calls on VP. At 20 calls on VE both are right to a twentieth of a grey level; the limit to the last step is what is
  left there.
- **Few samples decide.** From 12 calls on nearly all runs on *ideal* end at the solution's own image ("nearest"), and
  those on *blurred* near it; the error is that of the few that do not, and its ratio that of two small numbers: its
  intervals say so. The table below counts them, and compares the others. On VP even time loses fewer than our grid
  does: it spends more calls where images are told apart, and fewer on what they look like. Of 16 images of the network
  one lies between two outcomes, and is about half of the squared error from 10 to 15 calls.
- **Fréchet distances have a floor.** Samples of the converged solution are not at distance 0 either. Where both are
  near that floor no ratio can be much below 1; what the converged solution itself would get is below.
- **Fréchet distance of sharp problems.** The least error and the least distance are different aims: an average of two
  images is nearer to both than either is to the other, and has too little contrast. The best peer by distance is mostly
  one that extrapolates far, and now and then lands well, as DEIS-3 does on the flow of *ideal*. Nobody can pick it in
  advance.
- **Strong guidance.** At guidance 7.5 nobody is near the solution in 5 and 6 calls: the errors are a tenth of the range
  of pixels and more. With 12 calls and more UniPC on EVODiff's own grid is level on VE and VP: the median images of the
  two differ by a quarter at most, and one or two of 16 that land elsewhere are most of the error, as those of 15 calls
  on VP. On flows EVODiff() leaves less, half as much at 20 calls. `fewstep tune` measures what one model wants
  ([tune.md](tune.md)).
- **Fréchet distance of the network.** To training images the converged solution itself is within a twentieth of the
  best peer: the network is further from them than a solver takes it. To the network's own distribution EVODiff() loses
  at 5 calls, and is level at 6 and 8, though its images are the nearest to the solution. Where the distance comes from,
  with 5 calls and 512 images of the development problem, in parts below and above 4 cycles an image:

  | | whole | its shapes, the solution's details | the solution's shapes, its details | RMSE |
  | --- | --- | --- | --- | --- |
  | EVODiff() | 1.11 | 0.52 | 1.23 | 0.055 |
  | EVODiff(), fall 0.3 | 1.01 | 0.53 | 1.10 | 0.078 |
  | EVODiff(), fall 0.2 | 1.03 | 0.59 | 1.05 | 0.116 |
  | UniPC-3, even log-SNR | 0.75 | 0.61 | 0.62 | 0.121 |
  | the solution | 0.54 | 0.54 | 0.54 | 0.000 |
  | the solution, 0.75 of its energy from 8 cycles on | 0.70 | | | 0.015 |
  | the solution, 0.67 of its energy below 2 cycles | 0.70 | | | 0.071 |

  EVODiff's shapes are right and its details are not; UniPC-3 has details, on wrong shapes. The classifier weighs
  details more than pixels do: the last two rows are as far, one at a fifth of the other's error. Details are what the
  last step decides, from n = 0.2 down in one; even log-SNR, where the best peers are, has two calls there. A grid that
  falls less goes there too: a tenth less distance for half as much error again. The table is what
  `benchmarks/quality/distance_parts.py` prints.
"""
FORMER_NOTE = """### The same over the best of the field of 2023

{count} of these solvers on the first {grids} grids of each schedule, as this page had them before.
"""
AGAINST = """### EVODiff() over one solver on one grid

What a change would bring. Each peer stays on one grid a schedule, the one that is best for it over all cells of a
column. Geometric mean and cells won, on the samples that both ran on. By RMSE:
"""
WINNERS = """### Who the best peer is

In how many cells, by RMSE; others are the best in {below} cells at most each. `focused` is EVODiff()'s own grid.
"""
GRIDS_NOTE = """### The best grid of each solver

By the geometric mean of RMSE over the problems, in the heats. Some solvers ran on a grid for the first samples only:
the ratio to their best grid is taken to be the same on all. Where a solver did not run at all, the ratio is that of the
best of the usual three. Few are up to {few} calls.
"""
ASTRAY_NOTE = """### Samples that go astray

Where single images attract, an error is mostly the share of samples that end at another image than the solution. In
each cell: samples whose RMSE is above {astray:g}, ours / the best peer's (the peer of the tables below), and the ratio
of RMSE over the samples that neither loses, where those are at least half.
"""
ANYWHERE = """### The same rule on the best of several grids

What a loss owes to the grid: EVODiff() with the choice that the peers have, in each cell the best of its own grid, the
peers' and `{grids}`, after the fact. By RMSE:
"""
CONVERGED = """### The converged solution in our place

What a distance can be at all: that of the converged solution, over the best peer's. It is above 1 in {beyond} of the
{above} cells where EVODiff()'s is above {worst:g}.
"""
CELLS = """## Every cell

In bold the lesser of EVODiff()'s and the best peer's value.
"""
