"""The prior of denoised paths, against the equations that define it."""

import math

import numpy as np
import pytest

from fewstep.solvers.evodiff.path_prior import PathPrior, Paths

PRIOR = PathPrior()


def variance(functional):
    return np.square(functional).sum(-1)


def answer(paths, i, y):
    """Of the shape of y, a row a mode."""
    return paths.answer(i, y).reshape(y.shape)


@pytest.fixture
def modes():
    s = np.geomspace(PRIOR.smallest, PRIOR.largest, PRIOR.modes)
    return s, s**PRIOR.slope / (s**PRIOR.slope).sum()


def test_the_path_solves_the_ode():
    """dy/dlam = D - y, by the trapezoidal rule, which is wrong by h^2 / 12 of the second derivative."""

    def residual(steps):
        lams = np.linspace(-2, 3, steps + 1)
        paths = Paths(PRIOR, lams)
        rates = [answer(paths, i, y) - y for i, y in enumerate(paths.state)]
        h = lams[1] - lams[0]
        left = [
            t - s - h * (a + b) / 2 for s, t, a, b in zip(paths.state, paths.state[1:], rates, rates[1:], strict=False)
        ]
        return math.sqrt(sum(variance(x).sum() for x in left) / steps) / h

    # Paths of different steps differ in their surprise as well, which goes like its power `growth`.
    assert residual(400) < residual(100) / 7 < 1e-3


def test_without_surprise_the_data_are_gaussian(modes):
    s, energy = modes
    lams = [-3.0, 0.0, 2.5]
    paths = Paths(PathPrior(surprise=0.0), lams)
    for i, lam in enumerate(lams):
        n2 = math.exp(-2 * lam)
        np.testing.assert_allclose(variance(paths.state[i]), energy * (s**2 + n2) / s**2, rtol=1e-12)
        said = answer(paths, i, paths.state[i])
        np.testing.assert_allclose(variance(said), energy * s**2 / (s**2 + n2), rtol=1e-12)


def test_an_error_of_the_state_returns_through_the_wiener_filter(modes):
    s, _ = modes
    paths = Paths(PRIOR, [-1.0, 1.0])
    nudge = np.ones_like(paths.state[0])
    heard = answer(paths, 0, paths.state[0] + nudge) - answer(paths, 0, paths.state[0])
    np.testing.assert_allclose(heard, (s**2 / (s**2 + math.exp(2.0)))[:, None] * nudge, rtol=1e-9)


def test_surprise_is_greatest_where_a_mode_is_decided(modes):
    s, energy = modes
    lams = -np.log(s[::-1])
    paths = Paths(PRIOR, lams)
    unseen = np.stack([variance(answer(paths, i, np.zeros_like(paths.state[i]))) for i in range(len(lams))]) / energy
    phi = PRIOR.surprise * ((lams[-1] - lams[0]) / (len(lams) - 1)) ** PRIOR.growth
    assert list(unseen.argmax(0)) == list(range(len(lams)))[::-1]
    np.testing.assert_allclose(unseen.max(0), (phi / 2) ** 2, rtol=1e-8)  # the jitter on the diagonal


@pytest.mark.parametrize("lams", [[-math.inf, 0.0, math.inf], [-math.inf, -9.0, -8.0, 3.0], [0.0, 1e-12, 2e-12]])
def test_far_and_close_nodes_are_finite(lams):
    paths = Paths(PRIOR, lams)
    assert all(np.isfinite(y).all() and np.isfinite(paths.answer(i, y)).all() for i, y in enumerate(paths.state))
