"""The page docs/entropy.md: where the packaged network decides, by `fewstep.analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import typer

from fewstep.adapters import EDMModel
from fewstep.analysis import Analysis, analyze
from fewstep.bench.markdown import table
from fewstep.grid import focused
from fewstep.prediction import Denoiser
from fewstep.schedule import Node
from fewstep.transition import CALLS as OVER
from fewstep.transition import Transitions, over_calls, transitions

from .command import Out, packaged, say, write

__all__ = ["measured", "page"]

SEEDS, LEVELS = 16, 24
GUIDANCES = (1.0, 4.0, 7.5)
CALLS = 8


def given(model: EDMModel, guidance: float) -> dict[str, Any]:
    """Of all classes, in turn; without classes where there is no guidance."""

    def of(seeds: Sequence[int]) -> Denoiser:
        return model if guidance == 1 else model.conditioned([seed % len(model.classes) for seed in seeds], guidance)

    return {"denoiser": of, "schedule": model.schedule, "shape": model.shape, "seeds": range(SEEDS), "by_seed": True}


def measured(model: EDMModel, guidance: float) -> Analysis:
    say(f"guidance {guidance:g} ...")
    return analyze(**given(model, guidance), levels=LEVELS)


def page(model: EDMModel, guidances: Sequence[float] = GUIDANCES) -> str:
    """The page as Markdown."""
    found = {guidance: measured(model, guidance) for guidance in guidances}
    nodes = focused(model.schedule, CALLS)
    parts = [INTRODUCTION.format(seeds=SEEDS)]
    for guidance, each in found.items():
        parts += [f"## {_title(guidance)}\n", _table(each, nodes), ""]
        nsr, peak = (float(np.exp(-lam)) for lam in (each.decided, each.lams[each.rate.argmax()]))
        parts += [f"Half is decided by σ/α = {nsr:.3g}; it falls fastest at {peak:.3g}.\n"]
    parts += [READING, STEPS.format(calls=CALLS)]
    for guidance in guidances:
        say(f"steps at guidance {guidance:g} ...")
        parts += [
            f"### {_title(guidance)}, step by step\n",
            _steps(transitions(**given(model, guidance), nfe=CALLS)),
            "",
        ]
    parts += [SINGLE, _single({guidance: over_calls(**given(model, guidance)) for guidance in guidances}), SEEN]
    return "\n".join(parts)


def _title(guidance: float) -> str:
    return "No guidance" if guidance == 1 else f"Guidance {guidance:g}"


def _table(found: Analysis, nodes: Sequence[Node]) -> str:
    calls = np.array([node.lam for node in nodes])
    step = float(found.lams[1] - found.lams[0])
    columns = np.exp(-found.lams), found.variance, found.rate, found.left
    dots = ("•" * int((np.abs(calls - lam) <= step / 2).sum()) for lam in found.lams)
    rows = [[*map("{:.3g}".format, row), dot] for *row, dot in zip(*columns, dots, strict=True)]
    return table(["σ/α", "Var(x₀ given x)", "Var(ε given x) = nats a unit", "nats left", f"{CALLS} calls"], rows)


def _steps(found: Transitions) -> str:
    """Both errors of each solver, and what the rules weigh: two tables of a row a call."""
    levels = [f"{nsr:.3g}" for nsr in np.exp(-found.lams)]
    errors = [found.state[name] for name in found.state] + [found.path] + [found.answer[name] for name in found.answer]
    names = [f"{name}: added" for name in found.state] + ["converged: off"] + [f"{name}: off" for name in found.answer]
    rows = [[level, *(f"{value:.2g}" for value in row)] for level, *row in zip(levels, *errors, strict=True)]
    ends = ", ".join(f"{name} {end:.3f}" for name, end in found.ends.items())
    shares = [
        [level, f"{most:.2f}"] + [_share(*pair) for pair in row]
        for level, most, *row in zip(
            levels,
            found.longest,
            *(
                zip(values, spreads, strict=True)
                for rule in found.rules.values()
                for values, spreads in ((rule.eta, rule.eta_std), (rule.zeta, rule.zeta_std))
            ),
            strict=True,
        )
    ]
    header = [f"{symbol}, {name}" for name in found.rules for symbol in "ηζ"]
    return f"{table(['σ/α', *names], rows)}\nRMSE at the end: {ends}.\n\n{table(['σ/α', 'at most', *header], shares)}"


def _share(value: float, spread: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f} ± {spread:.2f}"


def _single(found: Mapping[float, Mapping[str, Any]]) -> str:
    """A row for each guidance and iteration."""
    rows = [
        [_title(guidance), name, *(f"{error:.3f}" for error in errors)]
        for guidance, each in found.items()
        for name, errors in each.items()
    ]
    return table(["", "iteration", *(f"{calls} calls" for calls in OVER)], rows)


INTRODUCTION = """# Where a model decides

