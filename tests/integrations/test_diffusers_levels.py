"""The noise levels of a config: those of diffusers, but for what the module says it does otherwise."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.grid.base import VISIBLE
from fewstep.integrations.diffusers import EVODiffScheduler

BETAS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def ours(config, *arguments, **options):
    scheduler = EVODiffScheduler(**config)
    scheduler.set_timesteps(*arguments, **options)
    return scheduler


def assert_same_sigmas(scheduler, other, rtol=2e-4):
    """Their tables are float32, whose 1 - alphas_cumprod loses four digits where there is little noise."""
    torch.testing.assert_close(scheduler.sigmas, other.sigmas.float(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 5, 10, 25, 50, 100])
def test_spacings_are_those_of_dpm_solver(betas, spacing, final, steps):
    config = {**BETAS[betas], "timestep_spacing": spacing, "final_sigmas_type": final, "steps_offset": 1}
    other = diffusers.DPMSolverMultistepScheduler(**config)
    other.set_timesteps(steps)
    scheduler = ours(config, steps)
    assert scheduler.timesteps.dtype == torch.int64
    assert torch.equal(scheduler.timesteps, other.timesteps)
    assert_same_sigmas(scheduler, other)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("grid", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("steps", [5, 10, 100])
def test_levels_spaced_in_sigma_are_those_of_euler(betas, grid, steps):
    config = {**BETAS[betas], f"use_{grid}_sigmas": True}
    other = diffusers.EulerDiscreteScheduler(**config)
    other.set_timesteps(steps)
    scheduler = ours(config, steps)
    assert_same_sigmas(scheduler, other, rtol=5e-4)
    # Times between entries: by log sigma there, by log alpha here.
    torch.testing.assert_close(scheduler.timesteps, other.timesteps, rtol=0, atol=0.3)
    assert len(set(scheduler.timesteps.tolist())) == steps


def test_log_snr_levels_are_even_in_log_snr():
    for config in (BETAS["scaled_linear"], FLOW):
        lams = [node.lam for node in ours({**config, "use_lu_lambdas": True}, 10)._nodes[:-1]]
        np.testing.assert_allclose(np.diff(lams), np.diff(lams)[0], rtol=1e-9)


@pytest.mark.parametrize("config", [BETAS["scaled_linear"], {**FLOW, "flow_shift": 3.0}], ids=["betas", "flow"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_focused_levels_are_those_of_the_grid_between_the_same_ends(config, final):
    scheduler = ours({**config, "use_focused_sigmas": True, "final_sigmas_type": final}, 9)
    # To 0 by a call of its own where it shows: of the two, from the noise of the betas' end.
    closed = scheduler._nodes[-1].sigma == 0
    assert closed == (final == "zero" and "use_flow_sigmas" not in config)
    nodes = scheduler._nodes[: 9 if closed else 10]
    # A flow begins at sigma = 1, where the grid begins at a thousandth of signal.
    between = fs.EDM(nodes[-1].nsr, min(nodes[0].nsr, math.exp(fs.Flow.LAM_END)))
    wanted = [node.nsr for node in fs.focused(between, len(nodes) - 1, to_zero=False)]
    np.testing.assert_allclose([node.nsr for node in nodes[1:]], wanted[1:], rtol=1e-9)
    assert len(scheduler.timesteps) == 9


def test_ends_of_sigma_can_be_given():
    scheduler = ours({"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 20.0}, 5)
    np.testing.assert_allclose(scheduler.sigmas[[0, 4, 5]], [20.0, 0.1, 0.0], rtol=1e-6)


@pytest.mark.parametrize("grid", ["karras", "exponential", "beta", "focused"])
@pytest.mark.parametrize("config", [{}, FLOW], ids=["betas", "flow"])
def test_a_grid_that_ends_at_sigma_min_repeats_no_level(grid, config):
    scheduler = ours({**config, f"use_{grid}_sigmas": True, "final_sigmas_type": "sigma_min"}, 10)
    assert len(scheduler.timesteps) == 10
    assert (scheduler.sigmas.diff() < 0).all()
    assert scheduler.sigmas[-1] > 0


@pytest.mark.parametrize("size", [25, 50, 100, 999, 1000])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_as_many_steps_as_entries_visit_no_level_twice(size, spacing, final, more):
    config = {"num_train_timesteps": size, "timestep_spacing": spacing, "steps_offset": 1, "final_sigmas_type": final}
    nodes = ours({**config, "solver": "ddim"}, size + more)._nodes  # whose plan is a matter of milliseconds
    assert len(nodes) == size + more + 1
    assert all(s.lam < t.lam for s, t in pairwise(nodes))
    assert nodes[0].time <= size - 1


def test_the_model_is_told_the_time_of_its_level():
    for config in ({"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}):
        scheduler = ours(config, 37)
        for t, node in zip(scheduler.timesteps.tolist(), scheduler._nodes, strict=False):
            assert scheduler._schedule.node(t).lam == pytest.approx(node.lam, abs=1e-5)
    flow = ours({**FLOW, "flow_shift": 3.0}, 6)
    np.testing.assert_allclose(flow.timesteps, 1000 * flow.sigmas[:-1], rtol=1e-6)
    assert flow.timesteps.dtype == torch.float32


def test_continuous_time_is_a_quarter_of_log_sigma():
    config = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    other = diffusers.EulerDiscreteScheduler(**config, sigma_min=0.002, sigma_max=700.0)
    other.set_timesteps(8)
    scheduler = EVODiffScheduler.from_config(other.config)
    scheduler.set_timesteps(8)
    torch.testing.assert_close(scheduler.timesteps, other.timesteps, rtol=1e-5, atol=1e-5)
    assert_same_sigmas(scheduler, other)


def test_the_cosine_schedule_can_be_clipped():
    config = {**BETAS["cosine"], "lambda_min_clipped": -5.1}
    other = diffusers.DPMSolverMultistepScheduler(**config)
    other.set_timesteps(10)
    scheduler = ours(config, 10)
    assert torch.equal(scheduler.timesteps, other.timesteps)
    assert scheduler._nodes[0].lam >= -5.1


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_rescales_as_diffusers_does(betas):
    config = {**BETAS[betas], "rescale_betas_zero_snr": True}
    scheduler, other = EVODiffScheduler(**config), diffusers.DDIMScheduler(**config)
    torch.testing.assert_close(scheduler.betas, other.betas, rtol=2e-3, atol=1e-6)
    table = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(table[:-1].float(), other.alphas_cumprod[:-1], rtol=2e-3, atol=1e-7)
    assert 0 < table[-1] <= 2.0**-24
    assert (table.diff() < 0).all()


# Flows


@pytest.mark.parametrize("steps", [1, 4, 5, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_default_levels_of_a_flow_are_the_even_grid_of_fewstep(steps, shift):
    got = ours({**FLOW, "flow_shift": shift}, steps)._nodes
    np.testing.assert_allclose(got, fs.time_uniform(fs.Flow(shift), steps), atol=1e-15)


@pytest.mark.parametrize("config", [
    {}, {"shift": 3.0}, {"shift": 3.0, "shift_terminal": 0.1}, {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    {"use_karras_sigmas": True, "shift": 2.0}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
    {"invert_sigmas": True},
])  # fmt: skip
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_given_levels_of_a_flow_are_treated_as_flow_match_euler_does(config, kind):
    sigmas = np.linspace(1, 1 / 6, 6).tolist()
    mu = 0.8 if config.get("use_dynamic_shifting") else None
    other = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    other.set_timesteps(sigmas=sigmas, mu=mu)
    scheduler = EVODiffScheduler.from_config(other.config)
    scheduler.set_timesteps(sigmas=kind(sigmas), mu=mu)
    torch.testing.assert_close(scheduler.sigmas, other.sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps, other.timesteps, rtol=1e-5, atol=1e-3)


GRIDS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_focused_sigmas"]


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("config", [{"shift": 7.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}], ids=repr)
@pytest.mark.parametrize("sigmas", [np.linspace(1, 0, 11)[:-1], np.linspace(1, 0.1, 10)], ids=["Hunyuan", "Flux"])
def test_levels_that_a_pipeline_gives_end_where_nobody_sees_noise(sigmas, config, grid, final):
    source = diffusers.FlowMatchEulerDiscreteScheduler(**config).config
    options = {} if grid is None else {grid: True}
    scheduler = EVODiffScheduler.from_config(source, final_sigmas_type=final, **options)
    scheduler.set_timesteps(10, sigmas=sigmas, mu=1.15)
    assert len(scheduler.timesteps) == 10
    assert scheduler.sigmas[-1] < VISIBLE


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("grid", ["use_lu_lambdas", "use_focused_sigmas"])
def test_grids_in_log_snr_of_a_flow_are_the_same_with_levels_of_the_pipeline(grid, final):
    scheduler = EVODiffScheduler(**FLOW, flow_shift=3.0, final_sigmas_type=final, **{grid: True})
    scheduler.set_timesteps(10)
    alone = scheduler.sigmas
    scheduler.set_timesteps(10, sigmas=np.linspace(1, 0, 11)[:-1])
    assert torch.equal(scheduler.sigmas, alone)


def test_a_flow_with_a_terminal_shift_ends_at_zero():
    for steps in (1, 6):
        found = ours({**FLOW, "shift_terminal": 0.1, "final_sigmas_type": "sigma_min"}, steps)
        assert torch.equal(found.sigmas, ours({**FLOW, "shift_terminal": 0.1}, steps).sigmas)
        assert found.sigmas[-1] == 0


def test_karras_levels_of_a_flow_with_given_ends_are_those_of_unipc():
    config = {**FLOW, "sigma_min": 0.01, "sigma_max": 200.0, "use_karras_sigmas": True}
    other = diffusers.UniPCMultistepScheduler(**config)
    other.set_timesteps(5)
    torch.testing.assert_close(ours(config, 5).sigmas, other.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_either_end_of_a_flow_may_be_given_alone(grid):
    """As sigma / alpha, like both."""
    both = ours({**FLOW, "sigma_min": 0.05, "sigma_max": 20.0, grid: True}, 6).sigmas
    for end, place in (("sigma_min", -2), ("sigma_max", 0)):
        alone = ours({**FLOW, end: 0.05 if end == "sigma_min" else 20.0, grid: True}, 6).sigmas
        assert alone[place] == both[place]
        assert alone[-2 - place] != both[-2 - place]


def test_mu_counts_for_dynamic_shifting_only_and_does_not_stick():
    scheduler = EVODiffScheduler(**FLOW, flow_shift=3.0)
    scheduler.set_timesteps(4, mu=2.0)
    assert torch.equal(scheduler.sigmas, ours({**FLOW, "flow_shift": 3.0}, 4).sigmas)
    dynamic = EVODiffScheduler(**FLOW, use_dynamic_shifting=True)
    dynamic.set_timesteps(4, mu=math.log(3.0))
    torch.testing.assert_close(dynamic.sigmas, scheduler.sigmas)
    dynamic.set_timesteps(4, mu=0.0)
    torch.testing.assert_close(dynamic.sigmas, torch.linspace(1, 0, 5))


def test_one_step_is_not_stretched():
    assert ours({**FLOW, "shift_terminal": 0.1}, 1).sigmas.tolist() == [1.0, 0.0]


# What set_timesteps takes


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("ends", [[], [0.0]], ids=["without zero", "with zero"])
def test_sigmas_of_a_table_as_list_array_or_tensor(kind, ends):
    sigmas = diffusers.schedulers.AysSchedules["StableDiffusionSigmas"][:-1]
    scheduler = ours(BETAS["scaled_linear"], sigmas=kind([*sigmas, *ends]))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([*sigmas, 0.0]))
    ays = torch.tensor(diffusers.schedulers.AysSchedules["StableDiffusionTimesteps"])
    torch.testing.assert_close(scheduler.timesteps, ays.float(), rtol=0, atol=1.0)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_timesteps_as_list_array_or_tensor(kind):
    for other in (ours({}, 10), ours({"use_karras_sigmas": True}, 10), ours(FLOW, 10)):
        scheduler = EVODiffScheduler.from_config(other.config, use_karras_sigmas=False)
        scheduler.set_timesteps(timesteps=kind(other.timesteps.tolist()))
        assert torch.equal(scheduler.timesteps, other.timesteps)
        torch.testing.assert_close(scheduler.sigmas, other.sigmas, rtol=1e-4, atol=1e-6)


def test_timesteps_and_sigmas_can_be_told_apart():
    scheduler = ours({}, sigmas=[10.0, 1.0], timesteps=[900, 400])
    assert scheduler.timesteps.tolist() == [900, 400]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([10.0, 1.0, 0.0]))


@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("config", [
    {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"use_dynamic_shifting": True}, {"shift": 3.0},
    {"shift": 3.0, "shift_terminal": 0.05},
])  # fmt: skip
def test_timesteps_beside_sigmas_say_what_is_told_at_every_level(config, grid):
    """As CogView4 gives them: the network knows the levels by their times before the shift."""
    told = np.linspace(1000, 1, 12).astype(int)
    source = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler = EVODiffScheduler.from_config(source.config, **({} if grid is None else {grid: True}))
    scheduler.set_timesteps(timesteps=told.astype(np.float32), sigmas=told / 1000, mu=1.5)
    source.set_timesteps(timesteps=told.tolist(), sigmas=(told / 1000).tolist(), mu=1.5)
    if grid is None:
        assert scheduler.timesteps.tolist() == told.tolist()
        torch.testing.assert_close(scheduler.sigmas, source.sigmas, rtol=1e-5, atol=1e-6)
        return
    stretch = (1 - 0.05) / (1 - float(shifted(config, np.array([0.001]))[0])) if "shift_terminal" in config else 1
    expected = 1 - (1 - shifted(config, scheduler.timesteps.double().numpy() / 1000)) * stretch
    np.testing.assert_allclose(scheduler.sigmas[:-1], expected, rtol=1e-4, atol=1e-6)


def shifted(config, base):
    ratio = config.get("shift", 1.5 if config.get("time_shift_type") == "linear" else math.exp(1.5))
    return ratio * base / (1 + (ratio - 1) * base)


def test_what_is_told_between_given_timesteps_lies_between_them():
    scheduler = EVODiffScheduler(**FLOW, use_focused_sigmas=True)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.2], timesteps=[950, 700, 100])
    given = ([0.0, 0.2, 0.5, 0.9, 1.0], [0.0, 100, 700, 950, 1000])
    np.testing.assert_allclose(scheduler.timesteps, np.interp(scheduler.sigmas[:-1], *given), rtol=1e-5)


def test_a_grid_of_log_snr_takes_the_start_and_the_number_from_timesteps_too():
    given, alone = (EVODiffScheduler(**FLOW, use_focused_sigmas=True) for _ in range(2))
    given.set_timesteps(timesteps=np.linspace(1000, 100, 8))
    alone.set_timesteps(8)
    assert torch.equal(given.sigmas, alone.sigmas)


@pytest.mark.parametrize("grid", ["use_karras_sigmas", "use_focused_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_levels_of_whole_timesteps(grid, final, steps):
    """For pipelines that index a table by timestep, such as Kandinsky 2.1's image to image."""
    config = {**BETAS["scaled_linear"], grid: True, "final_sigmas_type": final}
    scheduler, free = ours({**config, "timestep_type": "integer"}, steps), ours(config, steps)
    assert scheduler.timesteps.dtype == torch.int64
    assert (scheduler.timesteps.diff() < 0).all()
    products = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    np.testing.assert_allclose(scheduler.sigmas[:-1], ((1 - products) / products).sqrt(), rtol=1e-3)
    nodes = zip(scheduler._nodes[:-1], free._nodes, strict=False)
    assert all(abs(node.time - other.time) <= (0.5 if steps <= 10 else steps) for node, other in nodes)


