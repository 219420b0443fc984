"""RED-Diff on Gaussian data: it converges to what its objective says, which is not the posterior's mean."""

import math

import pytest
import torch

import fewstep as fs
from fewstep import restore
from gaussians import Operator, normal, smooth

SIZE, NOISE = 6, 0.2
PRIOR = smooth(SIZE, 1.5, 0.5, mean=0.2)
MATRIX = torch.eye(SIZE, dtype=torch.float64)[::2] + 0.3 * normal((3, SIZE), seed=2)
OPERATOR, Y = Operator(MATRIX), normal((1, 3), seed=3) * 0.5
SCHEDULE = fs.EDM()
MANY = 400  # problems alike in one sample, each with its own noise


def stationary(level, weight):
    """m + (A^T A / noise^2 + P)^-1 A^T (y - A m) / noise^2."""
    pull = weight * level**2 * torch.linalg.inv(PRIOR.covariance + level**2 * torch.eye(SIZE))
    away = MATRIX.T @ (Y[0] - MATRIX @ PRIOR.mean) / NOISE**2
    return PRIOR.mean + torch.linalg.solve(MATRIX.T @ MATRIX / NOISE**2 + pull, away)


def ends(y=None, prior=PRIOR, seeds=(0,), **options):
    y = Y.expand(1, MANY, -1) if y is None else y
    return restore.red_diff(prior, OPERATOR, y, noise=NOISE, seeds=seeds, **{"schedule": SCHEDULE, **options})


@pytest.mark.parametrize("level", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("weight", [None, 4.0, lambda node: 1 / node.nsr**2], ids=["paper", "number", "function"])
def test_at_one_level_it_converges_to_its_stationary_point(level, weight):
    """The mean of 400 runs, whose noise is symmetric about it; five standard errors."""
    found = ends(nfe=1000, grid=[level * (1 - 1e-7 * i) for i in range(1001)], weight=weight, rate=0.02)[0]
    plain = 0.25 / NOISE**2 if weight is None else weight(SCHEDULE.node(level)) if callable(weight) else weight
    off = (found.mean(0) - stationary(level, plain)).abs()
    assert (off / (found.std(0) / math.sqrt(MANY))).max() < 5
    assert off.max() < 0.05


def test_by_the_last_levels_its_own_weight_comes_to_the_posterior_mean_and_the_papers_does_not():
    exact = PRIOR.given(MATRIX, Y[0], NOISE)
    down = [0.5 * 0.1 ** (i / 1000) for i in range(1001)]  # to 0.05, a quarter of the noise

    def bias(weight):
        away = ends(nfe=1000, grid=down, weight=weight, rate=0.02)[0].mean(0) - exact.mean
        return float(away.norm() / exact.covariance.trace().sqrt())

    # (S + n^2)^-1 in place of S^-1: 0.05^2 beside a median variance of 0.07.
    assert bias(lambda node: 1 / node.nsr**2) < 0.05 < bias(None)


def test_on_any_schedule_levels_mean_the_same():
    """x / alpha at sigma / alpha is what EDM has; as means over runs, five standard errors."""
    flow = fs.Flow()

    def on_flow(x, t):
        return PRIOR(x / (1 - t), t / (1 - t))

    levels = [5.0 * 0.8**i for i in range(21)]
    one = ends(grid=levels, nfe=20)[0]
    other = ends(prior=on_flow, schedule=flow, grid=[n / (1 + n) for n in levels], nfe=20)[0]
    error = ((one.var(0) + other.var(0)) / MANY).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() / error).max() < 5


def test_calls_are_counted_and_no_gradient_goes_through_the_network():
    called = []

    def denoiser(x, t):
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        called.append(t)
        return PRIOR(x, t)

    ends(prior=denoiser, nfe=7)
    nodes = fs.EVODiff().grid(SCHEDULE, 7)
    assert called == [node.time for node in nodes[:-1]]


def test_a_sample_does_not_depend_on_its_batch_and_types_are_kept():
    def prior(x, t):
        return x * (0.3 / (0.3 + t * t))

    class Seen:
        A = A_adjoint = A_dagger = staticmethod(lambda x: x * (torch.arange(SIZE) % 2))

    y = normal((4, SIZE), seed=8)
    run = lambda y, seeds: restore.red_diff(prior, Seen, y, noise=NOISE, schedule=SCHEDULE, seeds=seeds, nfe=9)  # noqa: E731
    together = run(y, range(4))
    assert torch.equal(together[2:3], run(y[2:3], [2]))
    assert run(y.float(), range(4)).dtype == torch.float32
    torch.testing.assert_close(run(y.float(), range(4)).double(), together, rtol=0, atol=1e-4)


