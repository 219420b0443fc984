import copy
import math
import pickle
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep import (
    EDM,
    Discrete,
    Flow,
    Node,
    Schedule,
    VPCosine,
    VPLinear,
    from_times,
    karras,
    log_snr,
    time_quadratic,
    time_uniform,
    uniform,
)
from fewstep.grid import Grid, checked, focused, kl_optimal, scire_nsr
from fewstep.grid.base import VISIBLE
from golden import GRIDS, arrays, sd_table

EPS = sys.float_info.epsilon
BY_LAM = [log_snr, log_snr(order=2), karras, kl_optimal, scire_nsr, focused]
ALL = [*BY_LAM, time_uniform, time_quadratic, uniform]
SCHEDULES = [EDM(), EDM(0.5, 2.0), VPLinear(), VPCosine(), sd_table(), Flow(), Flow(shift=3.0)]
over_grids = pytest.mark.parametrize("grid", ALL, ids=repr)
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@Grid
def halving(schedule: Schedule, steps: int, *, base: float = 2.0) -> tuple[Node, ...]:
    """A grid of a user's own."""
    return tuple(schedule.node(schedule.t_max / base**i) for i in range(steps + 1))


def golden_grids(*files: str) -> list[tuple[str, str]]:
    return [
        (file, key)
        for file in files
        for key in arrays(file)
        if key.startswith("grid__") and key.endswith(("__80_0.002", "__t"))
    ]


@pytest.mark.parametrize(("file", "key"), golden_grids("evodiff", "dpm_solver_edm"))
def test_edm_grids_equal_the_authors(file, key):
    _, grid, steps, _ = key.split("__")
    nodes = GRIDS[grid](EDM(), int(steps.removeprefix("steps")), to_zero=False)
    # A seventh power, there and here by way of a logarithm of up to log(80 / 0.002) / 7: a few dozen roundings.
    np.testing.assert_allclose([n.sigma for n in nodes], arrays(file)[key], rtol=64 * EPS, atol=0)


@pytest.mark.parametrize(("file", "key"), golden_grids("dpm_solver"))
def test_vp_grids_equal_the_authors(file, key):
    _, name, grid, steps, _ = key.split("__")
    schedule = {"vp_linear": VPLinear(), "sd_discrete": sd_table()}[name]
    nodes = GRIDS[grid](schedule, int(steps.removeprefix("steps")), to_zero=False)
    times = np.array([n.time for n in nodes])
    if name == "sd_discrete":
        times = (times + 1) / 1000
    # The reference forms sigma^2 as 1 - alpha^2, with a rounding of EPS / sigma^2.
    rounding = 2 * EPS / nodes[-1].sigma ** 2
    np.testing.assert_allclose(times, arrays(file)[key], rtol=rounding, atol=0)
    np.testing.assert_allclose([n.lam for n in nodes], arrays(file)[f"{key[:-3]}__lambda"], rtol=0, atol=rounding)


def authors_nodes(file: str, key: str) -> tuple[Schedule, int, np.ndarray]:
    """Schedule and steps that a grid's key names, and its nodes in the schedule's clock."""
    _, name, _, steps, _ = key.split("__")
    times = arrays(file)[key]
    if name == "sd_discrete":
        return sd_table(), int(steps.removeprefix("steps")), times * 1000 - 1
    return VPLinear(), int(steps.removeprefix("steps")), times


@pytest.mark.parametrize("key", [key for _, key in golden_grids("scire_solver")])
def test_scire_grids_equal_the_authors(key):
    schedule, steps, times = authors_nodes("scire_solver", key)
    grid = scire_nsr if "__NSR__" in key else time_uniform
    nodes = grid(schedule, steps, to_zero=False)
    # The reference forms sigma^2 as 1 - alpha^2, as above; then a difference with k nsr_end, which is 4 times larger.
    rounding = 8 * EPS / nodes[-1].sigma ** 2
    np.testing.assert_allclose([n.time for n in nodes], times, rtol=rounding, atol=rounding)
    nsr = arrays("scire_solver")[key.removesuffix("t") + "nsr"]
    np.testing.assert_allclose([n.nsr for n in nodes], nsr, rtol=rounding)


SA_GRIDS = {"logSNR1": log_snr, "logSNR2": log_snr(order=2), "time1": time_uniform, "time2": time_quadratic}


