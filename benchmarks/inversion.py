"""The page docs/inversion.md, which solvers invert: python -m benchmarks.inversion > docs/inversion.md

From data to noise between the ends of Stable Diffusion's levels, against the exact noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fewstep as fs
from fewstep.bench.markdown import table
from fewstep.table import SOLVERS

LOW, HIGH = 0.0292, 14.61  # sigma / alpha of Stable Diffusion's table
FLIPPED = 1e-4
STEPS = (10, 20, 40)
SPREAD = (0.2, 2.0)  # of Gaussian data, over the components
MODES, WIDTH = 1.0, 0.2  # of a mixture: modes at -1 and 1, between which noise bends the paths
SAMPLES = 64
FINE = 4000  # steps of Heun's method to the exact noise: exact to five digits beside these errors

LOST = 0.5  # of the noise in the fewest steps from the lowest level

INTRODUCTION = f"""# Inversion

For people who edit an image by way of its noise. You get which solver finds that noise best, in how many steps, and
which must not be used.

`python -m benchmarks.inversion > docs/inversion.md` writes this page within a minute on two cores.

Which noise leads to given data? `integrate` over rising levels, and ComfyUI's FlipSigmas, ask so. The table has the
error to the exact noise as a share of it, in {", ".join(map(str, STEPS))} steps of Karras' levels of Stable Diffusion's
range, of independent Gaussians of standard deviations from {SPREAD[0]:g} to {SPREAD[1]:g} (G) and of two modes of width
{WIDTH} at -1 and 1 (M). The levels begin at the model's lowest, {LOW}, or, as FlipSigmas has them, at {FLIPPED:g}, from
where the first step is longer than all others together. Solvers are sorted by the mean, of logarithms, of what they
leave in {STEPS[1]} steps; those of several calls a step cost as many times more.

**Take `unipc-3-noise`**: of one call a step it has the least error in {STEPS[1]} steps from either start. EVODiff and
stochastic solvers refuse rising levels. No run starts at σ = 0: make the grid with `to_zero=False`.
`fewstep.integrations.kdiffusion`, and with it the nodes for ComfyUI, refuse a long first step for the solvers that it
takes far off: UniPC in data, but for its variant bh1, and `re-single-data`. Not to be used
for inversion at all, as they lose more than half of the noise in {STEPS[0]} steps from the lowest level:
{{lost}}.

"""

Denoiser = Callable[[Tensor, float], Tensor]


def page() -> str:
    draw = torch.Generator().manual_seed(0)
    unit = torch.randn(SAMPLES, SAMPLES, dtype=torch.float64, generator=draw)
    sides = torch.rand(unit.shape, generator=draw, dtype=unit.dtype).sub(0.5).sign()
    data = ((gaussian, unit * _variances().sqrt()), (mixture, MODES * sides + WIDTH * unit))
    exact = {(start, law): truth(law, x, start) for start in (LOW, FLIPPED) for law, x in data}
    rows, lost = [], []
    for name, entry in SOLVERS.items():
        if entry.stochastic or hasattr(entry.solver, "statistics") or name.startswith("evodiff"):
            continue
        cells = [
            [error(entry.solver, law, x, start, steps, exact[start, law]) for steps in STEPS]
            for start in (LOW, FLIPPED)
            for law, x in data
        ]
        if max(cells[0][0], cells[1][0]) > LOST:
            lost.append(f"`{name}`")
        order = sum(math.log(cell[1]) for cell in cells)
        shown = [" ".join(f"{value:.2g}" for value in cell) for cell in cells]
        rows.append((order, [f"`{name}`", str(entry.solver.calls_per_step), *shown]))
    head = ["solver", "calls a step", *(f"from {start:g}, {law}" for start in (LOW, FLIPPED) for law in "GM")]
    return INTRODUCTION.format(lost=", ".join(lost)) + table(head, [row for _, row in sorted(rows)])


def _variances() -> Tensor:
    low, high = map(math.log10, SPREAD)
    return torch.logspace(low, high, SAMPLES, dtype=torch.float64).square()


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return x * _variances() / (_variances() + sigma**2)


def mixture(x: Tensor, sigma: float) -> Tensor:
    variance = WIDTH**2 + sigma**2
    mean = MODES * torch.tanh(x * MODES / variance)
    return mean + (x - mean) * WIDTH**2 / variance


def rising(start: float, steps: int) -> Sequence[fs.Node]:
    """Karras' levels upwards, the lowest of them at `start`."""
    levels = [node.sigma for node in fs.karras(fs.EDM(LOW, HIGH), steps, to_zero=False)][::-1]
    return fs.from_times(fs.EDM(LOW, HIGH), [start, *levels[1:]])


def truth(denoiser: Denoiser, x: Tensor, start: float) -> Tensor:
    nodes = fs.log_snr(fs.EDM(start, HIGH), FINE, to_zero=False)[::-1]
    return fs.integrate(denoiser, x, nodes, solver=fs.Heun(), schedule=fs.EDM(start, HIGH))


def error(solver: fs.Solver, denoiser: Denoiser, x: Tensor, start: float, steps: int, exact: Tensor) -> float:
    """RMS, as a share of that of the exact noise."""
    got = fs.integrate(denoiser, x, rising(start, steps), solver=solver, schedule=fs.EDM(start, HIGH))
    return float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())


if __name__ == "__main__":
    print(page(), end="")
