"""Estimates on a Gaussian, where everything is known: D = mu + K (y - mu), K = V diag(v / (v + e^-2lam)) V^T."""

import functools
import math

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from fewstep.statistics.estimate import REACH

PROBLEM = gaussian((1, 3, 3))
MEAN, VARIANCES, VECTORS = PROBLEM.means[0], PROBLEM.variances[0], PROBLEM.vectors[0]
COUNT, POINTS = 4096, 8
# The largest of 72 deviations, of which those of neighbouring points are nearly the same.
STANDARD_ERRORS = 5
SCHEDULES = {"edm": fs.EDM(0.01, 20.0), "vp": fs.VPLinear()}


@functools.cache
def images():
    z = torch.randn(COUNT, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (MEAN + (z * VARIANCES.sqrt()) @ VECTORS.T).reshape(COUNT, 1, 3, 3)


def shrinking(lam):
    """K."""
    return VECTORS @ torch.diag(VARIANCES / (VARIANCES + math.exp(-2 * lam))) @ VECTORS.T


def inside(statistics):
    """Where the table was estimated: its ends are off by REACH."""
    low, high = statistics.lam_range
    return statistics.lam.clamp(low + REACH, high - REACH).tolist()


@functools.cache
def estimated(name):
    schedule = SCHEDULES[name]
    return fs.estimate_ems(PROBLEM.denoiser(schedule), schedule, images(), points=POINTS, batch=1024)


@pytest.mark.parametrize("name", SCHEDULES)
def test_l_is_the_mean_diagonal(name):
    """l = 1 - diag K. Each v (v K) deviates by sum K_ij v_i v_j over j != i, of variance sum K_ij^2."""
    statistics = estimated(name)
    for lam, got in zip(inside(statistics), statistics.l, strict=True):
        k = shrinking(lam)
        error = ((k - torch.diag(k.diag())).square().sum(1) / COUNT).sqrt()
        assert ((got.flatten() - (1 - k.diag())) / error).abs().max() < STANDARD_ERRORS


@pytest.mark.parametrize("name", SCHEDULES)
def test_s_and_b_are_the_regression_of_f_on_f(name):
    """For the l that was estimated, f = M (y - mu) - l mu and f' = N (y - mu) - l' mu are jointly Gaussian,

        M = 1 - K - diag l,   N = diag(l - 1) (1 - K) - diag l' - K (1 - K),   Cov y = C = V diag(v + e^-2lam) V^T,

    since dK/dlam = 2 K (1 - K). A slope deviates by sqrt(residual variance / (n Var f)), an intercept by that and the
    mean.
    """
    statistics = estimated(name)
    level = statistics.l.reshape(POINTS, 9)
    slope = torch.gradient(level, spacing=(torch.tensor(inside(statistics)),), dim=0, edge_order=2)[0]
    one = torch.eye(9, dtype=torch.float64)
    for i, lam in enumerate(inside(statistics)):
        k, l = shrinking(lam), level[i]  # noqa: E741
        c = VECTORS @ torch.diag(VARIANCES + math.exp(-2 * lam)) @ VECTORS.T
        m, n = one - k - torch.diag(l), torch.diag(l - 1) @ (one - k) - torch.diag(slope[i]) - k @ (one - k)
        variance, covariance, total = ((x @ c @ y.T).diag() for x, y in ((m, m), (m, n), (n, n)))
        s = covariance / variance
        b = (s * l - slope[i]) * MEAN
        residual = (total - s**2 * variance) / COUNT
        # The difference along the ODE is off by REACH^2 / 6 D''', here less than a standard error.
        error = (residual / variance).sqrt()
        assert ((statistics.s[i].flatten() - s) / error).abs().max() < STANDARD_ERRORS
        error = (residual * (1 + (l * MEAN) ** 2 / variance)).sqrt()
        assert ((statistics.b[i].flatten() - b) / error).abs().max() < STANDARD_ERRORS


def test_gamma_is_the_mean_square_of_the_predicted_noise():
    """sigma^2 / (alpha^2 v + sigma^2) over the axes; the square of a Gaussian of variance c has variance 2 c^2."""
    schedule = SCHEDULES["vp"]
    got = fs.estimate_gamma(PROBLEM.denoiser(schedule), schedule, images(), points=POINTS, batch=1000)
    for lam, gamma in zip(got.lam.tolist(), got.gamma.tolist(), strict=True):
        spread = math.exp(-2 * lam) / (VARIANCES + math.exp(-2 * lam))
        error = (2 * spread.square().sum() / COUNT).sqrt() / 9
        assert abs(gamma - spread.mean()) < STANDARD_ERRORS * error
    assert got.schedule == "VPLinear(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)"


def test_estimated_statistics_make_fewer_steps_do():
    """What they are for: at first order, on the Gaussian they were estimated on, the error falls."""
    schedule, problem = SCHEDULES["edm"], PROBLEM
    nodes = fs.log_snr(schedule, 6, to_zero=False)
    x = torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 20
    want = problem.solution(x, nodes[0], nodes[-1])

    def error(solver):
        got = fs.integrate(problem.denoiser(schedule), x, nodes, solver=solver, schedule=schedule)
        return (got - want).square().mean().sqrt().item()

    statistics = fs.estimate_ems(problem.denoiser(schedule), schedule, images()[:512], points=60, batch=512)
    assert error(fs.DPMSolverV3(statistics, order=1)) < error(fs.DDIM()) / 2


# How


def small(**options):
    options = {"points": 8, "samples": 32, **options}
    return fs.estimate_ems(PROBLEM.denoiser(fs.EDM()), fs.EDM(), images()[:64], **options)


def close(one, other):
    return all(torch.allclose(getattr(one, c), getattr(other, c), rtol=1e-9, atol=1e-9) for c in ("lam", *"lsb"))


def test_a_seed_is_an_estimate_whatever_the_batch():
    assert close(small(batch=32), small(batch=32))
    assert close(small(batch=32), small(batch=5))
    assert not close(small(), small(seed=1))
    assert not close(small(), small(probes=3))


def test_forward_and_reverse_derivatives_agree_where_the_jacobian_is_symmetric():
    """As every exact denoiser's is: v (v J) = v (J v)."""
    assert close(small(derivative="forward"), small(derivative="reverse"))


def test_few_images_are_used_over_again():
    got = fs.estimate_ems(PROBLEM.denoiser(fs.EDM()), fs.EDM(), images()[:3], points=8, samples=40)
    assert got.l.isfinite().all()
    once = fs.estimate_ems(PROBLEM.denoiser(fs.EDM()), fs.EDM(), images()[:3], points=8)
    assert not torch.equal(got.l, once.l)


def test_labels_go_with_their_images():
    pictures = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2).contiguous()
    labels, seen = torch.arange(6), []

    def conditioned(chosen):
        def denoise(x, t):
            seen.append((x, chosen))
            return x * 1.0

        return denoise

    schedule = fs.EDM(1e-6, 1e-5)
    fs.estimate_ems(conditioned, schedule, pictures, labels=labels, points=8, batch=4)
    assert seen
    for x, chosen in seen:
        assert torch.allclose(x.detach()[:, 0, 0, 0], chosen.float(), atol=1e-3)


