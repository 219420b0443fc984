"""The page docs/levels.md: what noise levels are worth to EVODiffScheduler, on the schedules of well-known models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.compare import CONVERGED_NFE, converged
from fewstep.bench.markdown import table
from fewstep.bench.metrics import rmse
from fewstep.grid import log_snr
from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.prediction import from_denoised
from fewstep.sampling import unit_noise
from fewstep.schedule import Discrete, Flow, Node, Schedule

from .command import Out, packaged, say, write
from .problems.network import Reclocked

__all__ = ["LEVELS", "MODELS", "SOLVERS", "page", "rmses"]

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# What `from_config` makes of the schedulers of these models' pipelines. Stable Diffusion 1.5's file names no spacing.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Stable Diffusion 1.5": {**SD, "steps_offset": 1},
    "SDXL": {**SD, "timestep_spacing": "leading", "steps_offset": 1},
    "SDXL, trailing": {**SD, "timestep_spacing": "trailing"},
    "Stable Diffusion 3": {**FLOW, "flow_shift": 3.0},
}
LEVELS: Mapping[str, Mapping[str, bool]] = {
    "the config's": {},
    "Karras'": {"use_karras_sigmas": True},
    "even log-SNR": {"use_lu_lambdas": True},
    "focused": {"use_focused_sigmas": True},
}
SOLVERS = ("evodiff", "unipc-2", "dpmpp-2m")
BUDGETS = (5, 8, 10, 15, 20)
IMAGES = 16
GUIDANCE = 2.0


def page(model: EDMModel, say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    parts = [INTRODUCTION.format(images=IMAGES, guidance=GUIDANCE, converged=CONVERGED_NFE)]
    for name, config in MODELS.items():
        say(f"{name} ...")
        found = rmses(model, config)
        least = [min(errors) for errors in zip(*found.values(), strict=True)]
        rows = [[*key, *map(_shown, errors, least)] for key, errors in found.items()]
        parts += [f"## {name}\n", table(["levels", "solver", *map(str, BUDGETS)], rows)]
    return "\n".join([*parts, READING])


def rmses(model: EDMModel, config: Mapping[str, Any]) -> dict[tuple[str, str], list[float]]:
    """By levels and solver, one for each budget."""
    denoiser = model.conditioned([i % len(model.classes) for i in range(IMAGES)], GUIDANCE)
    law = Reclocked(denoiser, model.schedule)
    noise = unit_noise(range(IMAGES), model.shape)
    schedule = _schedule(EVODiffScheduler(**config))
    exact = converged(lambda x, t: law.denoised(x, schedule.node(t)), noise, schedule, grid=log_snr(to_zero=True))

    def error(solver: str, levels: Mapping[str, bool], nfe: int) -> float:
        images = _pulled(EVODiffScheduler(solver=solver, **config, **levels), law, noise, nfe)
        return rmse(images, exact)

    return {
        (name, solver): [error(solver, levels, nfe) for nfe in BUDGETS]
        for name, levels in LEVELS.items()
        for solver in SOLVERS
    }


def _shown(error: float, least: float) -> str:
    return f"**{error:.4f}**" if error == least else f"{error:.4f}"


def _schedule(scheduler: Any) -> Schedule:
    return Flow() if scheduler.config.use_flow_sigmas else Discrete(scheduler.alphas_cumprod.tolist())


def _pulled(scheduler: Any, law: Reclocked, x: Tensor, nfe: int) -> Tensor:
    """The loop of a pipeline, whose network knows no more than the scheduler's `sigmas`."""
    flow = scheduler.config.use_flow_sigmas
    scheduler.set_timesteps(nfe)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        alpha = 1 - sigma if flow else (1 + sigma**2) ** -0.5
        node = Node(float(t), alpha, sigma if flow else sigma * alpha)
        output = from_denoised(scheduler.config.prediction_type, law.denoised(x, node), x, node)
        x = scheduler.step(output, t, x).prev_sample
    return x


INTRODUCTION = """# Noise levels in diffusers' pipelines

For people with a pipeline of diffusers who must pick its noise levels. You get what four kinds of levels are worth on
three schedules, by the number of calls; [choose.md](choose.md) has the answer in a picture.

What a scheduler's noise levels are worth, beside its solver. `EVODiffScheduler` is configured as the pipelines of these
models configure theirs, and pulls the packaged network ({images} images of all classes at guidance {guidance:g}) as
if it were theirs: under the noise of their schedule, predicting what they predict. Figures are RMSE per pixel to the
converged solution from the same noise ({converged} steps of UniPC-3 in log-SNR over the whole schedule, to σ = 0), by
calls of the network. The least of each budget is in bold. Written by `make levels`.

The network is small, and of pixels. [latent.md](latent.md) has a small latent model; **what this says of large ones is
not known.**
"""
READING = """
The levels that these configs ask for are even in time and end with a long step to σ = 0, which decides the error of
every solver; EVODiff foretells where it leads, which takes up to a third of the error away. SDXL's, "leading",
begin too clean besides. On the range of these betas, σ = 14.6 to 0.03, Karras' levels and EVODiff's own are the best of
these, and about alike: its own have a little less error at 5, as much at 8 and a tenth more at 10 and 15. On flows,
which begin and end further out, its own are the best. They stop at σ = 0.003, whose noise nobody sees (of shift 3), and
spare the call from there to 0: two fifths less error in 5 calls, a quarter less in 8. In 20 that noise is the error.
"""


def main(out: Out = None) -> None:
    """Measure what noise levels are worth to the scheduler for diffusers, on well-known models' schedules."""
    write(out, lambda: page(packaged(), say))


if __name__ == "__main__":
    typer.run(main)
