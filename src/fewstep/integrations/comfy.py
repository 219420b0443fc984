"""Nodes for ComfyUI, for SamplerCustom and SamplerCustomAdvanced.

There is a SAMPLER of any solver, EVODiff's own SIGMAS, and both of a tuned plan.

ComfyUI's samplers are functions of k-diffusion, so that only two questions are asked of it here: whether a model is a
flow (`comfy.model_sampling.CONST`), and between which sigmas it was trained. `comfyui/` in the repository is the
folder to link into `custom_nodes`. ComfyUI is imported when a node runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..schedule import EDM, Flow, Schedule
from ..solvers import Tuned
from ..table import SOLVERS
from .kdiffusion import get_sigmas_focused, get_sigmas_tuned, sampler

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "FewstepSampler", "FewstepSigmas", "FewstepTuned"]

NAMES = [name for name, entry in SOLVERS.items() if not hasattr(entry.solver, "statistics")]
MOST_STEPS = 10_000  # as ComfyUI's own nodes allow


class FewstepSampler:
    """A SAMPLER. `evodiff`, the default, is made for the sigmas of `FewstepSigmas`."""

    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_sampler"
    RETURN_TYPES = ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"solver": (NAMES, {"default": "evodiff"})}}

    def get_sampler(self, solver: str) -> tuple[Any]:
        import comfy.samplers

        return (comfy.samplers.KSAMPLER(sample, extra_options={"solver": solver}),)


class FewstepSigmas:
    """SIGMAS of EVODiff's own grid, of `steps` calls; of more, the last `steps`, where `denoise` is below 1."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "get_sigmas"
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "steps": ("INT", {"default": 10, "min": 1, "max": MOST_STEPS}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Any, steps: int, denoise: float) -> tuple[Tensor]:
        if denoise <= 0:
            return (torch.FloatTensor([]),)
        law = model.get_model_object("model_sampling")
        total = max(steps, int(steps / denoise))
        found = get_sigmas_focused(total, float(law.sigma_min), float(law.sigma_max), flow=_is_flow(law))
        return (found[-(steps + 1) :],)


class FewstepTuned:
    """A SAMPLER and SIGMAS of `steps` calls, of a file of `fewstep tune` on this model."""

    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_plan"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "plan": ("STRING", {"default": "plan.json"}),
                "steps": ("INT", {"default": 8, "min": 1, "max": MOST_STEPS}),
            }
        }

    def get_plan(self, model: Any, plan: str, steps: int) -> tuple[Any, Tensor]:
        import comfy.samplers

        law = model.get_model_object("model_sampling")
        flow = _is_flow(law)
        schedule: Schedule = Flow() if flow else EDM(float(law.sigma_min), float(law.sigma_max))
        tuned = Tuned.load(plan).on(schedule)
        sigmas = get_sigmas_tuned(tuned, steps, schedule, flow=flow)
        return comfy.samplers.KSAMPLER(sampler(tuned, flow=flow), extra_options={}), sigmas


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
    """What KSAMPLER calls, with its guided model; sample i draws from a generator of the seed + i."""
    entry, flow = SOLVERS[solver], _is_flow(model.inner_model.model_patcher.get_model_object("model_sampling"))
    first = (extra_args or {}).get("seed") or 0
    chosen = sampler(entry.on_flow if flow else entry.solver, flow=flow)
    return chosen(model, x, sigmas, extra_args, callback, disable, seeds=range(first, first + len(x)))


def _is_flow(law: object) -> bool:
    import comfy.model_sampling

    return isinstance(law, comfy.model_sampling.CONST)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "FewstepSampler": FewstepSampler,
    "FewstepSigmas": FewstepSigmas,
    "FewstepTuned": FewstepTuned,
}
NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "FewstepSampler": "fewstep sampler (EVODiff)",
    "FewstepSigmas": "fewstep sigmas (focused)",
    "FewstepTuned": "fewstep tuned plan",
}
