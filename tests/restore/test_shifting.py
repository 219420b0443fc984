"""The chains of ResShift and Resfusion: their papers' formulas, and their samples of Gaussians in closed form."""

import itertools
import math

import pytest
import torch

import fewstep as fs
from fewstep import restore
from fewstep.sampling import plan
from gaussians import normal

TABLE = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0).tolist()
RESSHIFT, FOUR = restore.ResShift(), restore.ResShift(steps=4)
RESFUSION = restore.Resfusion(TABLE)
EVERY = [RESSHIFT, FOUR, RESFUSION]
COUNT = 4000  # alike in one sample
Y = torch.tensor([[-0.5, 0.0, 0.4, 0.8]], dtype=torch.float64)
MEAN, VARIANCE = 0.9 * Y + 0.1, torch.tensor([0.01, 0.03, 0.1, 0.2], dtype=torch.float64)  # of x_0 given y


def share(schedule):
    """Of y in what is moved from."""
    return 0.5 if isinstance(schedule, restore.Resfusion) else 1.0


def gaussian(schedule):
    """E[x_0 | x_t, y], of x_t as the papers have it: alpha x_0 + share (1 - alpha) y + sigma e."""

    def denoiser(x, t):
        _, alpha, sigma = schedule.node(t)
        off = x - share(schedule) * (1 - alpha) * Y - alpha * MEAN
        return MEAN + VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2) * off

    return denoiser


def drawn(schedule, **options):
    """(COUNT, 4)."""
    centre = (share(schedule) * Y).expand(1, COUNT, 4)
    noise = fs.unit_noise([0], (COUNT, 4), dtype=torch.float64)
    denoiser = restore.centred(gaussian(schedule), centre)
    return (centre + fs.sample(denoiser, noise, schedule=schedule, seeds=[0], **options))[0]


def law(schedule):
    """The variance of the last answer, at the cleanest level, whose noise it takes for image."""
    _, alpha, sigma = schedule.node(schedule.t_min)
    return VARIANCE * alpha**2 * VARIANCE / (alpha**2 * VARIANCE + sigma**2)


def exactly(schedule, solver, nfe, grid=None):
    """The mean and the variance of what `drawn` draws, by the stages of a solver of one term."""
    nodes, stages = plan(schedule, solver, nfe=nfe, grid=grid)
    centre, denoiser = share(schedule) * Y, gaussian(schedule)
    mean, variance = torch.zeros_like(Y), torch.full_like(Y, nodes[0].sigma ** 2)
    for stage in stages:
        _, alpha, sigma = stage.node
        gain = stage.move.scale + stage.move.weights[0] * VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2)
        answer = denoiser(mean + centre, stage.node.time) - centre
        mean = stage.move.scale * mean + stage.move.weights[0] * answer
        variance = gain**2 * variance + stage.noise**2
    return centre + mean, variance


# The papers' formulas


def test_resshift_has_its_papers_levels():
    """x_t = x_0 + eta (y - x_0) + kappa sqrt(eta) e, with eta by the paper's beta_t and b_0."""
    steps, kappa, p, low, high = 15, 2.0, 0.3, 0.0004, 0.999
    b = math.exp(math.log(high / low) / (2 * (steps - 1)))
    for t in range(1, steps + 1):
        beta = ((t - 1) / (steps - 1)) ** p * (steps - 1)
        root = math.sqrt(low) * b**beta
        node = RESSHIFT.node(t - 1)
        assert node.alpha == pytest.approx(1 - root**2, rel=1e-12)
        assert node.sigma == pytest.approx(kappa * root, rel=1e-12)
    assert RESSHIFT.node(-1) == fs.Node(-1, 1.0, 0.0)


def test_resfusion_has_its_papers_levels():
    """x_t = a x_0 + (1 - a) (y - x_0) + sqrt(1 - a^2) e, from where a is just above 1/2."""
    for index in (0, 100, int(RESFUSION.t_max)):
        a = math.sqrt(TABLE[index])
        node = RESFUSION.node(index)
        assert node.alpha == pytest.approx(a - (1 - a), rel=1e-12)
        assert node.sigma == pytest.approx(math.sqrt(1 - TABLE[index]), rel=1e-12)
    assert TABLE[int(RESFUSION.t_max)] > 1 / 4 > TABLE[int(RESFUSION.t_max) + 1]


@pytest.mark.parametrize("schedule", EVERY)
def test_times_are_found_again(schedule):
    for time in [*(schedule.ramp(i / 7) for i in range(8)), -0.9, -0.3]:
        node = schedule.node(time)
        assert schedule.time_at(node.lam) == pytest.approx(time, abs=1e-9)


@pytest.mark.parametrize(("s", "t"), [(14, 13), (8, 7), (2, 1), (10, 3)])
def test_a_transition_of_resshift_is_its_papers(s, t):
    """N(eta_t / eta_s x_s + a / eta_s x_0, kappa^2 eta_t / eta_s a), a = eta_s - eta_t, eq. (7), around y."""
    (stage,) = restore.Chain().plan(RESSHIFT, fs.from_times(RESSHIFT, [s, t]))
    eta_s, eta_t = (1 - RESSHIFT.node(i).alpha for i in (s, t))
    x, x0, y = 0.7, 0.3, -0.2
    got = stage.move.scale * (x - y) + stage.move.weights[0] * (x0 - y) + y
    assert got == pytest.approx(eta_t / eta_s * x + (eta_s - eta_t) / eta_s * x0, rel=1e-9)
    assert stage.noise**2 == pytest.approx(4.0 * eta_t / eta_s * (eta_s - eta_t), rel=1e-9)


