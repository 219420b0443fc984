"""The page docs/evodiff.md: every iteration of the EVODiff papers as a constructor call, and what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.compare import CONVERGED_NFE, compare, converged
from fewstep.bench.markdown import table
from fewstep.grid import log_snr
from fewstep.prediction import Denoiser
from fewstep.sampling import unit_noise
from fewstep.schedule import EDM, Schedule
from fewstep.solvers import DDIM, EVODiff, REMulti, RESingle, Solver
from fewstep.table import call

from .command import Out, packaged, say, write
from .orders import REFERENCE_STEPS, reference
from .problems import GaussianMixture, gaussian

__all__ = ["ITERATIONS", "PRINTED", "Iteration", "page", "rmses"]

BUDGETS = (5, 8, 10, 15)
SAMPLES = 64
IMAGES = 32
SEED = 1000
PROBLEMS: Mapping[str, GaussianMixture] = {
    "Gaussian": gaussian(),
    "mixture of 3": gaussian(components=3, seed=5),
}
GRID = log_snr(to_zero=False)


class Iteration(NamedTuple):
    """One iteration of the papers: its equations in the ICLR submission and in the NeurIPS text."""

    name: str
    iclr: str
    neurips: str
    solver: Solver


ITERATIONS = (
    Iteration("first order", "(3.5)", "(6)", DDIM()),
    Iteration("FD single step, noise", "(3.7)", "(7)", RESingle(gamma=0.0)),
    Iteration("FD single step, noise, s_i = t", "(3.7)", "(7)", RESingle(gamma=0.0, ratio="low")),
    Iteration("RE single step, noise, least γ", "(4.1)", "–", RESingle()),
    Iteration("RE single step, noise, greatest γ", "(4.1)", "–", RESingle(gamma="high")),
    Iteration("FD single step, data", "(3.7)", "(7)", RESingle("data", gamma=0.0)),
    Iteration("RE single step, data, least γ", "(4.1)", "–", RESingle("data")),
    Iteration("RE single step, data, greatest γ", "(4.1)", "–", RESingle("data", gamma="high")),
    Iteration("FD multi step, as printed", "(4.4)", "(13)", REMulti(zeta=1.0)),
    Iteration("RE multi step, explicit, prior ζ", "(4.5), (4.7)", "(14), (15)", REMulti()),
    Iteration("RE multi step, implicit, prior ζ", "(4.6), (4.7)", "(15)", REMulti(eta=1.0)),
    Iteration("balanced gradient, η = ½, prior ζ", "(4.8)", "(16)", REMulti(eta=0.5)),
    Iteration("FD multi step, log-SNR length", "(4.4)", "(13)", REMulti(zeta=1.0, length="lam")),
    Iteration("RE explicit, prior ζ, log-SNR length", "(4.7)", "(15)", REMulti(length="lam")),
    Iteration("RE explicit, minimal ζ, log-SNR length", "(4.5)", "(14)", REMulti(zeta="minimal", length="lam")),
    Iteration("RE implicit, minimal ζ, log-SNR length", "(4.6)", "(15)", REMulti(1.0, "minimal", "lam")),
    Iteration("balanced gradient, η = ½, ζ = 1", "(4.8)", "(16)", REMulti(0.5, 1.0, "lam")),
    Iteration("refined ζ only, explicit", "(4.7), (4.16)", "(15), (22)", EVODiff("paper", eta=0.0)),
    Iteration("refined ζ only, implicit", "(4.7), (4.16)", "(15), (22)", EVODiff("paper", eta=1.0)),
    Iteration("refined ζ only, η = ½", "(4.8), (4.16)", "(16), (22)", EVODiff("paper", eta=0.5)),
    Iteration("refined η only", "(4.8), (4.19)", "(16), (24)", EVODiff("paper", zeta=1.0)),
    Iteration("both refined: Algorithm 1", "Algorithm 1", "Algorithm 1", EVODiff("paper")),
    Iteration("both refined, μ = 0", "Algorithm 1", "(25)", EVODiff("paper", shift=0.0)),
    Iteration("the authors' code", "–", "–", EVODiff("published")),
)

# Row of a printed table, its equation, the solver that we read it as.
PRINTED = (
    ("NeurIPS, Table 3, CIFAR-10: Baseline", "(13) over steps in log-SNR", REMulti(zeta=1.0, length="lam")),
    ("NeurIPS, Table 3, CIFAR-10: RE-based in Eq. (15)", "(15), prior ζ", REMulti()),
    ("NeurIPS, Table 3, CIFAR-10: EVODiff", "Algorithm 1, as coded", EVODiff("published")),
    ("NeurIPS, Table 3, ImageNet-256: Baseline", "(13) over steps in log-SNR", REMulti(zeta=1.0, length="lam")),
    ("NeurIPS, Table 3, ImageNet-256: Eq. (15) with balanced …", "(15), ζ of (22)", EVODiff("paper", eta=0.0)),
    ("NeurIPS, Table 3, ImageNet-256: Eq. (16) with refined …", "(16), η of (24), ζ = 1", EVODiff("paper", zeta=1.0)),
    ("NeurIPS, Table 3, ImageNet-256: EVODiff (…)", "Algorithm 1, μ = ½", EVODiff("paper")),
    ("NeurIPS, Table 3, ImageNet-256: EVODiff (…)", "Algorithm 1, another μ", EVODiff("paper", shift=0.0)),
    ("ICLR, Figures 2 and 3: FD", "(3.7), noise", RESingle(gamma=0.0)),
    ("ICLR, Figures 2 and 3: RE; Table 1, Discrete, 84 calls", "(4.1), noise", RESingle()),
    ("ICLR, Table 2: RE-based", "Algorithm 1, as coded", EVODiff("published")),
)


def page(model: EDMModel, say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    columns: dict[str, list[list[float]]] = {}
    for name, problem in PROBLEMS.items():
        say(f"ablations on a {name} ...")
        columns[name] = rmses(*exact_problem(problem))
    say("ablations on the packaged model ...")
    denoiser = model.conditioned([i % len(model.classes) for i in range(IMAGES)])
    noise = unit_noise(range(SEED, SEED + IMAGES), model.shape)
    columns["model"] = rmses(denoiser, noise, model.schedule, converged(denoiser, noise, model.schedule))
    iterations = [[i.name, i.iclr, i.neurips, f"`{call(i.solver)}`"] for i in ITERATIONS]
    printed = [[row, reading, f"`{call(solver)}`"] for row, reading, solver in PRINTED]
    measured = [
        [iteration.name, *(f"{value:.3f}" for column in columns.values() for value in column[row])]
        for row, iteration in enumerate(ITERATIONS)
    ]
    head = ["iteration", *(f"{name}: {nfe}" for name in columns for nfe in BUDGETS)]
    return "\n".join(
        [
            INTRODUCTION,
            table(["iteration", "ICLR", "NeurIPS", "call"], iterations),
            READINGS,
            table(["row of the print", "equation", "call"], printed),
            MEASURED.format(samples=SAMPLES, images=IMAGES, steps=f"{REFERENCE_STEPS:,}", converged=CONVERGED_NFE),
            table(head, measured),
            READING,
        ]
    )


def exact_problem(problem: GaussianMixture) -> tuple[Denoiser, Tensor, Schedule, Tensor]:
    """A denoiser, unit noise, its schedule, and where the ODE carries it."""
    schedule = EDM()
    noise = torch.randn(SAMPLES, *problem.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    s, *_, t = GRID(schedule, 1)
    return problem.denoiser(schedule), noise, schedule, reference(problem, schedule, noise * s.sigma, s, t)


def rmses(denoiser: Denoiser, noise: Tensor, schedule: Schedule, exact: Tensor) -> list[list[float]]:
    """One row for each of `ITERATIONS`, one number for each of `BUDGETS`."""
    solvers = {str(row): iteration.solver for row, iteration in enumerate(ITERATIONS)}
    results = [result.rmse for result in compare(denoiser, noise, schedule, solvers, BUDGETS, exact, GRID)]
    return [results[i : i + len(BUDGETS)] for i in range(0, len(results), len(BUDGETS))]


INTRODUCTION = """# The EVODiff papers, equation by equation

