import math
import pickle
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep import EDM, Discrete, Flow, VPCosine, VPLinear, integrate, time_uniform
from fewstep.grid import beta, checked, leading, linear_quadratic, linspace, trailing
from golden import sd_table

EPS = sys.float_info.epsilon
SPACINGS = [linspace, linspace(drop_last=True), leading, leading(offset=1), leading(drop_last=True), trailing]
SCHEDULES = [EDM(), EDM(0.5, 2.0), VPLinear(), VPCosine(), sd_table(), Flow(), Flow(shift=3.0)]
over_spacings = pytest.mark.parametrize("grid", SPACINGS, ids=repr)
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
# Every count up to 64, and those where multiples are few, or halves, or numpy's range overruns.
COUNTS = [*range(1, 65), 96, 103, 112, 121, 125, 144, 192, 206, 240, 250, 333, 334, 499, 500, 501, 667, 900, 999, 1000]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def peer(name: str, steps: int, **options) -> list[float]:
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**SD, **options)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def times(grid, steps: int, to_zero: bool = True) -> list[float]:
    """The times where the model is called."""
    return [node.time for node in grid(sd_table(), steps, to_zero=to_zero)[:-1]]


def test_linspace_equals_ddim():
    for steps in COUNTS[1:]:
        assert times(linspace, steps) == peer("DDIMScheduler", steps, timestep_spacing="linspace"), steps


def test_one_step_of_linspace_starts_at_noise():
    assert times(linspace, 1) == [999]
    assert peer("DDIMScheduler", 1, timestep_spacing="linspace") == [0]


@pytest.mark.parametrize("offset", [0, 1, np.uint8(1)])
def test_leading_equals_ddim(offset):
    for steps in COUNTS[:-1]:
        expected = peer("DDIMScheduler", steps, timestep_spacing="leading", steps_offset=int(offset))
        assert times(leading(offset=offset), steps) == expected, steps


def test_trailing_equals_ddim():
    for steps in COUNTS:
        # Where a range of floats overruns, diffusers has a last timestep of -1.
        expected = [t for t in peer("DDIMScheduler", steps, timestep_spacing="trailing") if t >= 0]
        assert times(trailing, steps) == expected, steps


@pytest.mark.parametrize("steps", [61, 103, 121])
def test_the_entry_too_many_of_diffusers_is_there_and_not_here(steps):
    assert peer("DDIMScheduler", steps, timestep_spacing="trailing")[-1] == -1
    assert len(trailing(sd_table(), steps)) == steps + 1


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_spacings_equal_multistep_schedulers(name):
    for steps in COUNTS[::3]:
        assert times(linspace(drop_last=True), steps) == peer(name, steps, timestep_spacing="linspace"), steps
        expected = peer(name, steps, timestep_spacing="trailing")
        assert times(trailing, steps) == [t for t in expected if t >= 0], steps
        for offset in (0, 1) if steps < 999 else ():
            expected = peer(name, steps, timestep_spacing="leading", steps_offset=offset)
            assert times(leading(offset=offset, drop_last=True), steps) == expected, steps


