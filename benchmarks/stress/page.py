"""The page docs/stress.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import NamedTuple

from fewstep.bench.markdown import table
from fewstep.solvers import EVODiff

from .measure import Bench
from .peers import FORMER, PEERS, SIMPLE, peer
from .problems import NETWORK_SAMPLES, OWN, SAMPLES, Cell
from .ratios import NEGLIGIBLE, WORSE, Errors, Peers, over_best, over_simple, report, summed

__all__ = ["Measured", "page"]

ELSEWHERE = 0.3  # of the data's standard deviation: the next mode is further, the worst of the others nearer
SHOWN = 20
GROUPS = ("levels", "guidance", "calls", "schedule", "family")


class Measured(NamedTuple):
    """Problems, with the errors of EVODiff() and of its peers."""

    bench: Bench
    ours: Errors
    peers: Peers


def page(exact: Measured, networks: Measured, split: str, command: str) -> str:
    """In Markdown."""
    parts = [
        INTRODUCTION.format(
            command=command,
            split=split,
            problems=len(exact.bench.problems),
            samples=SAMPLES,
            worse=WORSE,
            negligible=NEGLIGIBLE,
            peers=fill(", ".join(PEERS), 119),
        ),
        _claims(exact, networks),
        "## All solvers, on the same nodes\n\n" + BESIDE,
        _solvers(exact),
        "## EVODiff() on the exact problems\n",
        *_tables(exact, (*GROUPS, "problem")),
        "## Its losses, sample by sample\n",
        _losses(exact),
        "## EVODiff() on pretrained networks\n\n" + NETWORKS.format(samples=NETWORK_SAMPLES),
        *_tables(networks, ("levels", "calls", "problem")),
        "Every error, in data standard deviations, of EVODiff() and the peers on the same levels:\n",
        _errors(networks),
    ]
    return "\n".join(parts)


def _claims(exact: Measured, networks: Measured) -> str:
    rows = []
    for name, found in (("exact", exact), ("networks", networks)):
        simple = over_simple(found.ours, found.peers)
        for what, ratios in (
            ("DDIM or 2M, the same nodes, all levels", simple),
            ("DDIM or 2M, the same nodes, own levels", {c: r for c, r in simple.items() if c.levels == OWN}),
            ("the best of all peers at its best levels, own levels", over_best(found.ours, found.peers)),
            ("the best of the first seven, the same", over_best(found.ours, found.peers, FORMER)),
        ):
            each = summed(ratios)
            rows.append([name, what, str(each.cells), f"{each.mean:.2f}", f"{each.worst:.2f}", f"{each.above:.0%}"])
    return table(["problems", "over", "cells", "geometric mean", "worst", f"above {WORSE}"], rows)


def _solvers(found: Measured) -> str:
    """Every solver over the better of DDIM and 2M, by kind of levels."""
    solvers: Mapping[str, Errors] = {
        "EVODiff()": found.ours,
        **{name: {cell: errors[name] for cell, errors in found.peers.items() if name in errors} for name in PEERS},
    }
    levels = list(dict.fromkeys(cell.levels for cell in found.ours))

    def shown(ratios: Mapping[Cell, float]) -> str:
        each = summed(ratios)
        return f"{each.mean:.2f} / {each.worst:.1f} / {each.above:.0%}"

    rows = []
    for name, errors in solvers.items():
        ratios = over_simple(errors, found.peers)
        parts = [{cell: r for cell, r in ratios.items() if cell.levels == kind} for kind in levels]
        rows.append([name, *map(shown, (ratios, *parts))])
    return table(["", "all", *levels], rows)


def _losses(found: Measured) -> str:
    """Cells above WORSE: whether it is a sample that landed elsewhere, or all of them."""
    ratios = over_simple(found.ours, found.peers)
    lost = sorted((cell for cell in ratios if ratios[cell] > WORSE), key=lambda cell: -ratios[cell])
    rows, elsewhere, better = [], 0, 0
    for cell in lost:
        problem = found.bench.problems[cell.problem]
        simple = {name: peer(name, problem.schedules[cell.schedule]) for name in SIMPLE}
        best = min(SIMPLE, key=lambda name: found.peers[cell][name])
        errors = [found.bench.samples(each, cell, EVODiff().grid) for each in (EVODiff(), *simple.values())]
        far = [int((each > ELSEWHERE).sum()) for each in errors]
        medians = [float(each.median()) for each in errors]
        more = far[0] > far[1 + list(SIMPLE).index(best)]
        elsewhere += more
        better += more and medians[0] <= WORSE * medians[1 + list(SIMPLE).index(best)]
        rows.append([", ".join(map(str, cell)), f"{ratios[cell]:.2f}", *map(str, far), *(f"{m:.4f}" for m in medians)])
    names = ["EVODiff()", *SIMPLE]
    head = ["", "ratio", *(f"{name}: elsewhere" for name in names), *(f"{name}: median" for name in names)]
    said = LOSSES.format(
        samples=SAMPLES, far=ELSEWHERE, worse=WORSE, lost=len(lost), elsewhere=elsewhere, better=better, shown=SHOWN
    )
    return said + "\n" + table(head, rows[:SHOWN])


def _tables(found: Measured, groups: Sequence[str]) -> list[str]:
    made = report(found.bench, found.ours, found.peers, groups)
    return [f"### {name[0].upper()}{name[1:]}\n\n{lines}" for name, lines in made.items()]


def _errors(found: Measured) -> str:
    rows = [
        [cell.problem, cell.levels, str(cell.calls), f"{error:.3f}"]
        + [f"{found.peers[cell][name]:.3f}" if name in found.peers[cell] else "" for name in PEERS]
        for cell, error in found.ours.items()
    ]
    return table(["network", "levels", "calls", "EVODiff()", *PEERS], rows)


INTRODUCTION = """# Under stress

