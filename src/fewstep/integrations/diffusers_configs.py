"""What the config of a scheduler of diffusers says of its model, in the terms of ours. No tensors, no noise levels.

A config names the class that wrote it, or shows it by its keys, and leaves out what that class has by default. Some
cannot be followed: those of models that are distilled to steps of their own, or that do not say what levels they know.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np

from ..solvers.core.base import choice

__all__ = ["GRIDS", "check_used", "check_values", "parameters", "translated"]

BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
# Where the source left these at its defaults, they are the model's all the same, and ours may differ.
OF_THE_MODEL = (
    *BETAS, "num_train_timesteps", "prediction_type", "rescale_betas_zero_snr", "snr_shift_scale",
    "clip_sample", "clip_sample_range",
)  # fmt: skip
GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_focused_sigmas")
SHOWS_ITSELF = 3  # as many parameters tell a class by their names

# Schedulers of flows: the network predicts noise - data, and is told sigma * num_train_timesteps.
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOWS = (FLOW, "FlowMatchHeunDiscreteScheduler", "FlowUniPCMultistepScheduler", "FlowDPMSolverMultistepScheduler")
# Of a flow that predicts data - noise, and is told 1 - sigma: in the terms of the others, with one level to train on.
MINIMAX = "MiniMaxH3Scheduler"
AS_MINIMAX = {"num_train_timesteps": 1, "invert_sigmas": True}
# Of models that are distilled to a few steps, or trained for stages, of their own.
OF_OWN_STEPS = (
    "LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler",
    "HeliosScheduler", "HeliosDMDScheduler", "SCMScheduler", "CMStochasticIterativeScheduler",
)  # fmt: skip
# Whose `clip_sample` does something; in others' configs it is left over.
CLIPPING = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler",
    "HeunDiscreteScheduler", "RePaintScheduler", "EVODiffScheduler",
)  # fmt: skip
VARIANCES = (
    None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range",
)  # fmt: skip
# Keywords that say something only where the config of the scheduler has something else, and what that is.
NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        (*BETAS, "timestep_spacing", "timestep_type", "steps_offset", "rescale_betas_zero_snr", "snr_shift_scale",
         "lambda_min_clipped"),
        "a model with betas, not of a flow",
        lambda config: not config.use_flow_sigmas,
    ),
    (
        ("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal", "invert_sigmas"),
        "a flow, use_flow_sigmas=True",
        lambda config: config.use_flow_sigmas,
    ),
    (("sigma_min", "sigma_max"), f"one of {', '.join(GRIDS)}", lambda config: any(config[grid] for grid in GRIDS)),
    (("dynamic_thresholding_ratio", "sample_max_value"), "thresholding=True", lambda config: config.thresholding),
    (("clip_sample_range",), "clip_sample=True", lambda config: config.clip_sample),
)  # fmt: skip
WITH_OWN_TABLE = ("UnCLIPScheduler", "IPNDMScheduler")  # whose configs do not say all of it


def check_values(config: Any) -> None:
    """ValueError for what no scheduler can have."""
    choice("variance_type", config.variance_type, VARIANCES)
    if not 0 < config.flow_shift < math.inf:
        raise ValueError(f"flow_shift must be positive and finite, 1 for none; got {config.flow_shift!r}")
    if not 0 <= config.dynamic_thresholding_ratio <= 1:
        raise ValueError(
            f"dynamic_thresholding_ratio must lie in [0, 1], a share of the pixels; got "
            f"{config.dynamic_thresholding_ratio!r}"
        )
    for name in ("sample_max_value", "clip_sample_range"):
        if not config[name] > 0:
            raise ValueError(f"{name} must be positive, the largest value of a clean sample; got {config[name]!r}")


def check_used(given: Mapping[str, Any], config: Any, ours: type) -> None:
    """ValueError for a keyword that says something where nothing asks for it. One left in a config is no fault."""
    defaults = parameters(ours)
    for names, needed, has in NEEDS:
        for name in names:
            says = name in given and not np.array_equal(given[name], defaults[name])
            if says and not has(config):
                raise ValueError(f"{name} counts only with {needed}; got {name}={given[name]!r}: leave it out")


def _class_of(config: dict[str, Any], ours: type) -> str:
    """The class that wrote a config. In memory diffusers leaves its name out; its parameters come first, in order."""
    if "_class_name" in config:
        return str(config["_class_name"])
    for name in (FLOW, *OF_OWN_STEPS, *CLIPPING):
        keys = list(parameters(_class(name, ours)))
        if len(keys) >= SHOWS_ITSELF and list(config)[: len(keys)] == keys:
            return name
    return ""


def _class(name: str, ours: type) -> type | None:
    """The scheduler of this name, ours or diffusers'."""
    found: type | None = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    return ours if name == ours.__name__ else found