def test_spacings_equal_euler():
    for steps in COUNTS[1::4]:
        assert times(leading, steps) == peer("EulerDiscreteScheduler", steps, timestep_spacing="leading"), steps
        expected = peer("EulerDiscreteScheduler", steps, timestep_spacing="trailing")
        assert times(trailing, steps) == [t for t in expected if t >= 0], steps
        # Euler's linspace is not rounded to integers: it is time_uniform, in float32.
        expected = peer("EulerDiscreteScheduler", steps, timestep_spacing="linspace")
        np.testing.assert_allclose(times(time_uniform, steps), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_levels_equal_a_multistep_scheduler(spacing, final):
    grid = {"linspace": linspace(drop_last=True), "leading": leading(drop_last=True), "trailing": trailing}[spacing]
    for steps in (1, 2, 7, 10, 48):
        scheduler = pytest.importorskip("diffusers").DPMSolverMultistepScheduler(
            **SD, timestep_spacing=spacing, final_sigmas_type=final
        )
        scheduler.set_timesteps(steps)
        levels = [node.nsr for node in grid(sd_table(), steps, to_zero=final == "zero")]
        # The scheduler's table is a product in float32: 1000 roundings.
        np.testing.assert_allclose(levels, scheduler.sigmas.numpy(), rtol=6e-8 * 1000, atol=0)


@over_spacings
def test_spacings_have_steps_plus_one_falling_integers_and_end_as_asked(grid):
    schedule = sd_table()
    for steps in range(1, 51):
        for to_zero in (None, True, False):
            nodes = grid(schedule, steps, to_zero=to_zero)
            assert len(nodes) == steps + 1
            assert checked(nodes) == nodes
            assert all(s.lam < t.lam for s, t in pairwise(nodes))
            assert all(node.time == int(node.time) for node in nodes)
            assert nodes[-1] == schedule.node(0.0 if to_zero is False else -1.0)
        if "leading" not in repr(grid):
            assert nodes[0].time == 999


def test_a_clean_end_that_does_not_show_is_index_0():
    quiet = Discrete([1 - 0.5 * 0.8**i for i in range(49, -1, -1)])
    assert [node.time for node in linspace(quiet, 7)] == [49, 42, 35, 28, 21, 14, 7, 0]
    assert [node.time for node in leading(quiet, 4)] == [40, 30, 20, 10, 0]
    assert [node.time for node in trailing(quiet, 5)] == [49, 39, 29, 19, 9, 0]


def nodes_or_message(grid, *args, **options):
    try:
        return grid(*args, **options), ""
    except ValueError as error:
        return (), str(error)


@given(size=st.integers(2, 40), steps=st.integers(1, 60), to_zero=st.sampled_from([None, True, False]))
def test_a_small_table_gives_a_grid_or_says_why_not(size, steps, to_zero):
    schedule = Discrete([0.9 * 0.8**i for i in range(size)])
    for grid in SPACINGS:
        nodes, message = nodes_or_message(grid, schedule, steps, to_zero=to_zero)
        if message:
            assert steps > size / 2 - 2
            assert "fewer steps" in message or "lower the offset or steps" in message
        else:
            assert len(nodes) == steps + 1
            assert checked(nodes) == nodes


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [linspace, leading, trailing], ids=repr)
def test_spacings_want_a_table(grid, schedule):
    with pytest.raises(ValueError, match=rf"^{grid} counts the entries of a Discrete table; got .*: use time_uniform$"):
        grid(schedule, 5)


@pytest.mark.parametrize("offset", [-1, 0.5, True, None])
def test_offset_must_be_a_count(offset):
    with pytest.raises(ValueError, match=f"^offset must be an integer of at least 0; got {offset!r}$"):
        leading(sd_table(), 5, offset=offset)


def test_an_offset_off_the_table_is_refused():
    with pytest.raises(ValueError, match=r"^leading starts at index 1000 of a table of 1000 entries: lower the offset"):
        leading(sd_table(), 1000, offset=1)


def test_more_steps_than_entries_are_refused():
    with pytest.raises(ValueError, match=r"^linspace visits a noise level twice in 1001 steps: take fewer steps"):
        linspace(sd_table(), 1001)


def quantile(a: float, b: float, u: float) -> float:
    stats = pytest.importorskip("scipy.stats")
    return float(stats.beta.ppf(u, a, b))


@over_schedules
@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.7), (1.0, 2.0)])
def test_beta_is_quantiles_of_the_clock(schedule, a, b):
    nodes = beta(schedule, 9, a=a, b=b, to_zero=False)
    expected = [schedule.ramp(quantile(a, b, 1 - i / 9)) for i in range(10)]
    np.testing.assert_allclose([n.time for n in nodes], expected, rtol=64 * EPS, atol=64 * EPS * schedule.t_max)


@over_schedules
def test_beta_has_steps_plus_one_falling_nodes_between_exact_ends(schedule):
    pytest.importorskip("scipy")
    start, end, clean = (schedule.node(t) for t in (schedule.t_max, schedule.t_min, schedule.t_clean))
    for steps in range(1, 51):
        for to_zero in (None, True, False):
            nodes = beta(schedule, steps, to_zero=to_zero)
            assert len(nodes) == steps + 1
            assert checked(nodes) == nodes
            closes = end.sigma > 0 and (to_zero or (to_zero is None and end.nsr > 1 / 64))
            assert (nodes[0], nodes[-1]) == (start, clean if closes else end)
            assert not (closes and steps > 1) or nodes[-2] == end


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 30, 50])
def test_beta_on_edm_equals_diffusers(steps):
    scheduler = pytest.importorskip("diffusers").EulerDiscreteScheduler(**SD, use_beta_sigmas=True)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.tolist()
    nodes = beta(EDM(sigma_min=sigmas[-2], sigma_max=sigmas[0]), steps, to_zero=True)
    # float32, of the range's ends and of the results.
    np.testing.assert_allclose([n.sigma for n in nodes], sigmas, rtol=4e-7, atol=0)


