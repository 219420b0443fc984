import math
from itertools import pairwise

import pytest

import fewstep as fs

SCHEDULES = {"edm": fs.EDM(), "vp": fs.VPLinear(), "cosine": fs.VPCosine(), "flow": fs.Flow()}
OF_NOISE = fs.Gamma([-9.0, 9.0], [1.0, 1.0])  # predictions that say nothing of x_0's spread: v = 0


def exact_gamma(nodes, variance):
    """That of N(0, variance I), at the nodes."""
    lam = [node.lam for node in nodes if math.isfinite(node.lam)]
    return fs.Gamma(lam, [1 / (1 + variance * math.exp(2 * each)) for each in lam])


def variance_after(stages, nodes, variance):
    """The variance of a pixel of data N(0, variance) at the end: steps are linear, and their noise independent."""
    got = nodes[0].alpha ** 2 * variance + nodes[0].sigma ** 2
    for stage in stages:
        _, alpha, sigma = stage.node
        gain = alpha * variance / (alpha**2 * variance + sigma**2)  # of the denoiser
        got = got * (stage.move.scale + stage.move.weights[0] * gain) ** 2 + stage.noise**2
    return got


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("variance", [0.01, 0.9])
def test_isotropic_gaussians_are_sampled_exactly_in_any_number_of_steps(name, eta, steps, variance):
    schedule = SCHEDULES[name]
    nodes = fs.log_snr(schedule, steps, to_zero=False)
    stages = fs.AnalyticDPM(exact_gamma(nodes, variance), eta).plan(schedule, nodes)
    want = nodes[-1].alpha ** 2 * variance + nodes[-1].sigma ** 2
    # v is (1 - Gamma) e^(-2 lam), in which the rounding of Gamma grows.
    rounding = 2**-52 * math.exp(-2 * nodes[0].lam)
    assert variance_after(stages, nodes, variance) == pytest.approx(want, rel=1e-12, abs=rounding)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_spread_eta_0_is_ddim(name):
    nodes = fs.log_snr(SCHEDULES[name], 6)
    got = fs.AnalyticDPM(OF_NOISE, eta=0.0).plan(SCHEDULES[name], nodes)
    for one, other in zip(got, fs.DDIM().plan(SCHEDULES[name], nodes), strict=True):
        assert one.noise == 0
        assert one.move.scale == pytest.approx(other.move.scale, rel=1e-14)
        assert one.move.weights == pytest.approx(other.move.weights, rel=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_spread_eta_1_is_the_posterior_of_ddpm(name):
    """q(x_t | x_s, x_0) from Bayes' rule: precisions of x_t given x_0 and of x_s given x_t add up."""
    nodes = fs.log_snr(SCHEDULES[name], 6, to_zero=False)
    stages = fs.AnalyticDPM(OF_NOISE).plan(SCHEDULES[name], nodes)
    for stage, (s, t) in zip(stages, pairwise(nodes), strict=True):
        ratio = s.alpha / t.alpha
        added = s.sigma**2 - (ratio * t.sigma) ** 2
        variance = 1 / (1 / t.sigma**2 + ratio**2 / added)
        assert stage.noise**2 == pytest.approx(variance, rel=1e-9)
        assert stage.move.scale == pytest.approx(variance * ratio / added, rel=1e-9)
        assert stage.move.weights[0] == pytest.approx(variance * t.alpha / t.sigma**2, rel=1e-9)


def test_variance_is_that_of_the_paper_on_vp():
    """lambda^2 + (sqrt(abar_t) - sqrt(bbar_t - lambda^2) sqrt(abar_s / bbar_s))^2 bbar_s / abar_s (1 - Gamma_s)."""
    schedule, gamma = fs.VPLinear(), 0.8
    nodes = fs.from_times(schedule, [0.6, 0.3, 0.001])
    s, t = nodes[:2]
    lam = [node.lam for node in nodes]
    for fresh, eta in ((0.0, 0.0), (t.sigma**2 / s.sigma**2 * (1 - (s.alpha / t.alpha) ** 2), 1.0)):
        stage = fs.AnalyticDPM(fs.Gamma(lam, [gamma, 0.5, 0.1]), eta, most_variance=math.inf).plan(schedule, nodes)[0]
        weight = t.alpha - math.sqrt(t.sigma**2 - fresh) * s.alpha / s.sigma
        want = fresh + weight**2 * (s.sigma / s.alpha) ** 2 * (1 - gamma)
        assert stage.noise**2 == pytest.approx(want, rel=1e-10)


def test_the_variance_of_x0_is_bounded_and_not_negative():
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=False)
    lam = [node.lam for node in nodes]
    noise = {
        name: [stage.noise for stage in fs.AnalyticDPM(fs.Gamma(lam, gamma), 0.0, **options).plan(fs.EDM(), nodes)]
        for name, gamma, options in [
            ("none", [1.0] * 5, {}),
            ("negative", [1.1] * 5, {}),
            ("huge", [0.5] * 5, {}),
            ("unbounded", [0.5] * 5, {"most_variance": math.inf}),
        ]
    }
    assert noise["negative"] == noise["none"] == [0.0] * 4
    s, t = nodes[:2]
    assert noise["huge"][0] == pytest.approx(1 - t.sigma / s.sigma, rel=1e-12)
    assert noise["unbounded"][0] == pytest.approx((1 - t.sigma / s.sigma) * 80 * math.sqrt(0.5), rel=1e-12)