def parameters(scheduler: type | None) -> dict[str, Any]:
    """The parameters of a scheduler and their defaults; none of no class."""
    found = inspect.signature(scheduler.__init__).parameters.values() if scheduler else ()  # type: ignore[misc]
    return {p.name: p.default for p in found if p.name != "self"}


def translated(config: dict[str, Any], ours: type, flow: bool | None) -> dict[str, Any]:
    """A config in the terms of our scheduler: whether it is a flow's its class says, unless `flow` does."""
    name, known = _class_of(config, ours), parameters(ours).keys()
    # What a saved config leaves out is what its class has it be.
    defaults = parameters(_class(name, ours))
    config = {**{key: value for key, value in defaults.items() if key in (*OF_THE_MODEL, "shift")}, **config}
    who = name or "this config, which names no class,"
    likely = name if "_class_name" in config else f"a config like that of {name}"
    if name in OF_OWN_STEPS:
        raise ValueError(
            f"{likely} is for models that are distilled to a few steps of their own, or trained for stages of their "
            "own, which no other solver follows: keep it. If the model is not (another scheduler was made from the "
            "config of this), use from_config({**config, '_class_name': ...}) with the class that it came with"
        )
    if name.startswith("EDM") or "sigma_data" in config:
        raise ValueError(
            f"{who} is for models that take EDM's preconditioning from their scheduler or pipeline, which "
            "EVODiffScheduler does not do: keep it, or wrap the model as a denoiser for fewstep.sample"
        )
    chosen = bool(flow)
    if flow is None and (name in (*FLOWS, MINIMAX) or config.get("use_flow_sigmas")):
        flow = True
    if flow is None and "shift" in config:
        raise ValueError(
            f"{who} has a shift, as flows have, and does not say of which kind: for a network that predicts "
            "noise - data and is told sigma * num_train_timesteps use from_config(config, use_flow_sigmas=True), for "
            "another the config with its class, from_config({**config, '_class_name': ...}), and for none of a flow "
            "use_flow_sigmas=False"
        )
    told = flow or any(config.get(key) is not None for key in BETAS)
    # A config in memory has no class: IPNDM's has nothing but these, UnCLIP's no ends of its betas.
    unclip = config.get("variance_type") == "fixed_small_log" and "beta_start" not in config
    foreign = {key for key in config if not key.startswith("_")} - (known - {"trained_betas", "clip_sample"})
    if name in WITH_OWN_TABLE or unclip or (foreign and not told):
        raise ValueError(
            f"{who} does not say which noise levels its model knows (neither betas nor a flow): "
            "keep its scheduler, or build EVODiffScheduler(trained_betas=...) yourself; for a flow whose network "
            "predicts noise - data, told sigma * num_train_timesteps, use from_config(config, use_flow_sigmas=True)"
        )
    if config.get("stochastic_sampling"):
        raise ValueError(
            "stochastic_sampling=True adds noise at every step, for models that are distilled to few steps: keep their "
            "scheduler, or use from_config({**config, 'stochastic_sampling': False})"
        )
    own: dict[str, Any] = {}
    if flow and (name in (*FLOWS, MINIMAX) or "flow_shift" not in config):
        # Whatever else is in it came from a scheduler before, as its class knows none of it.
        own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config.get("shift", 1.0)}
        own |= {"thresholding": False} | (AS_MINIMAX if name == MINIMAX else {})
    elif chosen and config.get("prediction_type", "epsilon") == "epsilon":
        own = {"prediction_type": "flow_prediction"}  # which the keyword says; the config's is its class's default
    if name not in CLIPPING:
        own["clip_sample"] = False
    if flow:
        config = {**config, "_class_name": FLOW}  # else diffusers warns of keys that only flows have
    # What only flows have, pipelines read: the range of the dynamic shift, say.
    kept = {*OF_THE_MODEL, *own, *(config.keys() - known if flow else ())}
    unsaid = [key for key in config.get("_use_default_values", ()) if key not in kept]
    return {**config, **own, "_use_default_values": unsaid}