For people who read the EVODiff papers and want each equation as a call, or a table reproduced. You get the equations,
what the print leaves open, and what each iteration is worth. To make images, take the default instead.

Two texts describe the method: "Improving Denoising Diffusion with Efficient Conditional Entropy Reduction" (ICLR 2025
submission; below "ICLR") and "EVODiff: Entropy-aware Variance Optimized Diffusion Inference" (NeurIPS 2025;
"NeurIPS"). Each of their iterations is one constructor call here. This page is written by `make ablation`.

## Iterations

FD takes the derivative of the prediction from a finite difference; RE ("reduced entropy") gives that difference, or
the newer prediction in it, another weight. A single step costs two calls, a multi step one.
"""
READINGS = """
What the print leaves open, and how it is read here; the files of the solvers say more.

- **The point s_i of a single step, and γ.** Propositions 3.2 and 4.1 recommend intervals, not numbers. `ratio` and
  `gamma` take a number or an end of the interval, "low" or "high". The upper end of the ratio h/ĥ depends on s_i, and
  so on the ratio; "high" is the ratio that is its own upper end, solved when the run is planned.
- **ζ as a factor.** (4.5) mixes d(l) = ζ d₀ + (1−ζ) d₁ into a difference, which then has the factor 1−ζ; (4.6) has the
  factor ζ; (4.7) writes ζ for both. `zeta` is the factor of (4.7).
