"""ComfyUI: EVODiff and other solvers in the dropdowns of KSampler, and as nodes for SamplerCustom and its kin.

ComfyUI's samplers are functions of k-diffusion, so that only two questions are asked of it here: whether a model is a
flow (`comfy.model_sampling.CONST`), and between which sigmas it was trained. `comfyui/` and the repository's own root
are what goes into `custom_nodes`: docs/comfyui.md. ComfyUI is imported when a node runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..grid import Grid, focused, karras, log_snr
from ..schedule import EDM, Flow, Schedule
from ..solvers import Tuned
from ..table import SOLVERS
from .kdiffusion import History, get_sigmas, get_sigmas_tuned, sampler

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "FewstepAnySampler",
    "FewstepSampler",
    "FewstepSigmas",
    "FewstepTuned",
    "picked_grid",
    "register",
    "sample",
    "sigmas_for",
]

# In KSampler's dropdown. "exact" tells them from ComfyUI's own, which take -log sigma for half a log-SNR on flows too.
DROPDOWN: Mapping[str, Mapping[str, Any]] = {
    "evodiff": {"solver": "evodiff"},
    "evodiff_sde": {"solver": "evodiff", "eta": 0.3},  # at which few steps keep the variance: `fewstep.Stochastic`
    "unipc_exact": {"solver": "unipc-2"},
    "dpmpp_2m_exact": {"solver": "dpmpp-2m"},
}
SHORT = ("evodiff", "unipc-2", "dpmpp-2m", "dpmpp-3m", "deis-3", "ipndm-4", "ddim")  # one call a step
GRIDS: Mapping[str, Grid] = {"focused": focused, "karras": karras, "log-snr": log_snr}
AUTO = "auto"
NARROW = 20.0  # sigma_max: Stable Diffusion's is 14.6, where Karras' levels are as good; EDM's and Cosmos' are 80
MOST_STEPS = 10_000  # as ComfyUI's own nodes allow
HISTORY = History()  # of runs that are split between samplers


def _labels() -> dict[str, str]:
    """Every solver that needs no statistics of a model, by calls a step, which are told where there are several."""
    entries = {name: entry for name, entry in SOLVERS.items() if not hasattr(entry.solver, "statistics")}
    names = sorted(entries, key=lambda name: entries[name].calls)
    return {name if (n := entries[name].calls) == 1 else f"{name} ({n} calls a step)": name for name in names}


LABELS = _labels()


class _SamplerNode:
    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_sampler"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("For SamplerCustom or SamplerCustomAdvanced.",)


class FewstepSampler(_SamplerNode):
    DESCRIPTION = (
        "EVODiff, or another solver of one model call a step, as a SAMPLER. It knows from the model whether that is "
        "a flow (Flux, SD3, Wan) or not (SD, SDXL). Give it the sigmas of 'fewstep sigmas'."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        solver = "evodiff is the one to use; the others are to compare with. All make one model call a step."
        eta = (
            "How much noise is drawn on the way: 0 for none, 1 for the full SDE; with few steps 0.3 or less. "
            "deis-3 and ipndm-4 must have 0."
        )
        return {
            "required": {"solver": (list(SHORT), {"default": "evodiff", "tooltip": solver})},
            "optional": {"eta": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": eta})},
        }

    def get_sampler(self, solver: str, eta: float = 0.0) -> tuple[Any]:
        return (_ksampler(solver=solver, eta=eta),)


class FewstepAnySampler(_SamplerNode):
    DESCRIPTION = (
        "Every solver of fewstep as a SAMPLER, those of one model call a step first. One of n calls a step is as slow "
        "as n times as many steps: give it fewer."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        solver = "docs/numerics.md of fewstep tells what each is, and its order."
        return {"required": {"solver": (list(LABELS), {"default": "evodiff", "tooltip": solver})}}

    def get_sampler(self, solver: str) -> tuple[Any]:
        return (_ksampler(solver=LABELS[solver]),)


class FewstepSigmas:
    DESCRIPTION = (
        "SIGMAS: the noise levels that suit the solvers of fewstep and the range of the model. 'auto' takes Karras' "
        "for SD and SDXL, and fewstep's own for flows (Flux, SD3, Wan) and all others; 'picked' says which."
    )
    CATEGORY = "sampling/custom_sampling/schedulers"
    FUNCTION = "get_sigmas"
    RETURN_TYPES = ("SIGMAS", "STRING")
    RETURN_NAMES = ("sigmas", "picked")
    OUTPUT_TOOLTIPS = ("For SamplerCustom or SamplerCustomAdvanced.", "What was picked, in words.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tips = {
            "steps": "So many steps are made, whatever denoise is. 8 to 15 are enough for most.",
            "denoise": (
                "1 begins with pure noise; less, for image to image, at the noise level at which the other "
                "schedulers begin. The steps are spread from there."
            ),
            "grid": "How the levels are spaced.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Its range of noise levels is what counts."}),
                "steps": ("INT", {"default": 10, "min": 1, "max": MOST_STEPS, "tooltip": tips["steps"]}),
                "denoise": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tips["denoise"]},
                ),
            },
            "optional": {"grid": ([AUTO, *GRIDS], {"default": AUTO, "tooltip": tips["grid"]})},
        }

    def get_sigmas(self, model: Any, steps: int, denoise: float, grid: str = AUTO) -> tuple[Tensor, str]:
        if denoise <= 0:
            return torch.FloatTensor([]), "nothing: denoise is 0"
        law = model.get_model_object("model_sampling")
        sigmas = sigmas_for(law, steps, grid, denoise)
        picked = picked_grid(float(law.sigma_max), _is_flow(law)).__name__ if grid == AUTO else grid
        said = f"{picked}: {steps} steps from sigma {sigmas[0]:.4g}" + (" of a flow" if _is_flow(law) else "")
        logging.getLogger(__name__).info("fewstep sigmas: %s", said)
        return sigmas, said


def sigmas_for(law: Any, steps: int, grid: str = AUTO, denoise: float = 1.0) -> Tensor:
    """Sigmas for a `model_sampling` of ComfyUI, (steps + 1,), falling to 0 or to where noise is not seen.

    With `denoise` below 1 they begin at that fraction of the model's clock, as those of "simple" do.
    """
    low, high, flow = float(law.sigma_min), float(law.sigma_max), _is_flow(law)
    made = picked_grid(high, flow) if grid == AUTO else GRIDS[grid]
    if denoise < 1:
        high = min(high, float(law.percent_to_sigma(1 - denoise)))
    return get_sigmas(made, steps, min(low, high / 2), high, flow=flow)


class FewstepTuned:
    DESCRIPTION = "A SAMPLER and its SIGMAS, of a plan that `fewstep tune` measured on this model and guidance."
    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_plan"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = ("For SamplerCustom or SamplerCustomAdvanced.", "For the same, with this sampler.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tips = {
            "plan": "The path of the file, on the machine that ComfyUI runs on.",
            "steps": "Best one of the numbers of calls that were tuned.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Its range of noise levels must be that of the plan."}),
                "plan": ("STRING", {"default": "plan.json", "tooltip": tips["plan"]}),
                "steps": ("INT", {"default": 8, "min": 1, "max": MOST_STEPS, "tooltip": tips["steps"]}),
            }
        }

    def get_plan(self, model: Any, plan: str, steps: int) -> tuple[Any, Tensor]:
        import comfy.samplers

        law = model.get_model_object("model_sampling")
        flow = _is_flow(law)
        low = float(law.sigma_min)
        schedule: Schedule = Flow() if flow else EDM(low, float(law.sigma_max))
        tuned = Tuned.load(plan).on(schedule)
        sigmas = get_sigmas_tuned(tuned, steps, schedule, flow=flow)
        return comfy.samplers.KSAMPLER(sampler(tuned, flow=flow, sigma_min=low), extra_options={}), sigmas


def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    solver: str = "evodiff",
    **options: Any,
) -> Tensor:
    """What KSAMPLER calls, with its guided model; `options` as in `kdiffusion.sampler`.

    Sample i draws from a generator of the seed + i. A half that goes on where the last one stopped knows of it.
    """
    law = model.inner_model.model_patcher.get_model_object("model_sampling")
    flow = _is_flow(law)
    seed = (extra_args or {}).get("seed") or 0
    seeds = None if "noise_sampler" in options else [(seed + i) % 2**64 for i in range(len(x))]
    chosen = sampler(SOLVERS[solver].suited(flow), flow=flow, sigma_min=float(law.sigma_min))
    return chosen(model, x, sigmas, extra_args, callback, disable, **{"seeds": seeds, "history": HISTORY, **options})


def register() -> None:
    """Adds the samplers and schedulers of fewstep to ComfyUI's own lists, in place and once; others' stay."""
    import comfy.k_diffusion.sampling
    import comfy.samplers

    for name, options in DROPDOWN.items():
        if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", partial(sample, **options))
        _add(name, comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS)
    for name, grid in {"fewstep": AUTO, "fewstep_focused": "focused"}.items():
        if name not in comfy.samplers.SCHEDULER_HANDLERS:
            handler = comfy.samplers.SchedulerHandler(partial(sigmas_for, grid=grid))
            comfy.samplers.SCHEDULER_HANDLERS[name] = handler
        _add(name, comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS)


def _add(name: str, *lists: list[str]) -> None:
    """To each that has it not: they may be one list, or packs may have made several of it."""
    for names in lists:
        if name not in names:
            names.append(name)


def _ksampler(**options: Any) -> Any:
    import comfy.samplers

    return comfy.samplers.KSAMPLER(sample, extra_options=options)


def picked_grid(sigma_max: float, flow: bool) -> Grid:
    """The grid that suits a model of this range."""
    return karras if not flow and sigma_max < NARROW else focused


def _is_flow(law: object) -> bool:
    import comfy.model_sampling

    return isinstance(law, comfy.model_sampling.CONST)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    node.__name__: node for node in (FewstepSampler, FewstepAnySampler, FewstepSigmas, FewstepTuned)
}
NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "FewstepSampler": "fewstep sampler (EVODiff)",
    "FewstepAnySampler": "fewstep sampler (all solvers)",
    "FewstepSigmas": "fewstep sigmas",
    "FewstepTuned": "fewstep tuned plan",
}