@pytest.mark.parametrize("key", [key for _, key in golden_grids("sa_solver") if "karras" not in key])
def test_sa_grids_equal_the_authors(key):
    schedule, steps, times = authors_nodes("sa_solver", key)
    nodes = SA_GRIDS[key.split("__")[2]](schedule, steps, to_zero=False)
    rounding = 2 * EPS / nodes[-1].sigma ** 2
    np.testing.assert_allclose([n.time for n in nodes], times, rtol=rounding)
    lams = arrays("sa_solver")[key.removesuffix("t") + "lambda"]
    np.testing.assert_allclose([n.lam for n in nodes], lams, rtol=0, atol=rounding)


@pytest.mark.parametrize("key", [key for _, key in golden_grids("sa_solver") if "karras" in key])
def test_sa_karras_is_ours_between_ratios_of_80_and_the_end(key):
    schedule, steps, times = authors_nodes("sa_solver", key)
    start = schedule.time_at(-math.log(80))
    nodes = karras(VPLinear(t_max=start), steps, to_zero=False)
    np.testing.assert_allclose([n.time for n in nodes], times, rtol=2 * EPS / nodes[-1].sigma ** 2)


def first_and_last(grid: Grid, schedule: Schedule) -> tuple[Node, Node]:
    if grid in BY_LAM and isinstance(schedule, Flow):
        return tuple(schedule.node(schedule.time_at(lam)) for lam in (-math.log(999.0), math.log(999.0)))
    return schedule.node(schedule.t_max), schedule.node(schedule.t_min)


@over_grids
@over_schedules
def test_every_grid_has_steps_plus_one_falling_nodes_between_exact_ends(grid, schedule):
    start, end = first_and_last(grid, schedule)
    clean = schedule.node(schedule.t_clean)
    for steps in range(1, 51):
        for to_zero in (None, True, False):
            nodes = grid(schedule, steps, to_zero=to_zero)
            assert len(nodes) == steps + 1
            assert all(s.lam < t.lam for s, t in pairwise(nodes))
            assert checked(nodes) == nodes
            closes = end.sigma > 0 and (to_zero or (to_zero is None and end.sigma / end.alpha > 1 / 64))
            assert nodes[0] == start
            assert nodes[-1] == (clean if closes else end)
            if closes and steps > 1:
                assert nodes[-2] == end


def test_default_closes_where_the_noise_left_is_visible():
    assert pytest.approx(2 / 128) == VISIBLE  # two of the 128 grey levels in a unit
    for schedule, closes in [
        (EDM(), False),
        (EDM(sigma_min=VISIBLE), False),
        (EDM(sigma_min=math.nextafter(VISIBLE, 1)), True),
        (VPLinear(), False),
        (sd_table(), True),
        (Flow(), True),
    ]:
        assert (uniform(schedule, 4)[-1].sigma == 0) is closes


def evenly(values: list[float], rounding: float) -> None:
    np.testing.assert_allclose(values, np.linspace(values[0], values[-1], len(values)), rtol=0, atol=rounding)


@over_schedules
def test_log_snr_is_even_in_lam(schedule):
    lams = [n.lam for n in log_snr(schedule, 9, to_zero=False)]
    # At t near 1, Flow and VPCosine round alpha = 1 - t: EPS / alpha.
    evenly(lams, 16 * EPS * (max(map(abs, lams)) + math.exp(-lams[0]) * isinstance(schedule, Flow | VPCosine)))


@over_schedules
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_even_in_a_root_of_the_noise_to_signal_ratio(schedule, rho):
    nodes = karras(schedule, 9, rho=rho, to_zero=False)
    roots = [n.nsr ** (1 / rho) for n in nodes]
    # The clean end is `lam` EPS of the noisy end, by way of a logarithm; alpha = 1 - t again.
    rounding = 32 * EPS * (1 + nodes[0].nsr * isinstance(schedule, Flow | VPCosine))
    evenly(roots, rounding * roots[0])


@given(rho=st.floats(0.5, 1e3), steps=st.integers(2, 12))
def test_karras_ends_do_not_depend_on_rho(rho, steps):
    nodes = karras(EDM(), steps, rho=rho)
    assert (nodes[0].sigma, nodes[-1].sigma) == (80.0, 0.002)
    # A larger rho moves every inner node towards clean data.
    assert all(a.sigma < b.sigma for a, b in zip(karras(EDM(), steps, rho=2 * rho)[1:-1], nodes[1:-1], strict=True))


