"""The page docs/entropy.md: where the packaged network decides, by `fewstep.analyze`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import typer

from fewstep.adapters import EDMModel
from fewstep.analysis import Analysis, analyze
from fewstep.bench.markdown import table
from fewstep.grid import focused
from fewstep.prediction import Denoiser
from fewstep.schedule import Node

from .command import Out, packaged, say, write

__all__ = ["measured", "page"]

SEEDS, LEVELS = 16, 24
GUIDANCES = (1.0, 4.0, 7.5)
CALLS = 8


def measured(model: EDMModel, guidance: float) -> Analysis:
    """Of all classes, in turn; without classes where there is no guidance."""
    say(f"guidance {guidance:g} ...")

    def of(seeds: Sequence[int]) -> Denoiser:
        return model if guidance == 1 else model.conditioned([seed % len(model.classes) for seed in seeds], guidance)

    return analyze(of, model.schedule, shape=model.shape, seeds=range(SEEDS), levels=LEVELS, by_seed=True)


def page(model: EDMModel, guidances: Sequence[float] = GUIDANCES) -> str:
    """The page as Markdown."""
    found = {guidance: measured(model, guidance) for guidance in guidances}
    nodes = focused(model.schedule, CALLS)
    parts = [INTRODUCTION.format(seeds=SEEDS)]
    for guidance, each in found.items():
        parts += [f"## {'No guidance' if guidance == 1 else f'Guidance {guidance:g}'}\n", _table(each, nodes), ""]
        nsr, peak = (float(np.exp(-lam)) for lam in (each.decided, each.lams[each.rate.argmax()]))
        parts += [f"Half is decided by σ/α = {nsr:.3g}; it falls fastest at {peak:.3g}.\n"]
    return "\n".join([*parts, READING])


def _table(found: Analysis, nodes: Sequence[Node]) -> str:
    calls = np.array([node.lam for node in nodes])
    step = float(found.lams[1] - found.lams[0])
    columns = np.exp(-found.lams), found.variance, found.rate, found.left
    dots = ("•" * int((np.abs(calls - lam) <= step / 2).sum()) for lam in found.lams)
    rows = [[*map("{:.3g}".format, row), dot] for *row, dot in zip(*columns, dots, strict=True)]
    return table(["σ/α", "Var(x₀ given x)", "Var(ε given x) = nats a unit", "nats left", f"{CALLS} calls"], rows)


INTRODUCTION = """# Where a model decides

For people who ask where in a run calls are worth making. You get the speed at which an image is decided, by noise
level, for the packaged network; a command draws it for yours.

`fewstep analyze` measures where the conditional entropy of what a model makes falls. This page is that of the packaged
network, of {seeds} samples of its own, written by `python -m benchmarks.entropy`. `fewstep analyze --out entropy.png`
draws it for yours.

EVODiff's papers look at a step as a transition of conditional entropy, H(x₀ | x). How fast it falls can be measured
without any assumption on the data: the mutual information of x₀ and x = αx₀ + σε grows with the signal-to-noise ratio
by half the mean squared error of the best reconstruction (Guo, Shamai and Verdú, 2005). With λ half the logarithm of
that ratio,

    -dH(x₀ | x)/dλ = e^(2λ) Var(x₀ | x) = Var(ε | x)    nats an element

So the variance that noise prediction has left, given x, *is* the speed at which the image is decided, and that of data
prediction is it times (σ/α)². The papers' claim that data prediction has the less conditional variance therefore holds
where the signal is larger than the noise, σ < α, for every model, and is the other way round where it is smaller.

In the tables "nats left" are those between the level and the last, and the dots are EVODiff's own levels for 8 calls.
The variance is the mean squared error of the network's reconstruction, which is more than the conditional variance
where the network errs; with guidance it is that of the guided answer on guided samples, which is no conditional mean.
"""
READING = """## What it says of a grid

Entropy falls fastest among clean levels, where the last bits of every pixel are settled one by one, and a grid in
proportion to it would spend most calls there. `focused` has few of them: the answer hardly changes from there on, so
that a long step loses little. It is where entropy falls *and* answers change that calls are worth most, and how much of
both there is differs between models: `fewstep tune` measures it by what it is wanted for, the error of the run.
[tune.md](tune.md)
"""


def main(out: Out = None) -> None:
    """Measure where the packaged network decides, and write docs/entropy.md."""
    write(out, lambda: page(packaged()))


if __name__ == "__main__":
    typer.run(main)