- **The prior ζ.** Proposition 4.2 (NeurIPS, Remark 4.3) calls ζ = σ_s²/(σ_s² + σ_p²) the weight of least variance of
  ζ d(s) + (1−ζ) d(p) when Var d ∝ σ². It weights each prediction by its own variance. The least variance has 1−ζ:
  `zeta="minimal"`. "prior" is the print's.
- **The length of a past difference.** (4.4) divides by the past step in κ = α/σ; line 4 of Algorithm 1 suggests the
  ratio of steps in log-SNR, which the authors' code uses: `length="kappa"` or `"lam"`. They agree for short steps. For
  long ones a step in κ is e^h times the one before it, h its length in log-SNR, and the difference is extrapolated so
  much further. FD with `length="lam"` is DPM-Solver++(2M); with "kappa" it is the Adams-Bashforth rule in κ.
- **η.** `eta` is the share of the coming difference in (4.8). Algorithm 1 uses η/2 for it, η a sigmoid of at least ½.
- **Two numbers ζ.** Line 4 of Algorithm 1 sets ζ = r h, which divides: it is the length of the past difference. Line 8
  sets a ζ that multiplies. `EVODiff(zeta=...)` fixes the second.

Convergence. FD is of order 2, as are Algorithm 1 and its refined parts, whose ζ tends to 1. RE with the recommended γ,
or with either prior ζ, is of order 1, although Theorems 4.1 and 4.2 claim 2: γ and ζ stay near ½ for short steps.
Measured in [numerics.md](numerics.md).

## Rows of the printed tables

This is written from a text of the NeurIPS paper without its formulas: the symbols after "balanced", after "refined"
and in "EVODiff (…)" of its Table 3 are missing. We read the first as ζ, the only number of (15); the second as η, which
(16) adds; and the last two rows as two shifts μ, which the paper says it ablates. FIDs of these tables are not
reproduced here.
"""
MEASURED = """
The ICLR tables for CIFAR-10 (Table 3, and "Continuous" and "Cond. EDM" of Table 1) put RE on top of DPM-Solver-v3: see
`REMultiV3`.

## Ablation

RMSE per pixel to the converged solution, from the same noise, on a grid uniform in log-SNR that ends at σ_min: on a
Gaussian in 32 dimensions (closed form) and an equal mixture of three ({steps} steps of UniPC-3), {samples} samples, and
on the packaged model, {images} images with classes, no guidance ({converged} calls of UniPC-3). EDM's noise levels, 80
to 0.002. Single steps spend an odd budget with a last step of first order.
"""
READING = """
How to read it. In single steps of the noise RE with the least γ is better than FD at every budget, as the papers say.
In the data it hardly ever is: γ adds to an extrapolation that is long enough. With s_i = t, FD is Heun's method, which
suffers on this grid.

The multi step FD as printed, over lengths in κ, extrapolates too far to be used at these budgets. The prior ζ falls as
steps in κ grow and makes up for it, so that RE is far better than that FD; but it ends little better than the first
order. Over lengths in log-SNR FD is good as it is, and the prior ζ takes most of that away. The minimal ζ does not: at
8 and 10 calls it is better than ζ = 1 on the exact problems, and worse on the model.

The refined ζ is 1 but for the longest steps, so that "refined ζ only" differs little from ζ = 1, and so does another μ.
What the refined rows gain over FD is the coming difference, the more the larger its share: implicit, then half, then
Algorithm 1's η/2 between ¼ and ½; on the model from 10 calls on, and with a small loss at 5 and 8. The authors' code is
another rule, behind Algorithm 1 everywhere here, least at 5 calls of the model.
"""


def main(out: Out = None) -> None:
    """Measure every iteration of the EVODiff papers, on exact problems and on a model."""
    write(out, lambda: page(packaged(), say))


if __name__ == "__main__":
    typer.run(main)