def test_karras_tends_to_log_snr():
    rho = 1e6
    for a, b in zip(karras(EDM(), 8, rho=rho), log_snr(EDM(), 8), strict=True):
        # The next term of (v^(1 / rho) - 1) rho = log v + (log v)^2 / (2 rho), over the whole range.
        assert abs(a.lam - b.lam) <= math.log(80 / 0.002) ** 2 / (2 * rho)


@over_schedules
@pytest.mark.parametrize("order", [0.5, 2.0, 3.0])
def test_log_snr_of_an_order_is_even_in_a_root_of_the_way_in_lam(schedule, order):
    lams = [n.lam for n in log_snr(schedule, 9, order=order, to_zero=False)]
    roots = [((lam - lams[0]) / (lams[-1] - lams[0])) ** (1 / order) for lam in lams]
    # At t near 1, Flow and VPCosine round alpha = 1 - t: EPS / alpha. The root of a ninth's power magnifies it.
    rounding = EPS * (max(map(abs, lams)) + math.exp(-lams[0]) * isinstance(schedule, Flow | VPCosine))
    evenly(roots, 16 * 9**order * rounding / (lams[-1] - lams[0]))


@over_schedules
def test_kl_optimal_is_even_in_the_angle_of_noise_and_signal(schedule):
    # By way of a logarithm of the ratio, lam EPS of it, which the angle never magnifies.
    evenly([math.atan2(n.sigma, n.alpha) for n in kl_optimal(schedule, 9, to_zero=False)], 32 * EPS)


@over_schedules
@pytest.mark.parametrize("k", [0.5, 3.1, 20.0])
def test_scire_is_even_in_the_logarithm_of_a_shifted_ratio(schedule, k):
    nodes = scire_nsr(schedule, 9, k=k, to_zero=False)
    rounding = 32 * EPS * (1 + nodes[0].nsr * isinstance(schedule, Flow | VPCosine))
    evenly([math.log(n.nsr + k * nodes[-1].nsr) for n in nodes], rounding)


@over_schedules
def test_focused_without_a_focus_is_log_snr(schedule):
    # Its quantiles are interpolated between 4,001 points that lie evenly already.
    for a, b in zip(focused(schedule, 8, rise=0, fall=0), log_snr(schedule, 8), strict=True):
        assert a.lam == pytest.approx(b.lam, rel=1e-12, abs=1e-12)


def test_focused_without_a_noisy_side_is_karras():
    # Of z < 1e-7 the cube is nothing beside z^(-1 / 7); quantiles of 4,001 points err by (dlam / 7)^2 / 8 of a point.
    for a, b in zip(focused(EDM(), 8, center=1e9, rise=3, fall=1 / 7), karras(EDM(), 8), strict=True):
        assert a.lam == pytest.approx(b.lam, abs=1e-6)


NARROW = EDM(0.03, 8.0)  # two centers of images: like Stable Diffusion's range for its latents


@pytest.mark.parametrize(
    ("schedule", "options", "center", "rise", "fall"),
    [
        (EDM(), {}, 4, 0.6, 0.22 + 0.09 * math.log(40_000) / 400),
        (NARROW, {"data_std": 0.5}, 4, 0.6 * math.log(2) / 2.9, 0.22 + 0.09 * math.log(800 / 3) / 400),
        (NARROW, {"data_std": 1.0}, 8, 0, 0.22 + 0.09 * math.log(800 / 3) / 400),
        (NARROW, {"data_std": 4.0}, 32, 0, 0.22 + 0.09 * math.log(800 / 3) / 400),
        (EDM(), {"center": 6, "rise": 0.45, "fall": 0.2}, 6, 0.45, 0.2),
    ],
)
def test_focused_steps_are_in_inverse_proportion_to_the_density(schedule, options, center, rise, fall):
    lams = np.array([n.lam for n in focused(schedule, 400, to_zero=False, **options)])
    z = np.exp(-(lams[1:] + lams[:-1]) / 2) / center
    step = z**rise + z**-fall
    # The midpoint rule is wrong by h^2 / 24 of the density's curvature, h < 0.1; quantiles by 1e-5 of a step.
    np.testing.assert_allclose(np.diff(lams) / step, (np.diff(lams) / step).mean(), rtol=1e-3)