For people who ask where in a run calls are worth making. You get the speed at which an image is decided, by noise
level, for the packaged network; a command draws it for yours.

The conditional entropy of the image, given its noisy state, says how much of the image is still open. `fewstep analyze`
measures at which noise levels it falls: there the image is decided. This page is that of the packaged
network, of {seeds} samples of its own, written by `python -m benchmarks.entropy`. `fewstep analyze --out entropy.png`
draws it for yours.

EVODiff's papers look at a step as a transition of conditional entropy, H(x₀ | x). How fast it falls can be measured
without any assumption on the data: the mutual information of x₀ and x = αx₀ + σε grows with the signal-to-noise ratio
by half the mean squared error of the best reconstruction (Guo, Shamai and Verdú, 2005). With λ half the logarithm of
that ratio,

    -dH(x₀ | x)/dλ = e^(2λ) Var(x₀ | x) = Var(ε | x)    nats an element

So the variance that is left of the noise, given x, *is* the speed at which the image is decided. The variance that is
left of the data is (σ/α)² times that. The papers claim that predicting the data leaves less variance than predicting
the noise: that holds for every model where the signal is larger than the noise, σ < α, and not where it is smaller.

A nat is the unit of entropy in natural logarithms, 1.44 bits. In the tables "nats left" are those between the level and
the last one, and the dots are EVODiff's own levels for 8 calls.
The variance is the mean squared error of the network's reconstruction, which is more than the conditional variance
where the network errs; with guidance it is that of the guided answer on guided samples, which is no conditional mean.
"""
READING = """## What it says of a grid

Entropy falls fastest among clean levels, where the last bits of every pixel are settled one by one. A grid in
proportion to it would spend most calls there. `focused` makes few calls there: the answer hardly changes any more, so
that a long step loses little. Calls are worth most where entropy falls *and* answers change. How much of both there is
differs between models; `fewstep tune` measures it by what counts, the error of the run ([tune.md](tune.md)).
"""


STEPS = """## What each step leaves

The papers judge a step by the variance of its transition, and by the error of what the model then makes of the state.
Both are measured here against the converged path from the same noise, in runs of {calls} calls at the default's nodes:
*added* is the mean square by which the state before the call differs from the path, in units of the image; *off* is the
mean square by which the answer there differs from the image that the path ends at. The answer at the converged path
itself ("converged: off") is what the others are held against: no state should be expected to give a better one.
`fewstep analyze --nfe {calls}` measures it for your model.

The second table has what the papers' rule balances its correction by, η and ζ, over samples: as printed (*paper*) and
as in the authors' code (*published*), which halves η and divides by ζ. "At most" ends the interval from 1 that
Proposition 3.2 gives the ratio of a step to the difference that corrects it; the rule's is 1 and lies in all of them.
"""
SINGLE = """## RE beside FD

The papers' single steps of two calls: FD, the finite difference, and RE, at the lower and the upper ends of the
intervals that they recommend for γ and for the ratio. RMSE to the converged image; `fewstep analyze --single-steps`.
"""
SEEN = """## What was seen

- Without guidance the default's correction takes back nine tenths of what its first step added, and later steps add
  little: before the last call a sixth of 2M's and a sixtieth of DDIM's. DDIM adds in every step.
- At guidance 7.5 nearly all of the error is the first step's, from pure noise, by every solver; no later step takes it
  back. There a shorter first step pays, which is what `fewstep tune` finds ([tune.md](tune.md)).
- The printed ζ is 1 without guidance, where it has no say, and falls with guidance. The code's is 0.46 to 0.7 and
  hardly differs between samples.
- RE at the upper ends of the recommended intervals leaves less than FD without guidance, in every number of calls, as
  the papers say. At guidance 4 both are the same, at 7.5 it leaves more. At the lower ends RE leaves several times as
  much as FD: a consistent error of first order, which no interval of the papers rules out.
"""


def main(out: Out = None) -> None:
    """Measure where the packaged network decides, and write docs/entropy.md."""
    write(out, lambda: page(packaged()))


if __name__ == "__main__":
    typer.run(main)
