"""Configs of public models, called as their pipelines call: right on an exact network, or refused with words."""

import math

import diffusers
import numpy as np
import pytest
import torch

from fewstep.integrations.diffusers import EVODiffScheduler
from integrations.public_configs import DYNAMIC, EIGHT, FLOW, MODELS

STEPS = 50
WITHIN = 0.05
# As wide as latents are; the last step of the plain levels, from sigma / alpha of up to 0.3 to 0, is long for narrower.
SPREAD = torch.logspace(-0.3, 0.3, 64, dtype=torch.float64).reshape(1, 4, 4, 4)
CLIPPED_WITHIN = 1 / 8  # data so narrow that what is clipped is nothing
MU = 3.25  # of the calls of CogView4 and GLM-Image

FLOW_CLOCKS = {
    "flow": lambda t: t / 1000,
    "to 1": lambda t: t,
    "inverted": lambda t: 1 - t / 1000,
    "inverted, to 1": lambda t: 1 - t,
    "unshifted": lambda t: MU * t / (1000 + (MU - 1) * t),
}


def known_by(model):
    """The network's own law: alpha and sigma at what it is told. Of tables, as diffusers' scheduler has them."""
    if model.clock in FLOW_CLOCKS:
        return lambda t: (1 - FLOW_CLOCKS[model.clock](t), FLOW_CLOCKS[model.clock](t))
    if model.clock == "log sigma":
        return lambda t: (1 / math.hypot(1, math.exp(4 * t)), math.exp(4 * t) / math.hypot(1, math.exp(4 * t)))
    source = getattr(diffusers, model.config["_class_name"]).from_config(model.config)
    products = source.alphas_cumprod.double().clamp(min=2**-24).numpy()
    logs = np.concatenate([[0.0], 0.5 * np.log(products)])

    def law(t):
        log_alpha = float(np.interp(t, np.arange(-1, len(products)), logs))
        return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))

    return law


def answer(kind, x, denoised, alpha, sigma):
    noise = (x - alpha * denoised) / sigma
    return {
        "sample": denoised, "epsilon": noise, "v_prediction": alpha * noise - sigma * denoised,
        "flow_prediction": noise - denoised,
    }[kind]  # fmt: skip


def error(model, **options):
    """How far the run ends from the exact solution, as a share of it, for Gaussian data."""
    scheduler = EVODiffScheduler.from_config(model.config, **model.options, **options)
    model.call(scheduler, STEPS)
    law, config = known_by(model), scheduler.config
    std = SPREAD * (CLIPPED_WITHIN * config.clip_sample_range if config.clip_sample else 1)
    sign = -1 if model.clock.startswith("inverted") else 1
    x = torch.randn(8, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = x * std
    alpha, sigma = law(float(scheduler.timesteps[0]))
    x = x * ((alpha * std) ** 2 + sigma**2).sqrt()
    for t in scheduler.timesteps:
        alpha, sigma = law(float(t))
        denoised = alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * x
        x = scheduler.step(sign * answer(config.prediction_type, x, denoised, alpha, sigma), t, x).prev_sample
    return float((x - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize("options", [{}, {"use_focused_sigmas": True}], ids=["plain", "focused"])
@pytest.mark.parametrize("name", MODELS)
def test_a_public_config_is_right_or_refused(name, options):
    model = MODELS[name]
    if model.refused:
        with pytest.raises(ValueError, match=model.refused):
            error(model, **options)
    else:
        assert error(model, **options) < WITHIN


@pytest.mark.parametrize("name", ["CogView4", "GLM-Image", "LTX, conditions"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3", "era"])
@pytest.mark.parametrize("grid", ["use_karras_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_focused_sigmas"])
def test_what_is_told_belongs_to_the_level_with_every_grid_and_solver(name, solver, grid):
    assert error(MODELS[name], solver=solver, **{grid: True}) < WITHIN


@pytest.mark.parametrize("name", EIGHT)
def test_levels_of_a_fixed_number_are_taken_as_they_are(name):
    scheduler = EVODiffScheduler.from_config({"_class_name": FLOW, "shift": 3.0, **DYNAMIC})
    scheduler.set_timesteps(sigmas=EIGHT[name], mu=0.0)
    np.testing.assert_allclose(scheduler.sigmas, [*EIGHT[name], 0.0], rtol=1e-6)
    np.testing.assert_allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1], rtol=1e-6)
