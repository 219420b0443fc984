"""Scheduler configs of public models, and how their pipelines of diffusers 0.42.1 ask for steps.

MiniMax-H3, Bria 3.2, LLaDa-Image, Stable Audio, Stable Cascade, CogView4, GLM-Image and ACE-Step as read in public
repositories or in diffusers' source, the others from memory of the published files: facts to test with, not to cite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

FLOW, DDPM, DDIM = "FlowMatchEulerDiscreteScheduler", "DDPMScheduler", "DDIMScheduler"
EULER, DPM, UNIPC = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
COSINE = {**LINEAR, "beta_schedule": "squaredcos_cap_v2"}
SHIFTED = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
DYNAMIC = {**SHIFTED, "use_dynamic_shifting": True}
AS_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}

Call = Callable[[Any, int], None]


def plain(scheduler, steps):
    scheduler.set_timesteps(steps, device="cpu")


def with_mu(mu):
    return lambda scheduler, steps: scheduler.set_timesteps(steps, device="cpu", mu=mu)


def of_sigmas(levels, **given):
    return lambda scheduler, steps: scheduler.set_timesteps(sigmas=levels(steps), device="cpu", **given)


def to_last(steps):
    return np.linspace(1.0, 1 / steps, steps)


def before_zero(steps, first=1.0):
    return np.linspace(first, 0.0, steps + 1)[:-1]


def of_whole_times(times):
    """CogView4's and GLM-Image's: timesteps, sigmas and mu together."""

    def call(scheduler, steps):
        told = times(steps).astype(np.int64).astype(np.float32)
        scheduler.set_timesteps(timesteps=told, sigmas=told / 1000, mu=3.25, device="cpu")

    return call


def shifted_by_3(steps):
    levels = before_zero(steps)
    return (3 * levels / (1 + 2 * levels)).tolist()


def linear_quadratic(steps):
    """Mochi's and LTX's, which grows so slowly near noise that it needs some steps."""
    return np.array(linear_quadratic_schedule(steps, 0.025))


class Model(NamedTuple):
    """`refused` is in the words of the refusal; else the run is right. `clock` says what the network knows."""

    config: dict[str, Any]
    call: Call = plain
    clock: str = "flow"
    refused: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def table(name, betas, call=plain, **config):
    return Model({"_class_name": name, **betas, **config}, call, "table")


def flow(call=plain, clock="flow", name=FLOW, **config):
    return Model({"_class_name": name, "num_train_timesteps": 1000, **config}, call, clock)


def refused(words, name, **config):
    return Model({"_class_name": name, **config}, refused=words)


V = {"prediction_type": "v_prediction"}
OTHERS = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "trained_betas": None}
DISTILLED, PRECONDITIONED = "distilled", "EDM's preconditioning"
NO_LEVELS, NEEDS_MU = "does not say which noise levels", r"use_dynamic_shifting=False, shift=\.\.\."
LTX = {"base_image_seq_len": 1024, "base_shift": 0.95, "max_image_seq_len": 4096, "max_shift": 2.05, "shift": 1.0}
COSMOS = {"use_karras_sigmas": True, "sigma_max": 80.0, "sigma_min": 0.002, "final_sigmas_type": "sigma_min"}
MODELS = {
    "Stable Diffusion 1.5": table("PNDMScheduler", SD, skip_prk_steps=True, **OTHERS),
    "Stable Diffusion 2.1": table(DDIM, SD, **V, **OTHERS),
    "SDXL": table(EULER, SD, timestep_spacing="leading", interpolation_type="linear", **OTHERS),
    "SDXL-Lightning": table(EULER, SD, timestep_spacing="trailing", steps_offset=1),
    "SDXL-Turbo": table("EulerAncestralDiscreteScheduler", SD, timestep_spacing="trailing", clip_sample=False),
    "NoobAI": table(EULER, SD, **{**ZERO_SNR, "timestep_spacing": "leading", "steps_offset": 1}),
    "Playground 2.5": refused(
        PRECONDITIONED, "EDMDPMSolverMultistepScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0,
    ),
    "PixArt": table(DPM, LINEAR, algorithm_type="dpmsolver++", solver_order=2, variance_type=None),
    "Kandinsky 2.1": table(DDIM, {**SD, "beta_schedule": "linear"}, **OTHERS),
    "Kandinsky 2.2": table(DDPM, {**SD, "beta_schedule": "linear"}, clip_sample=False, variance_type="learned_range"),
    "Kandinsky 2.2 prior": refused(
        NO_LEVELS, "UnCLIPScheduler", clip_sample=True, clip_sample_range=5.0, prediction_type="sample",
        variance_type="fixed_small_log",
    ),
    "Kandinsky 3": table(DDPM, COSINE, clip_sample=True, clip_sample_range=2.0, timestep_spacing="leading"),
    "Kandinsky 5": flow(shift=5.0),
    "Kandinsky 6": refused(DISTILLED, "PiflowScheduler", num_train_timesteps=1000, shift=5.0, n_grid=10),
    "AudioLDM 2": table(
        DDIM, {**SD, "beta_start": 0.0015, "beta_end": 0.0195}, timestep_spacing="leading", **OTHERS,
    ),
    "Stable Audio": refused(
        PRECONDITIONED, "CosineDPMSolverMultistepScheduler", sigma_data=1.0, sigma_min=0.3, sigma_max=500, **V,
    ),
    "Stable Video Diffusion": Model(
        {"_class_name": EULER, **SD, **V, "timestep_type": "continuous", "timestep_spacing": "leading",
         "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0, "steps_offset": 1},
        clock="log sigma",
    ),
    "Hunyuan-DiT": table(DDPM, {**SD, "beta_end": 0.02}, clip_sample=False, timestep_spacing="leading", **V),
    "Kolors": table(
        EULER, {**SD, "beta_end": 0.014, "num_train_timesteps": 1100}, timestep_spacing="leading", steps_offset=1,
    ),
    "CogVideoX-2b": table("CogVideoXDDIMScheduler", SD, snr_shift_scale=3.0, **ZERO_SNR),
    "CogVideoX-5b": table("CogVideoXDPMScheduler", SD, snr_shift_scale=1.0, **ZERO_SNR),
    "CogView3-Plus": table("CogVideoXDDIMScheduler", SD, snr_shift_scale=4.0, **ZERO_SNR),
    "CogView4": flow(
        of_whole_times(lambda steps: np.linspace(1000, 1, steps)), "unshifted", base_shift=0.25, max_shift=0.75,
        use_dynamic_shifting=True, time_shift_type="linear",
    ),
    "GLM-Image": flow(
        of_whole_times(lambda steps: np.linspace(1000, 1, steps + 1)[:-1]), "unshifted", base_shift=0.25,
        max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear",
    ),
    "Allegro": table("EulerAncestralDiscreteScheduler", LINEAR, timestep_spacing="linspace"),
    "Latte": table(DDIM, LINEAR, variance_type="learned_range", clip_sample=False),
    "DeepFloyd IF": table(DDPM, COSINE, clip_sample=True, variance_type="learned_range", thresholding=False),
    "Marigold": table(DDIM, SD, clip_sample=False, **ZERO_SNR),
    "Stable Cascade": refused(NO_LEVELS, "DDPMWuerstchenScheduler", s=0.008, scaler=1.0),
    "LCM": refused(DISTILLED, "LCMScheduler", **SD, original_inference_steps=50, timestep_scaling=10.0),
    "Sana-Sprint": refused(DISTILLED, "SCMScheduler", prediction_type="trigflow", sigma_data=0.5),
    "AnyFlow": refused(DISTILLED, "FlowMapEulerDiscreteScheduler", num_train_timesteps=1000, shift=5.0),
    "Helios": refused(DISTILLED, "HeliosScheduler", shift=1.0, stages=1, use_flow_sigmas=True),
    "Stable Diffusion 3.5": flow(shift=3.0),
    "Flux dev": flow(of_sigmas(to_last, mu=1.15), shift=3.0, **DYNAMIC),
    "Flux schnell": flow(of_sigmas(to_last, mu=1.15), shift=1.0, use_dynamic_shifting=False, **SHIFTED),
    "Flux 2": flow(of_sigmas(to_last, mu=2.02), shift=3.0, time_shift_type="exponential", **DYNAMIC),
    "Sana": flow(name=DPM, algorithm_type="dpmsolver++", flow_shift=3.0, lower_order_final=True, **AS_FLOW),
    "Wan 2.1": flow(name=UNIPC, flow_shift=3.0, solver_type="bh2", **AS_FLOW),
    "Wan, original": flow(name="FlowUniPCMultistepScheduler", shift=5.0, solver_order=2, final_sigmas_type="zero"),
    "HunyuanVideo": flow(of_sigmas(before_zero), shift=7.0),
    "LTX": flow(of_sigmas(to_last, mu=1.5), shift_terminal=0.1, use_dynamic_shifting=True, **LTX),
    "LTX, conditions": flow(
        lambda scheduler, steps: scheduler.set_timesteps(timesteps=linear_quadratic(steps) * 1000, device="cpu"), **LTX,
    ),
    "Qwen-Image": flow(
        of_sigmas(to_last, mu=0.8), shift_terminal=0.02,
        **{**DYNAMIC, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0},
    ),
    "Z-Image": flow(with_mu(1.1), shift=3.0, use_dynamic_shifting=False),
    "AuraFlow": flow(shift=1.73),
    "Lumina 2": flow(of_sigmas(to_last, mu=1.0), shift=6.0),
    "Chroma": flow(of_sigmas(to_last, mu=1.15), shift=1.0, use_beta_sigmas=True),
    "HiDream": flow(with_mu(1.15), name=UNIPC, flow_shift=3.0, **AS_FLOW),
    "Cosmos-Predict 2": refused(PRECONDITIONED, FLOW, sigma_data=1.0, **COSMOS),
    "Cosmos-Predict 2.5": flow(
        name=UNIPC, flow_shift=1.0, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01, **AS_FLOW,
    ),
    "Cosmos 3": flow(of_sigmas(lambda steps: before_zero(steps, 0.999)), name=UNIPC, flow_shift=5.0, **AS_FLOW),
    "Mochi": flow(of_sigmas(linear_quadratic), "inverted", invert_sigmas=True, shift=1.0),
    "OmniGen": flow(of_sigmas(before_zero), "inverted", invert_sigmas=True, shift=1.0),
    "MiniMax-H3": Model({"_class_name": "MiniMaxH3Scheduler", "shift": 12.0}, clock="inverted, to 1"),
    "MiniMax-H3, sound": Model({"_class_name": "MiniMaxH3Scheduler", "shift": 3.0}, clock="inverted, to 1"),
    "ACE-Step": Model(
        {"_class_name": FLOW, "num_train_timesteps": 1, "shift": 1.0}, of_sigmas(shifted_by_3), "to 1",
    ),
    "Bria 3.2": flow(of_sigmas(to_last), shift=3.0, **DYNAMIC)._replace(refused=NEEDS_MU),
    "Bria 3.2, its shift given": flow(of_sigmas(to_last), shift=3.0, **DYNAMIC)._replace(options={"shift": 3.0}),
    "EasyAnimate": flow(shift=3.0, **DYNAMIC)._replace(refused=NEEDS_MU),
    "EasyAnimate, its shift given": flow(shift=3.0, **DYNAMIC)._replace(
        options={"use_dynamic_shifting": False, "shift": float(np.e)},
    ),
    "LLaDa-Image": refused("adds noise at every step", FLOW, shift=3.0, stochastic_sampling=True),
    "Ernie-Image": flow(of_sigmas(lambda steps: torch.linspace(1, 0, steps + 1)[:-1]), shift=4.0),
}  # fmt: skip

# The levels of distilled models, eight for all runs.
EIGHT = {
    "LTX 2, second stage": [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875],
    "Flux 2, turbo": [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031],
}