def test_a_measurement_that_is_not_linear_needs_a_start():
    def clipped(x):
        return x.clamp(-0.5, 0.5)

    y = clipped(normal((2, SIZE), seed=9))
    options = {"noise": NOISE, "schedule": SCHEDULE, "seeds": range(2), "nfe": 20}
    with pytest.raises(TypeError, match="start is needed"):
        restore.red_diff(PRIOR, clipped, y, **options)
    found = restore.red_diff(PRIOR, clipped, y, start=torch.zeros_like(y), **options)
    assert (clipped(found) - y).square().mean() < (clipped(PRIOR.mean.expand(2, -1)) - y).square().mean()


@pytest.mark.parametrize(
    "operator",
    [restore.inpainting(torch.arange(64).reshape(8, 8) % 3 > 0, (1, 8, 8)), restore.superresolution(4, (1, 8, 8)),
     restore.deblurring(1.5, (1, 8, 8))],
    ids=["mask", "downsampling", "blur"],
)  # fmt: skip
def test_it_starts_at_the_mean_of_white_images_which_no_other_start_is_nearer_to(operator):
    """r^2 s / (r^2 s^2 + n^2) of each singular value s, which leaves n^2 / (r^2 s^2 + n^2) of the variance r^2."""
    schedule, count = fs.EDM(data_std=0.5), 400
    x = 0.5 * normal((count, 1, 8, 8), seed=1)
    clean = operator.A(x)
    y = clean + NOISE * normal(clean.shape, seed=2)
    # A step of Adam is at most its rate.
    ends = restore.red_diff(
        lambda x, t: x, operator, y, noise=NOISE, schedule=schedule, seeds=range(count), nfe=1, rate=1e-12
    )
    matrix = operator.A(torch.eye(64, dtype=torch.float64).reshape(-1, 1, 8, 8)).flatten(1).T
    seen = matrix @ matrix.T + (NOISE / 0.5) ** 2 * torch.eye(len(matrix), dtype=torch.float64)
    flat = y.flatten(1)
    due = torch.linalg.solve(seen, flat.T).T @ matrix
    # What conjugate residuals leave, 1 % of y, is at most r / (2 n) times larger in x; and sigma is 80, not infinite.
    assert ((ends.flatten(1) - due).norm(dim=1) <= 0.0101 * 0.5 / (2 * NOISE) * flat.norm(dim=1)).all()

    def off(start):
        return (start.flatten(1) - x.flatten(1)).square().sum(1).mean()

    left = 0.5**2 * (64 - (matrix.T @ torch.linalg.solve(seen, matrix)).trace())
    assert off(ends) == pytest.approx(float(left), rel=5 * (2 / (64 * count)) ** 0.5)
    assert off(ends) < min(off(flat @ matrix), off(flat @ torch.linalg.pinv(matrix).T))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="y must be finite"):
        ends(Y * math.nan)
    with pytest.raises(TypeError, match="schedule is needed"):
        ends(schedule=None)
    with pytest.raises(ValueError, match="seeds must be one a sample; got 2 for 1"):
        ends(seeds=(0, 1))
    with pytest.raises(fs.DenoiserError, match="RED-Diff ended at NaN"):
        ends(prior=lambda x, t: x * math.nan, nfe=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *(({"rate": rate}, "rate must be a positive, finite number") for rate in (math.nan, 0, -1.0, "fast")),
        *(({"weight": weight}, "weight must be a finite number, 0 or more") for weight in ("snr", -1.0, math.nan)),
        ({"weight": lambda node: None}, "weight must return a finite number, 0 or more, of each level; got None"),
        ({"start": torch.zeros(1, SIZE + 1)}, r"start must be an image a measurement, \(1, 6\); got \(1, 7\)"),
        ({"y": Y.expand(2, -1), "start": torch.zeros(3, SIZE)}, r"\(2, 6\); got \(3, 6\)"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ends(**{"y": Y, "nfe": 3, **options})