For people who wonder whether a default that was tuned on images fails elsewhere. You get every kind of problem that
it was tried on, over whom, and how often and how badly it loses.

How `EVODiff()`, with no options, does where it was not tuned: on problems that are nothing like images, at noise levels
that no one chose for it, under guidance of up to 7.5. Only in **units** and **scale** are the schedules told the data's
standard deviation, `data_std`; elsewhere they keep that of images. [quality.md](quality.md) has the other story, of
images. Written by `{command}`.

A cell is a problem, a schedule, a kind of noise levels and a number of calls. The error is the RMSE to the converged
solution from the same noise, between the same ends. The {problems} exact problems have denoisers in closed form, and
{samples:,} samples in each cell:

- **guided**: a mixture of 4 narrow Gaussians in 48 dimensions; the class is one of them, or two; guidance 1 to 7.5.
- **mixture**: the same without classes. **range**: on the noise levels of Stable Diffusion in ComfyUI, 0.03 to 14.6,
  and on flows of shift 1 and 7.
- **errors**: the same with a network that errs by 0.4 % or 2 % of the noise (on the flow, of the velocity), by a fixed
  random function of the image and the noise level, smooth or rough; σ up to 80 and 150.
- **tails**: Student's t with 3 degrees of freedom, of one scale for all coordinates or one for each; scales from 0.01
  to 3 in each coordinate.
- **lattice**: some of the points of a grid in 2 and 3 dimensions. **low**: mixtures in 1, 2 and 4 dimensions.
- **posterior**: two close Gaussians in 5 dimensions, away from zero, far narrower than noise or wider, on a flow: their
  velocities are nearly linear in time.
- **units**: a mixture in units of 0.01 to 300, 0 to 255 among them, σ in the same units. **scale**: data far narrower
  or wider than schedules are made for, on their usual ranges.
- **decided**: points of a sphere in 3 dimensions; 32 bits, 0 or 1; 8 places with one of 10 categories each.

The split `{split}` has other random numbers, and other networks, than the one on which solvers are developed.

The peers, by their names in `fewstep solvers`, are
{peers}.
Their last steps have the order that is chosen for each run (`solvers/core/last_steps.py`): with that of their authors
2M and UniPC leave more.

"Own" levels are EVODiff's grid,
`focused`; the others are Karras', even in log-SNR and even in time. "The better of DDIM and 2M" and "the best peer at
its best levels" are chosen in each cell afterwards, which nobody could in advance. Below 1 EVODiff() is better; a ratio
above {worse} counts as worse. Errors below {negligible:g} of the data's standard deviation count as that.

The first seven peers are those known by 2024. Of the others REAB is exact for one Gaussian of one scale, where nobody
else comes near it.
"""
LOSSES = """Where data are sharp modes, the map from noise to image jumps between them, and a sample that starts beside
a jump lands elsewhere by any error, however small. One of {samples:,} that does weighs more in the RMSE than all the
rest together, whichever solver it happens to. Of the {lost} cells above {worse}, {elsewhere} have more samples off by
over {far} standard deviations than the better of DDIM and 2M has; in {better} of these the median sample is no worse
than theirs. The {shown} worst:
"""
BESIDE = f"""Every solver over the better of DDIM and 2M on the same nodes: geometric mean / worst / share of cells
above {WORSE}.
"""
NETWORKS = """Score networks of galaxies by others (galaxygrad 0.2.1), under VP with constant β; the data are sky, about
0, and galaxies of up to 8 to 16. {samples} samples of each.
"""
