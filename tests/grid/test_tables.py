import math
import pickle
import sys
from itertools import pairwise

import numpy as np
import pytest

from fewstep import EDM, Discrete, Flow, VPCosine, VPLinear, uniform
from fewstep.grid import ays, checked, gits
from fewstep.grid.tables import AYS, FIT, GITS
from golden import sd_table

EPS = sys.float_info.epsilon
# sigma / alpha of Stable Diffusion's range on every kind of clock that reaches it exactly.
SD_ENDS = sd_table().lam_range
SD_LIKE = [
    sd_table(),
    EDM(sigma_min=math.exp(-SD_ENDS[1]), sigma_max=math.exp(-SD_ENDS[0])),
    VPLinear(t_min=VPLinear().time_at(SD_ENDS[1]), t_max=VPLinear().time_at(SD_ENDS[0])),
    VPCosine(t_min=VPCosine().time_at(SD_ENDS[1]), t_max=VPCosine().time_at(SD_ENDS[0])),
]
CASES = [
    *[(grid, schedule) for grid in (ays, ays(model="sdxl"), gits) for schedule in SD_LIKE],
    (ays(model="svd"), EDM(sigma_max=700.0)),
    (gits(model="cifar10"), EDM()),
]
over_cases = pytest.mark.parametrize(
    ("grid", "schedule"), CASES, ids=[f"{grid}-{type(schedule).__name__}" for grid, schedule in CASES]
)