@over_schedules
def test_scire_without_a_shift_is_log_snr(schedule):
    for a, b in zip(scire_nsr(schedule, 8, k=0), log_snr(schedule, 8), strict=True):
        # A power of up to nsr_start / nsr_end, by way of its logarithm.
        assert a.time == pytest.approx(b.time, rel=64 * EPS, abs=1024 * EPS)


def before_the_shift(schedule, nodes):
    """The inverse of shift u / (1 + (shift - 1) u)."""
    shift = schedule.shift if isinstance(schedule, Flow) else 1.0
    return [n.time / (shift + (1 - shift) * n.time) if shift != 1 else n.time for n in nodes]


@over_schedules
def test_time_uniform_is_even_in_the_clock_before_the_shift(schedule):
    times = before_the_shift(schedule, time_uniform(schedule, 9, to_zero=False))
    evenly(times, 8 * EPS * max(schedule.t_max, 1))


def test_time_uniform_shifts_flow_as_published():
    times = [n.time for n in time_uniform(Flow(shift=3.0), 4)]
    assert times == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0], rel=4 * EPS)


@over_schedules
def test_time_quadratic_is_even_in_the_root_of_the_clock_before_the_shift(schedule):
    times = before_the_shift(schedule, time_quadratic(schedule, 9, to_zero=False))
    evenly([math.sqrt(t) for t in times], 16 * EPS * math.sqrt(schedule.t_max))


@over_schedules
def test_uniform_is_even_in_what_the_schedule_names(schedule):
    other = time_uniform if isinstance(schedule, Flow | Discrete) else log_snr
    for to_zero in (None, True, False):
        assert uniform(schedule, 5, to_zero=to_zero) == other(schedule, 5, to_zero=to_zero)


@over_grids
def test_options_give_a_grid_that_has_them(grid):
    closed = grid(to_zero=True)
    assert closed(EDM(), 5) == grid(EDM(), 5, to_zero=True) != grid(EDM(), 5)
    assert closed(to_zero=False)(EDM(), 5) == grid(EDM(), 5, to_zero=False)
    assert closed(EDM(), 5, to_zero=False) == grid(EDM(), 5, to_zero=False)
    assert grid() == grid


def test_repr_is_the_call_that_made_it():
    assert repr(karras) == "karras"
    assert repr(karras(rho=5, to_zero=True)) == "karras(rho=5, to_zero=True)"
    assert eval(repr(karras(rho=5)), {"karras": karras}) == karras(rho=5)


def test_grids_are_values():
    assert karras(rho=5, to_zero=True) == karras(to_zero=True)(rho=5)
    assert hash(karras(rho=5, to_zero=True)) == hash(karras(to_zero=True, rho=5))
    assert len({*ALL, karras(rho=5), karras(rho=6), log_snr(to_zero=True)}) == len(ALL) + 3
    assert karras != "karras"


@pytest.mark.parametrize("grid", [*ALL, karras(rho=5, to_zero=True), halving, halving(base=3.0)], ids=repr)
def test_grids_survive_pickle_and_copy(grid):
    for same in (pickle.loads(pickle.dumps(grid)), copy.copy(grid), copy.deepcopy(grid)):
        assert same == grid
        assert repr(same) == repr(grid)
        assert same(EDM(), 3) == grid(EDM(), 3)


@over_grids
@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None, "5", math.nan])
def test_steps_must_be_a_count(grid, steps):
    with pytest.raises(ValueError, match=f"^steps must be an integer of at least 1; got {steps!r}$"):
        grid(EDM(), steps)


@pytest.mark.parametrize("rho", [0, -7.0, math.inf, math.nan])
def test_rho_must_be_positive(rho):
    with pytest.raises(ValueError, match=f"^rho must be positive.*; got rho={rho!r}$"):
        karras(EDM(), 5, rho=rho)


@pytest.mark.parametrize("order", [0, -1.0, math.inf, math.nan])
def test_order_must_be_positive(order):
    with pytest.raises(ValueError, match=f"^order must be positive; got order={order!r}$"):
        log_snr(EDM(), 5, order=order)


@pytest.mark.parametrize("k", [-0.1, math.inf, math.nan])
def test_k_must_not_be_negative(k):
    with pytest.raises(ValueError, match=f"^k must be finite and at least 0; got k={k!r}$"):
        scire_nsr(EDM(), 5, k=k)