@pytest.mark.parametrize("s", [300, 100, 1])
def test_a_transition_of_resfusion_is_its_papers(s):
    """DDPM's, with the residual noise e + (1 - sqrt(1 - b)) sqrt(1 - bar) / b R in the place of e."""
    bar, before = TABLE[s], TABLE[s - 1]
    b = 1 - bar / before
    (stage,) = restore.Chain().plan(RESFUSION, fs.from_times(RESFUSION, [s, s - 1]))
    x0, y, e = 0.3, -0.2, 0.8
    r = y - x0
    x = math.sqrt(bar) * x0 + (1 - math.sqrt(bar)) * r + math.sqrt(1 - bar) * e
    residual_noise = e + (1 - math.sqrt(1 - b)) * math.sqrt(1 - bar) / b * r
    want = (x - b / math.sqrt(1 - bar) * residual_noise) / math.sqrt(1 - b)
    got = stage.move.scale * (x - y / 2) + stage.move.weights[0] * (x0 - y / 2) + y / 2
    assert got == pytest.approx(want, rel=1e-9)
    assert stage.noise**2 == pytest.approx((1 - before) / (1 - bar) * b, rel=1e-9)


# Samples


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("solver", [fs.EVODiff(), fs.UniPC(3), fs.DPMSolverPP()])
def test_samples_converge_to_the_law_of_x_0_given_y(schedule, solver):
    """In 60 calls; within what the start leaves out, alpha (x_0 - c), and five standard errors."""
    samples = drawn(schedule, solver=solver, nfe=60, grid=fs.log_snr)
    start = schedule.node(schedule.t_max)
    left = start.alpha * (MEAN[0] - share(schedule) * Y[0]).abs()
    assert ((samples.mean(0) - MEAN[0]).abs() < 5 * (VARIANCE / COUNT).sqrt() + left + 0.005).all()
    assert ((samples.var(0) / law(schedule) - 1).abs() < 0.02 + 5 * math.sqrt(2 / COUNT)).all()


@pytest.mark.parametrize("schedule", EVERY)
def test_the_chain_comes_to_it_too_at_order_one(schedule):
    """Of the variance, in closed form: half the error in twice the steps."""
    ends = [exactly(schedule, restore.Chain(), nfe, fs.log_snr)[1] for nfe in (250, 500, 1000)]
    errors = [(variance / law(schedule) - 1).abs().max() for variance in ends]
    assert errors[2] < 0.1
    for more, fewer in itertools.pairwise(errors):
        assert 1.7 < more / fewer < 2.3


def test_the_chains_samples_have_its_mean_and_variance():
    mean, variance = exactly(FOUR, restore.Chain(), 5)
    samples = drawn(FOUR, solver=restore.Chain(), nfe=5)
    assert ((samples.mean(0) - mean[0]).abs() < 5 * (variance[0] / COUNT).sqrt()).all()
    assert ((samples.var(0) / variance[0] - 1).abs() < 5 * math.sqrt(2 / COUNT)).all()


def test_it_runs_at_the_networks_own_times():
    asked = []

    def denoiser(x, t):
        asked.append(t)
        return gaussian(FOUR)(x, t)

    wrapped = restore.centred(denoiser, Y)
    noise = fs.unit_noise(range(2), (4,))
    for grid in (None, range(3, -2, -1)):
        asked.clear()
        fs.sample(wrapped, noise, schedule=FOUR, solver=restore.Chain(), nfe=4, grid=grid, seeds=range(2))
        assert asked == [3, 2, 1, 0]


def test_the_denoiser_is_moved_with_the_state():
    x = normal((3, 4), seed=1)
    wrapped = restore.centred(fs.as_denoiser(gaussian(FOUR), "sample", FOUR), Y)
    assert wrapped.schedule is FOUR
    torch.testing.assert_close(wrapped(x, 2.0), gaussian(FOUR)(x + Y, 2.0) - Y)


@pytest.mark.parametrize(
    ("centre", "error", "told"),
    [
        (Y.tolist(), TypeError, "centre must be a torch.Tensor; got list"),
        (Y.long(), TypeError, "centre must be floating point; got torch.int64"),
        (Y * math.nan, ValueError, "centre must be finite"),
        (torch.zeros(4), ValueError, r"centre must be \(B, \*\) of rank 2 or more"),
    ],
)
def test_a_centre_that_cannot_be_is_refused(centre, error, told):
    with pytest.raises(error, match=told):
        restore.centred(gaussian(FOUR), centre)


def test_a_centre_that_does_not_fit_x_is_refused_before_the_model_is_called():
    for centre in (torch.zeros(2, 4), torch.zeros(1, 5), torch.zeros(1, 1)):  # the last would be broadcast
        with pytest.raises(ValueError, match=r"centre must be one image for all or one a sample.*got \("):
            restore.centred(pytest.fail, centre)(normal((3, 4), seed=1), 2.0)
    with pytest.raises(TypeError, match="denoiser must be a function"):
        restore.centred(FOUR, Y)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="ResShift needs steps of 2 or more"):
        restore.ResShift(steps=1)
    with pytest.raises(ValueError, match="eta_min < eta_max < 1"):
        restore.ResShift(eta_max=1.0)
    with pytest.raises(ValueError, match=r"time must lie in \[-1, 3\]"):
        FOUR.node(4)
    with pytest.raises(ValueError, match="where a > 1/2"):
        RESFUSION.node(999)
    with pytest.raises(ValueError, match="two entries above 1/4"):
        restore.Resfusion([0.2, 0.1, 0.001])
    with pytest.raises(ValueError, match="Chain is for the schedules ResShift and Resfusion"):
        restore.Chain().plan(fs.EDM(), fs.karras(fs.EDM(), 3))