def test_the_noise_into_the_last_noisy_node_is_bounded_in_grey_levels():
    nodes = fs.log_snr(fs.EDM(0.1, 80.0), 5, to_zero=True)
    free, bound = (
        [stage.noise for stage in fs.AnalyticDPM(fs.Gamma.gaussian(), last_grey_levels=most).plan(fs.EDM(), nodes)]
        for most in (None, 2.0)
    )
    assert bound[:3] == free[:3]
    # A step to sigma = 0 adds none; E |z| of unit noise is sqrt(2 / pi).
    assert bound[4] == free[4] == 0
    assert bound[3] * math.sqrt(2 / math.pi) == pytest.approx(2 * 2 / 255)
    assert free[3] > bound[3]


def test_a_step_from_pure_noise_is_finite_and_right():
    """alpha = 0: x says nothing of x_0, so x_t is D with the spread of the data and fresh noise (eta = 1)."""
    nodes = fs.from_times(fs.Flow(), [1.0, 0.7, 0.0])
    first = fs.AnalyticDPM(fs.Gamma.gaussian(0.25)).plan(fs.Flow(), nodes)[0]
    assert first.move == (pytest.approx(0, abs=1e-12), (pytest.approx(0.3),))
    assert first.noise**2 == pytest.approx(0.7**2 + 0.3**2 * 0.25, rel=1e-6)


def test_rising_noise_is_refused():
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=False)[::-1]
    with pytest.raises(ValueError, match="needs nodes of falling noise"):
        fs.AnalyticDPM(fs.Gamma.gaussian()).plan(fs.EDM(), nodes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must be in \[0, 1\]; got 1.5"),
        ({"eta": math.nan}, "eta must be"),
        ({"last_grey_levels": -1}, "last_grey_levels must be None or at least 0; got -1"),
        ({"most_variance": -1}, "most_variance must be at least 0; got -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fs.AnalyticDPM(fs.Gamma.gaussian(), **options)


def test_other_statistics_are_refused():
    with pytest.raises(TypeError, match=r"statistics must be Gamma, .* got EMS"):
        fs.AnalyticDPM(fs.EMS.constant())


def test_a_grid_beyond_the_statistics_is_refused():
    with pytest.raises(ValueError, match=r"the statistics reach from lam -2 to 2, the grid to"):
        fs.AnalyticDPM(fs.Gamma.gaussian(end=2.0)).plan(fs.EDM(), fs.log_snr(fs.EDM(), 4))