def test_progress_and_the_record():
    told = []
    got = small(progress=lambda done, all_: told.append((done, all_)), fingerprint="abc")
    assert told == [(done + 1, 16) for done in range(16)]
    assert (got.fingerprint, got.schedule) == ("abc", "EDM(sigma_min=0.002, sigma_max=80.0)")
    assert got.lam_range == pytest.approx(fs.EDM().lam_range)


@pytest.mark.parametrize(
    "schedule", [fs.Flow(), fs.VPCosine(), fs.Discrete([0.999 * 0.99**i for i in range(1000)])], ids=repr
)
def test_the_table_reaches_over_the_schedules_log_snr_grid(schedule):
    got = fs.estimate_ems(PROBLEM.denoiser(schedule), schedule, images()[:256], points=24, batch=256)
    solver = fs.DPMSolverV3(got)
    solver.plan(schedule, fs.log_snr(schedule, 5))
    gamma = fs.estimate_gamma(PROBLEM.denoiser(schedule), schedule, images()[:16], points=5)
    fs.AnalyticDPM(gamma).plan(schedule, fs.log_snr(schedule, 5))


@pytest.mark.parametrize(
    ("schedule", "points"),
    [(fs.EDM(0.5, 2.0), 120), (fs.EDM(), 341), (fs.Discrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 500))), 12)],
    ids=["short", "fine", "rounded"],
)
def test_points_may_be_close_together_and_rounding_leaves_no_end_off_the_clock(schedule, points):
    got = fs.estimate_ems(PROBLEM.denoiser(schedule), schedule, images()[:8], points=points)
    assert len(got.lam) == points