@pytest.mark.parametrize(("model", "name"), [("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
def test_ays_equals_the_timesteps_and_the_sigmas_of_diffusers(model, name):
    published = pytest.importorskip("diffusers.schedulers.scheduling_utils").AysSchedules
    nodes = ays(sd_table(), 10, model=model)
    assert [node.time for node in nodes] == [*published[f"{name}Timesteps"], -1]
    # Its sigmas are of slightly other levels, such as 3.861 for 3.8637 at index 736.
    np.testing.assert_allclose([node.nsr for node in nodes], published[f"{name}Sigmas"], rtol=0, atol=4e-3)


def test_ays_for_video_equals_diffusers():
    published = pytest.importorskip("diffusers.schedulers.scheduling_utils").AysSchedules
    nodes = ays(EDM(sigma_max=700.0), 10, model="svd", to_zero=True)
    expected = published["StableDiffusionVideoSigmas"]
    np.testing.assert_allclose([node.sigma for node in nodes], expected, rtol=8 * EPS, atol=0)


@pytest.mark.parametrize("steps", range(2, 21))
def test_gits_equals_its_row_at_every_published_count(steps):
    row = GITS["sd15"][steps]
    assert len(row) == steps + 1
    nodes = gits(SD_LIKE[1], steps, to_zero=False)
    # Seven digits at the ends.
    np.testing.assert_allclose([node.sigma for node in nodes], row, rtol=2e-5, atol=0)
    np.testing.assert_allclose([node.sigma for node in nodes[1:-1]], row[1:-1], rtol=8 * EPS, atol=0)
    assert gits(SD_LIKE[1], steps)[-1].sigma == 0


def test_gits_for_cifar10_is_the_published_example():
    sigmas = [node.sigma for node in gits(EDM(), 6, model="cifar10")]
    np.testing.assert_allclose(sigmas, [80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002], rtol=8 * EPS, atol=0)


def test_rows_of_tables_fall_and_leave_room_for_the_fit():
    rows = [*AYS.values(), *(row for rows in GITS.values() for row in rows.values())]
    for row in rows:
        ratios = [a / b for a, b in pairwise(row)]
        assert min(ratios) > 1
        assert min(ratios[0], ratios[-1]) > FIT


def interpolated(row: tuple[float, ...], steps: int) -> np.ndarray:
    """The rule that AYS's authors publish: numpy's interpolation of the reversed logarithms."""
    places, wanted = np.linspace(0, 1, len(row)), np.linspace(0, 1, steps + 1)
    return np.exp(np.interp(wanted, places, np.log(row[::-1])))[::-1]


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 9, 11, 20, 30, 50])
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_ays_is_log_linear_at_other_counts(model, steps):
    nodes = ays(SD_LIKE[1], steps, model=model, to_zero=False)
    expected = interpolated(AYS[model], steps)
    # The ends are the schedule's, which the table has to ten digits.
    np.testing.assert_allclose([node.sigma for node in nodes], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("steps", [21, 25, 50])
def test_gits_is_log_linear_between_the_levels_of_its_longest_row(steps):
    nodes = gits(SD_LIKE[1], steps, to_zero=False)
    np.testing.assert_allclose([n.sigma for n in nodes], interpolated(GITS["sd15"][20], steps), rtol=2e-5, atol=0)


@over_cases
def test_tables_have_steps_plus_one_falling_nodes_and_end_as_asked(grid, schedule):
    start, end, clean = (schedule.node(t) for t in (schedule.t_max, schedule.t_min, schedule.t_clean))
    for steps in range(1, 51):
        for to_zero in (None, True, False):
            nodes = grid(schedule, steps, to_zero=to_zero)
            assert len(nodes) == steps + 1
            assert checked(nodes) == nodes
            assert all(s.lam < t.lam for s, t in pairwise(nodes))
            assert nodes[0] == start
            assert nodes[-1] == (clean if to_zero or (to_zero is None and end.nsr > 1 / 64) else end)
        # The step to sigma = 0 replaces the last one, and moves no other level.
        assert grid(schedule, steps, to_zero=True)[:-1] == grid(schedule, steps, to_zero=False)[:-1]


@pytest.mark.parametrize("schedule", SD_LIKE, ids=lambda s: type(s).__name__)
def test_levels_are_the_same_on_every_clock(schedule):
    lams = [node.lam for node in ays(schedule, 17, to_zero=False)]
    expected = [node.lam for node in ays(SD_LIKE[1], 17, to_zero=False)]
    np.testing.assert_allclose(lams, expected, rtol=0, atol=4096 * EPS)  # by way of the time, and sigma / alpha to 34


def test_ends_may_differ_a_little_and_are_then_the_schedules_own():
    schedule = EDM(sigma_min=0.0291671582 * 1.4, sigma_max=14.6146412293 / 1.4)
    for steps in (10, 50):
        nodes = ays(schedule, steps, to_zero=False)
        assert (nodes[0].sigma, nodes[-1].sigma) == (schedule.sigma_max, schedule.sigma_min)
        assert checked(nodes) == nodes


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), VPCosine(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [ays, ays(model="sdxl"), ays(model="svd"), gits], ids=repr)
def test_another_range_is_refused(grid, schedule):
    with pytest.raises(ValueError, match=r"leads from sigma / alpha = .* but this schedule from .*: .* use log_snr or"):
        grid(schedule, 10)


def test_a_table_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"^gits\(model='cifar10'\) leads from sigma / alpha = 80 to 0.002, but"):
        gits(sd_table(), 6, model="cifar10")
    zero_snr = Discrete([*sd_table().alphas_cumprod[:-1], 0.0])
    with pytest.raises(ValueError, match=r"^ays\(model='sd15'\) leads .* but this schedule from 4096 to 0.0291672"):
        ays(zero_snr, 10)


@pytest.mark.parametrize("grid", [ays, gits], ids=repr)
def test_an_unknown_model_is_refused(grid):
    with pytest.raises(ValueError, match=r"^model must be one of 'sd15', .*; got 'sd3'$"):
        grid(sd_table(), 10, model="sd3")


def test_grids_are_values_that_survive_pickle():
    for grid in (ays(model="sdxl"), gits(model="cifar10", to_zero=True)):
        assert pickle.loads(pickle.dumps(grid)) == grid


def test_visible_ends_close_as_on_other_grids():
    assert ays(sd_table(), 10)[-1] == uniform(sd_table(), 10)[-1]
    assert gits(EDM(), 6, model="cifar10")[-1] == uniform(EDM(), 6)[-1]
