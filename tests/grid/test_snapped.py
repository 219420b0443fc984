import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fewstep as fs
from fewstep.grid import snapped, trailing
from golden import sd_table

FIFTY = [i / 50 for i in range(51)]


@given(steps=st.integers(1, 200))
def test_a_table_is_called_at_its_entries_in_order(steps):
    times = [node.time for node in snapped(sd_table(), steps)]
    assert len(times) == steps + 1
    assert all(time == int(time) for time in times)
    assert all(a > b for a, b in pairwise(times))


@given(steps=st.integers(1, 20))
def test_nodes_move_by_no_more_than_half_a_level_where_there_is_room(steps):
    plain = fs.time_uniform(fs.Flow(), steps)
    for node, level in zip(plain, snapped(fs.Flow(), steps, grid=fs.time_uniform, times=FIFTY), strict=True):
        assert level.time in FIFTY
        assert abs(node.time - level.time) <= 0.5 / 50 + 1e-12


def test_levels_that_are_taken_go_to_neighbours_and_all_can_be_used():
    # focused has most of its nodes where Flow's 50 levels are sparse; with as many steps as levels, it takes them all.
    assert [node.time for node in snapped(fs.Flow(), 50, times=FIFTY, grid=fs.focused(to_zero=True))] == FIFTY[::-1]


def test_a_run_calls_the_model_at_its_levels():
    seen = []
    denoiser = fs.as_denoiser(lambda x, t: seen.append(t) or x * 0, "sample", fs.Flow())
    fs.sample(denoiser, fs.unit_noise([0], (4,)), nfe=8, grid=snapped(grid=fs.karras, times=FIFTY[::-1]))
    assert len(seen) == 8
    assert set(seen) <= set(FIFTY)


def test_the_clean_end_stays():
    assert snapped(sd_table(), 5, grid=trailing(to_zero=True))[-1].sigma == 0


def test_too_few_levels_and_levels_that_nobody_named():
    with pytest.raises(ValueError, match="times must be at least one a node; got 3 for 5 nodes: take fewer steps"):
        snapped(fs.EDM(), 4, times=[80.0, 5.0, 0.002], grid=fs.karras(to_zero=False))
    with pytest.raises(ValueError, match="times are needed for EDM"):
        snapped(fs.EDM(), 4)
    assert math.isfinite(snapped(fs.EDM(), 1, times=[80.0, 0.002])[-1].lam)
