"""The table of docs/diffusers.md, what people gain who move from diffusers: python -m benchmarks.beside_diffusers

Its schedulers run as in a pipeline, on an exact network of Gaussian data, and ours beside them, with the same config.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.utils import logging
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.table import SOLVERS

STD = 0.5
SAMPLES = 20_000
ENDS = (0.00085, 0.012)  # of beta, of Stable Diffusion
SD = {"beta_start": ENDS[0], "beta_end": ENDS[1], "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
LOWEST = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}


class Case(NamedTuple):
    what: str
    name: str
    config: Mapping[str, Any]
    solver: str
    steps: tuple[int, ...]


CASES = (
    Case("UniPC bh1, its levels", "UniPCMultistepScheduler", {**SD, "solver_type": "bh1"}, "unipc-2-bh1", (10, 20)),
    Case(
        "DPM-Solver++ 3M, Karras' levels to sigma_min", "DPMSolverMultistepScheduler",
        {**SD, **LOWEST, "solver_order": 3}, "dpmpp-3m", (10, 20),
    ),
    Case("DEIS on a flow", "DEISMultistepScheduler", FLOW, "deis-2", (10, 20)),
    Case(
        "PNDM on v", "PNDMScheduler", {**SD, "prediction_type": "v_prediction", "skip_prk_steps": True}, "ipndm-4",
        (20, 40),
    ),
    Case(
        "noise on the way, on a flow", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True},
        "sde-dpmpp-2m", (20, 200),
    ),
)  # fmt: skip


def run(scheduler: Any, steps: int, stochastic: bool) -> str:
    """The spread that comes out over the data's, and the RMS of the error to the exact solution if there is one."""
    scheduler.set_timesteps(steps)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    flow = kind == "flow_prediction"
    draw = torch.Generator().manual_seed(0)
    x = noise = torch.randn(1, 1, SAMPLES, generator=draw, dtype=torch.float64)
    first = None
    for t in scheduler.timesteps:
        alpha, sigma = _law(scheduler, float(t), flow)
        variance = (alpha * STD) ** 2 + sigma**2
        if first is None:
            first = variance**0.5
            x = x * first
        denoised = alpha * STD**2 / variance * x
        eps = (x - alpha * denoised) / sigma
        v = alpha * eps - sigma * denoised
        output = {"epsilon": eps, "v_prediction": v, "flow_prediction": eps - denoised}[kind]
        x = _stepped(scheduler, output, t, x, draw)
    spread = f"{float(x.std()) / STD:.2f}"
    return spread if stochastic else f"{spread}, {float((x - noise * STD).square().mean().sqrt()):.2g}"


def _law(scheduler: Any, t: float, flow: bool) -> tuple[float, float]:
    """alpha and sigma of what the network is told."""
    if flow:
        return 1 - t / 1000, t / 1000
    betas = torch.linspace(ENDS[0] ** 0.5, ENDS[1] ** 0.5, 1000, dtype=torch.float64) ** 2
    logs = (1 - betas).log().cumsum(0)
    low = min(int(t), 998)
    log = float(logs[low] + (logs[low + 1] - logs[low]) * (t - low))
    return math.exp(log / 2), math.sqrt(-math.expm1(log))


def _stepped(scheduler: Any, output: Tensor, t: Tensor, x: Tensor, draw: torch.Generator) -> Tensor:
    takes = scheduler.step.__code__.co_varnames
    extra = {"generator": draw} if "generator" in takes else {}
    stepped: Tensor = scheduler.step(output, t, x, return_dict=False, **extra)[0]
    return stepped


def _end(scheduler: Any) -> str:
    """The noise that a run stops at; PNDM's goes to the table's first entry, and has no sigmas."""
    return f"{float(scheduler.sigmas[-1]):.2g}" if hasattr(scheduler, "sigmas") else "0.029"


def page() -> str:
    rows = []
    for case in CASES:
        theirs = getattr(diffusers, case.name)(**case.config)
        config = {**theirs.config, "_class_name": case.name, "stochastic_sampling": False}
        same = EVODiffScheduler.from_config(config, solver=case.solver)
        default = EVODiffScheduler.from_config(config, use_focused_sigmas=True)
        stochastic = SOLVERS[case.solver].stochastic
        for steps in case.steps:
            cells = [
                run(theirs, steps, stochastic),
                _end(theirs),
                run(same, steps, stochastic),
                run(default, steps, False),
            ]
            rows.append([case.what, str(steps), *cells])
    head = [
        "",
        "steps",
        f"diffusers {diffusers.__version__}",
        "it stops at",
        "ours, the same method",
        "EVODiff, focused",
    ]
    return table(head, rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    print(page(), end="")