def peer_sigmas(steps: int, **options: bool) -> tuple[list[float], EDM]:
    """sigma / alpha of diffusers' Euler scheduler, and a schedule of the range of its table."""
    scheduler = pytest.importorskip("diffusers").EulerDiscreteScheduler(beta_schedule="scaled_linear", **options)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.tolist()
    return sigmas, EDM(sigma_min=sigmas[-2], sigma_max=sigmas[0])


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 30, 50])
def test_karras_and_log_snr_equal_diffusers(steps):
    for grid, option in [(karras, "use_karras_sigmas"), (log_snr, "use_exponential_sigmas")]:
        sigmas, schedule = peer_sigmas(steps, **{option: True})
        nodes = grid(schedule, steps, to_zero=True)
        np.testing.assert_allclose([n.sigma for n in nodes], sigmas, rtol=4e-7)  # its numbers are float32


def test_from_times_takes_lists_arrays_tensors_and_generators():
    times = [80.0, 3.0, 0.25, 0.0]
    expected = tuple(EDM().node(t) for t in times)
    for same in (times, tuple(times), np.array(times), torch.tensor(times), (t for t in times)):
        nodes = from_times(EDM(), same)
        assert nodes == expected
        assert all(type(v) is float for node in nodes for v in node)


@over_grids
@over_schedules
def test_from_times_reads_back_any_grid(grid, schedule):
    nodes = grid(schedule, 7)
    assert from_times(schedule, [n.time for n in nodes]) == nodes


def test_from_times_may_rise():
    times = [0.002, 1.0, 80.0]
    assert [n.time for n in from_times(EDM(), times)] == times


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "^times must hold at least 2 points; got 0$"),
        ([1.0], "^times must hold at least 2 points; got 1$"),
        ([80.0, math.nan, 1.0], "^time must .* got nan$"),
        ([math.inf, 1.0], "^time must .* got inf$"),
        ([80.0, -1.0], "^time must .* got -1.0$"),
        ([80.0, 1.0, 2.0], "^times must be strictly sorted .* got time 2.0 after 1.0 at index 2"),
        ([1.0, 2.0, 0.5], "^times must be strictly sorted .* got time 0.5 after 2.0 at index 2"),
        ([80.0, 80.0, 1.0], "^times must be strictly sorted .* got time 80.0 after 80.0 at index 1"),
        ([80.0, 1.0, 1.0], "^times must be strictly sorted .* got time 1.0 after 1.0 at index 2"),
        ([80.0, 1.0, 0.0, 0.0], "^times must be strictly sorted .* got time 0.0 after 0.0 at index 3"),
        ([80.0, 0.0, 1.0], "^times must be strictly sorted .* got time 1.0 after 0.0 at index 2"),
        ([0.0, 1.0], "^times must not start at sigma = 0"),
    ],
)
def test_from_times_refuses_what_is_not_a_grid(times, message):
    with pytest.raises(ValueError, match=message):
        from_times(EDM(), times)


GOOD = [Node(3.0, 1.0, 3.0), Node(2.0, 1.0, 2.0), Node(1.0, 1.0, 1.0)]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("field", ["time", "alpha", "sigma"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_checked_names_the_node_that_is_not_finite(index, field, value):
    nodes = [*GOOD]
    nodes[index] = nodes[index]._replace(**{field: value})
    with pytest.raises(ValueError, match=rf"^path must be finite .*{field}={value}.* at index {index}$"):
        checked(nodes, "path")


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("field", ["alpha", "sigma"])
def test_checked_names_the_node_that_is_negative(index, field):
    nodes = [*GOOD]
    nodes[index] = nodes[index]._replace(**{field: -1.0})
    with pytest.raises(ValueError, match=rf"^nodes must be .* >= 0; got .*{field}=-1.0.* at index {index}$"):
        checked(nodes)


def test_checked_says_how_to_make_nodes_of_times():
    with pytest.raises(TypeError, match=r"^grid must hold nodes; got 80.0 at index 0: .*from_times"):
        checked([80.0, 1.0], "grid")


def test_checked_takes_pure_noise_and_clean_data_at_the_ends():
    nodes = [Flow().node(t) for t in (1.0, 0.5, 0.0)]
    assert checked(iter(nodes)) == tuple(nodes)
    assert checked(nodes[-2::-1]) == tuple(nodes[-2::-1])


def test_checked_refuses_clean_data_at_the_start():
    with pytest.raises(ValueError, match=r"^nodes must not start at sigma = 0.*leave that node out"):
        checked([Flow().node(t) for t in (0.0, 0.5, 1.0)])