def test_where_f_does_not_vary_s_is_0():
    """Independent pixels: l says all, and f is the rounding of y - D."""
    schedule, pictures = fs.EDM(0.1, 10.0), torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        got = fs.estimate_ems(lambda x, t: x / (1 + t * t), schedule, pictures.to(dtype), points=8)
        noise = (-2 * torch.tensor(inside(got))).exp()
        torch.testing.assert_close(got.l[:, 0], (noise / (1 + noise)).double(), rtol=0, atol=1e-6)
        assert got.s.abs().max() == 0


def test_a_network_of_diffusers_is_estimated(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra cli")
    from fewstep.adapters import load_model
    from tiny import save_model

    model = load_model(save_model(tmp_path / "tiny"))
    pictures = torch.randn(24, *model.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    options = {"labels": torch.arange(24) % 3, "points": 12, "batch": 24, "fingerprint": model.fingerprint}
    got = fs.estimate_ems(model.conditioned, model.schedule, pictures, **options)
    assert got.l.shape == (12, *model.shape)
    got.save(tmp_path / "ems.safetensors")
    loaded = fs.EMS.load(tmp_path / "ems.safetensors", schedule=model.schedule, fingerprint=model.fingerprint)
    noise = torch.randn(2, *model.shape)
    assert fs.sample(model, noise, nfe=5, solver=fs.DPMSolverV3(loaded), schedule=model.schedule).isfinite().all()
    gamma = fs.estimate_gamma(model.conditioned, model.schedule, pictures, **options)
    assert gamma.gamma.shape == (12,)


# Users' mistakes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 7}, ValueError, "points must be at least 8, .* got points=7"),
        ({"batch": 0}, ValueError, "batch"),
        ({"samples": 1}, ValueError, "samples must be at least 2; got 1"),
        ({"derivative": "central"}, ValueError, "derivative must be 'reverse' or 'forward'; got 'central'"),
        ({"labels": torch.zeros(3)}, ValueError, "labels must be one an image; got 3 for 64 images"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        small(**options)


def test_images_of_bytes_are_refused():
    with pytest.raises(TypeError, match=r"images must be a floating point tensor \(N, \*\)"):
        fs.estimate_gamma(lambda x, t: x, fs.EDM(), torch.zeros(4, 3, dtype=torch.uint8))


def test_a_denoiser_without_a_derivative_is_told_of_the_other():
    @torch.no_grad()
    def hidden(x, t):
        return x / (1 + t * t)

    with pytest.raises(ValueError, match=r"hides its derivative, as under torch.no_grad: use derivative='forward'"):
        fs.estimate_ems(hidden, fs.EDM(), images()[:4], points=8)
    fs.estimate_ems(hidden, fs.EDM(), images()[:4], points=8, derivative="forward")

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.raises(ValueError, match="has no forward-mode derivative"):
        fs.estimate_ems(lambda x, t: Opaque.apply(x), fs.EDM(), images()[:4], points=8, derivative="forward")
