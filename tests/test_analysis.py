"""Where a Gaussian is decided is known exactly."""

import math

import numpy as np
import pytest
import torch

import fewstep as fs

SHAPE, STD = (4, 8, 8), 0.5
SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow()]


def gaussian(schedule, std=STD):
    """E[x_0 | x] of N(0, std^2)."""

    def denoised(x, t):
        _, alpha, sigma = schedule.node(t)
        return x * (alpha * std**2 / (alpha**2 * std**2 + sigma**2))

    return fs.as_denoiser(denoised, "sample", schedule)


def analyzed(known, denoiser=None, seeds=32, **rest):
    denoiser = denoiser or gaussian(known)
    return fs.analyze(denoiser, shape=SHAPE, seeds=range(seeds), dtype=torch.float64, **rest)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_variance_of_a_gaussian_is_known(schedule):
    found = analyzed(schedule)
    n = np.exp(-found.lams)
    exact = STD**2 * n**2 / (STD**2 + n**2)
    # 32 * 256 squares of normals have a mean that is off by 1.6 %, and so has the spread of x_0.
    np.testing.assert_allclose(found.variance, exact, rtol=0.08)
    assert (np.abs(found.variance - exact) < 5 * found.error).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_entropy_that_falls_is_that_of_the_channel(schedule):
    """I(x_0; x) = 1/2 log(1 + std^2 SNR), between the ends."""
    found = analyzed(schedule, levels=96)
    information = np.log1p(STD**2 * np.exp(2 * found.lams)) / 2
    np.testing.assert_allclose(found.left, information[-1] - information, atol=0.03 * information[-1])
    half = np.interp((information[0] + information[-1]) / 2, information, found.lams)
    assert found.decided == pytest.approx(half, abs=0.15)


def test_data_prediction_has_less_variance_where_there_is_more_signal_than_noise():
    found = analyzed(fs.EDM())
    assert ((found.variance < found.rate) == (found.lams > 0)).all()


def test_it_costs_what_it_says():
    asked, told = [], []
    inner = gaussian(fs.EDM())

    def denoiser(x, t):
        asked.append(len(x))
        return inner(x, t)

    analyzed(None, denoiser, 5, levels=7, batch=2, schedule=fs.EDM(), progress=lambda *each: told.append(each))
    assert sum(asked) == 5 * (42 + 7)
    assert told[-1] == (5 * 49, 5 * 49)


def test_a_batch_changes_nothing():
    one, other = (analyzed(fs.EDM(), seeds=6, batch=batch) for batch in (1, 4))
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-12)


def test_denoisers_of_their_seeds():
    asked = []

    def of(seeds):
        asked.append(seeds)
        return gaussian(fs.EDM())

    analyzed(None, of, 5, schedule=fs.EDM(), by_seed=True, batch=3)
    assert asked == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "1 seeds"),
        ({"levels": 2}, "levels=2"),
        ({"levels": 5.5}, "levels integers .*levels=5.5"),
        ({"batch": 2.5}, "batch and levels integers .*batch=2.5"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        analyzed(fs.EDM(), **changes)


def test_a_schedule_is_needed():
    with pytest.raises(TypeError, match="schedule is needed"):
        analyzed(None, lambda x, t: x)


def test_nan_is_told_with_its_level():
    bad = fs.as_denoiser(lambda x, t: x * (math.nan if t < 0.0021 and x.shape[0] == 3 else 0), "sample", fs.EDM())
    with pytest.raises(ValueError, match=r"NaN or inf at half log-SNR 6\.2"):
        analyzed(fs.EDM(), bad, 3)
