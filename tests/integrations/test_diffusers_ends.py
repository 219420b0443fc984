"""Where a config's levels end in a long step: solvers of several steps do not extrapolate over it."""

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra diffusers")

from diffusers import DPMSolverMultistepScheduler

from fewstep.integrations.diffusers import EVODiffScheduler

STD = 0.5
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def error_and_spread(scheduler, steps):
    """The RMSE to the solution and the standard deviation over the exact one, of Gaussian data, as a pipeline runs."""
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 4096, generator=draw, dtype=torch.float64)
    x = noise * scheduler.sigmas[0].item()  # pure noise, or just below with diffusers' own
    start = (((1 - scheduler.sigmas[0].item()) * STD) ** 2 + scheduler.sigmas[0].item() ** 2) ** 0.5
    for t in scheduler.timesteps:
        sigma = t.item() / 1000
        denoised = x * (1 - sigma) * STD**2 / (((1 - sigma) * STD) ** 2 + sigma**2)
        x = scheduler.step((x - denoised) / sigma, t, x, generator=draw, return_dict=False)[0]
    end = scheduler.sigmas[-1].item()
    exact = (((1 - end) * STD) ** 2 + end**2) ** 0.5
    wanted = noise * scheduler.sigmas[0].item() / start * exact
    return float((x - wanted).square().mean().sqrt()), float(x.std()) / exact


@pytest.mark.parametrize("steps", [5, 10, 14, 20, 30])
def test_flows_that_end_at_the_lowest_level(steps):
    """With order 2 in the last step 2M and UniPC had more than twice DDIM's error.

    diffusers' own 2M has order 1 there below 15 steps, and not from there.
    """
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"}
    theirs = DPMSolverMultistepScheduler(**config, flow_shift=3.0)
    own, _ = error_and_spread(theirs, steps)
    errors = {
        name: error_and_spread(EVODiffScheduler.from_config({**FLOW, **config}, solver=name), steps)[0]
        for name in ("ddim", "dpmpp-2m", "unipc-2")
    }
    assert max(errors["dpmpp-2m"], errors["unipc-2"]) < errors["ddim"]
    assert steps < 15 or errors["dpmpp-2m"] < own / 2


@pytest.mark.parametrize("steps", [5, 8, 10, 20])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_sa_solver_keeps_its_spread_on_the_focused_levels_of_a_flow(end, steps):
    """With order 2 over their last two steps it had 9 times the spread in 5 steps, 6 times in 10."""
    scheduler = EVODiffScheduler.from_config(FLOW, solver="sa-solver", use_focused_sigmas=True, final_sigmas_type=end)
    assert error_and_spread(scheduler, steps)[1] < 1.2


def test_the_full_order_can_be_had():
    config = {**FLOW, "final_sigmas_type": "sigma_min"}
    for solver, order in (("dpmpp-2m", 2), ("unipc-3", 3), ("sa-solver-tau0", 3), ("deis-4", 4)):
        lengths = []
        for lowered in (True, False):
            scheduler = EVODiffScheduler.from_config(config, solver=solver, lower_order_final=lowered)
            scheduler.set_timesteps(10)
            lengths.append(len(scheduler._stages[-1].move.weights))
        assert lengths[1] == order
        assert lengths[0] < order or solver == "deis-4"