def test_beta_of_one_and_one_is_time_uniform():
    pytest.importorskip("scipy")
    for a, b in zip(beta(VPLinear(), 8, a=1.0, b=1.0), time_uniform(VPLinear(), 8), strict=True):
        assert a.time == pytest.approx(b.time, rel=8 * EPS)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, -1.0), (math.nan, 1), (math.inf, 1)])
def test_beta_parameters_must_be_positive_and_finite(a, b):
    with pytest.raises(ValueError, match=rf"^a and b must be positive and finite; got a={a!r}, b={b!r}$"):
        beta(EDM(), 5, a=a, b=b)


def test_beta_refuses_parameters_that_leave_no_steps():
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=r"^beta\(a=0.001, b=0.001\) visits a noise level twice.*nearer to 1$"):
        beta(EDM(), 20, a=0.001, b=0.001)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"^beta needs scipy: pip install 'fewstep\[bench\]'$"):
        beta(EDM(), 5)


def published_linear_quadratic(steps: int, threshold: float, linear: int) -> list[float]:
    """Mochi's polynomial in the index."""
    curved = steps - linear
    missing = linear - threshold * steps
    square, slope = missing / (linear * curved**2), threshold / linear - 2 * missing / curved**2
    line = [i * threshold / linear for i in range(linear)]
    curve = [square * i**2 + slope * i + square * linear**2 for i in range(linear, steps + 1)]
    return [1 - level for level in line + curve]


@pytest.mark.parametrize(("threshold", "linear"), [(0.025, None), (0.025, 2), (0.1, None), (0.4, None)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_linear_quadratic_equals_the_published_polynomial(threshold, linear, shift):
    for steps in (4, 5, 10, 25, 50):
        nodes = linear_quadratic(Flow(shift), steps, threshold=threshold, linear_steps=linear)
        levels = published_linear_quadratic(steps, threshold, linear or steps // 2)
        expected = [shift * level / (1 + (shift - 1) * level) for level in levels]
        # The polynomial cancels: terms of steps^2 in the square of the index.
        np.testing.assert_allclose([n.time for n in nodes], expected, rtol=0, atol=4 * steps**2 * EPS)


@pytest.mark.parametrize("schedule", [Flow(), Flow(shift=3.0)], ids=repr)
def test_linear_quadratic_has_steps_plus_one_falling_nodes_from_noise_to_clean(schedule):
    for steps in range(1, 51):
        nodes = linear_quadratic(schedule, steps)
        assert len(nodes) == steps + 1
        assert checked(nodes) == nodes
        assert (nodes[0].time, nodes[-1].time) == (1.0, 0.0)


@given(threshold=st.floats(0.001, 0.999), steps=st.integers(2, 50), linear=st.integers(1, 49), shift=st.floats(0.1, 10))
def test_linear_quadratic_falls_or_says_why_not(threshold, steps, linear, shift):
    linear = min(linear, steps - 1)
    nodes, message = nodes_or_message(linear_quadratic, Flow(shift), steps, threshold=threshold, linear_steps=linear)
    if message:
        # The slope at the end of the parabola has the wrong sign, or nearly.
        assert 2 * linear * (1 - threshold) - threshold * (steps - linear) < threshold
        assert "lower the threshold or raise linear_steps" in message
    else:
        assert checked(nodes) == nodes


def test_linear_quadratic_wants_a_flow():
    with pytest.raises(ValueError, match=r"^linear_quadratic is a grid for Flow; got EDM\(.*: use time_uniform"):
        linear_quadratic(EDM(), 5)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, math.nan])
def test_threshold_must_be_a_fraction(threshold):
    with pytest.raises(ValueError, match=f"^threshold must lie between 0 and 1; got threshold={threshold!r}$"):
        linear_quadratic(Flow(), 5, threshold=threshold)


@pytest.mark.parametrize("linear", [0, 5, 6])
def test_linear_steps_must_leave_some(linear):
    with pytest.raises(ValueError, match=rf"^linear_steps must lie in 1 ... .* = 4; got linear_steps={linear}$"):
        linear_quadratic(Flow(), 5, linear_steps=linear)


@pytest.mark.parametrize(
    "grid",
    [linspace(drop_last=True), leading(offset=1), trailing, beta(a=0.5), linear_quadratic(threshold=0.1)],
    ids=repr,
)
def test_grids_are_values_that_survive_pickle(grid):
    assert pickle.loads(pickle.dumps(grid)) == grid


def test_a_run_on_a_spacing_is_calls_the_model_at_its_integers():
    import torch

    nodes = leading(sd_table(), 10, offset=1)
    calls = []
    integrate(lambda x, t: (calls.append(t), 0 * x)[1], torch.ones(1, 2), nodes, schedule=sd_table())
    assert calls == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
