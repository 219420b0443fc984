"""Automatic1111's web UI, Forge and reForge: samplers and schedules in their dropdowns.

Their samplers are functions of k-diffusion, called with a guided model whose `inner_model.sigmas` are the model's
levels: a flow's end at 1, the others' far above. They run `scripts/` of a clone of the repository in `extensions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..grid import focused
from ..table import SOLVERS
from .comfy import picked_grid
from .kdiffusion import ROUNDING, get_sigmas, sampler

__all__ = ["register", "sample", "sigmas_for"]

SAMPLERS = {"EVODiff": "evodiff", "UniPC exact": "unipc-2", "DPM++ 2M exact": "dpmpp-2m"}
SCHEDULERS = {"fewstep": "Fewstep", "fewstep_focused": "Fewstep focused"}


def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    solver: str = "evodiff",
) -> Tensor:
    """What their samplers call: without the `eta` that they would give to every function that has one."""
    flow = _is_flow(model.inner_model)
    chosen = sampler(SOLVERS[solver].suited(flow), flow=flow, sigma_min=float(model.inner_model.sigmas[0]))
    return chosen(model, x, sigmas, extra_args, callback, disable)


def sigmas_for(
    n: int,
    sigma_min: float,
    sigma_max: float,
    inner_model: Any,
    device: str | torch.device = "cpu",
    *,
    name: str = "fewstep",
) -> Tensor:
    """(n + 1,), falling to 0 or to where noise is not seen: those that suit the model, or `focused`.

    No step is asked for where an image is to stay as it is: by a denoising strength of 0.
    """
    flow = _is_flow(inner_model)
    if n == 0:
        return torch.zeros(1, device=device)
    if flow and sigma_max > 1 + ROUNDING:
        raise ValueError(
            f"sigma_max={float(sigma_max):g} is asked for by the settings, but this model is a flow, whose noise ends "
            "at 1: set 'sigma max' to 0 there, and leave 'Use old karras scheduler sigmas' off"
        )
    grid = focused if name == "fewstep_focused" else picked_grid(float(sigma_max), flow)
    return get_sigmas(grid, n, float(sigma_min), float(sigma_max), device, flow=flow)


def register() -> None:
    """Adds to their lists, in place and once."""
    from modules import sd_samplers, sd_samplers_common, sd_samplers_kdiffusion

    try:
        from modules import sd_schedulers
    except ImportError as error:
        raise ImportError(
            "fewstep needs a web UI that has schedules in a list of their own: Automatic1111 1.9 or newer, Forge or "
            "reForge of July 2024 or newer"
        ) from error

    for label, solver in SAMPLERS.items():
        if label not in sd_samplers.all_samplers_map:
            make = partial(sd_samplers_kdiffusion.KDiffusionSampler, partial(sample, solver=solver))
            data = sd_samplers_common.SamplerData(label, make, [solver], {"scheduler": "fewstep"})
            sd_samplers.all_samplers.append(data)
            sd_samplers.all_samplers_map[label] = data
    sd_samplers.set_samplers()
    for name, label in SCHEDULERS.items():
        if name not in sd_schedulers.schedulers_map:
            made = sd_schedulers.Scheduler(name, label, partial(sigmas_for, name=name), need_inner_model=True)
            sd_schedulers.schedulers.append(made)
            sd_schedulers.schedulers_map |= {name: made, label: made}


def _is_flow(inner_model: Any) -> bool:
    return float(inner_model.sigmas[-1]) <= 1 + ROUNDING