def test_more_whole_timesteps_than_there_are_is_refused():
    table = {"num_train_timesteps": 20, "beta_end": 0.5}
    config = {**table, "use_karras_sigmas": True, "timestep_type": "integer"}
    assert ours(config, 20).timesteps.tolist() == list(range(19, -1, -1))
    with pytest.raises(ValueError, match="lie in"):
        ours(config, 21)


@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_a_flow_whose_clock_runs_to_one(grid):
    options = {} if grid is None else {grid: True}
    scheduler = ours({**FLOW, "num_train_timesteps": 1, **options}, 8)
    of_thousand = ours({**FLOW, **options}, 8)
    torch.testing.assert_close(scheduler.sigmas, of_thousand.sigmas)
    torch.testing.assert_close(scheduler.timesteps, scheduler.sigmas[:-1])


def test_timesteps_go_to_the_device():
    assert ours({}, 5, "meta").timesteps.device.type == "meta"
    assert ours({}, 5, "meta").sigmas.device.type == "cpu"


def test_a_range_of_timesteps_before_a_run_is_the_training_range():
    assert EVODiffScheduler().timesteps.tolist() == list(range(999, -1, -1))
    flow = EVODiffScheduler(**FLOW, flow_shift=3.0)
    assert len(flow.timesteps) == 1000
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(flow.timesteps, other.timesteps, rtol=1e-5, atol=1e-3)
