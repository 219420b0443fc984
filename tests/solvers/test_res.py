import math

import mpmath
import pytest
import torch

import fewstep as fs
from peers import rational_model


def comfyui(model, x, sigmas):
    """res_multistep of ComfyUI, without noise: everything in -log sigma, on flows, too."""
    before = None
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i], sigmas[i + 1]
        m = model(x, s[None])
        if before is None or t == 0:
            x = x + (x - m) / s * (t - s)
        else:
            h = (s / t).log()
            c = (s / sigmas[i - 1]).log() / h  # of the prediction before, negative
            phi_1 = torch.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            x = t / s * x + h * ((phi_1 - phi_2 / c) * m + phi_2 / c * before)
        before = m
    return x


def test_equals_comfyui_on_edm():
    model, start, nodes, sigmas = rational_model()
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.RES(), schedule=fs.EDM())
    torch.testing.assert_close(got, comfyui(model, start, sigmas), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_equals_comfyui_on_a_flow_from_pure_noise(shift):
    schedule = fs.Flow(shift=shift)
    model, start, _, _ = rational_model()
    nodes = fs.time_uniform(schedule, 7)
    sigmas = torch.tensor([node.sigma for node in nodes], dtype=torch.float64)
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.RES(clock="sigma"), schedule=schedule)
    torch.testing.assert_close(got, comfyui(model, start, sigmas), rtol=0, atol=1e-11)


def assert_same_rows(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.move.scale == pytest.approx(b.move.scale, rel=1e-14)
        assert a.move.weights == pytest.approx(b.move.weights, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_order_2_in_lam_is_dpm_solver_pp_taylor(method):
    nodes = fs.log_snr(fs.VPLinear(), 6, to_zero=False)
    ours = fs.RES(2, method).plan(fs.VPLinear(), nodes)
    assert_same_rows(ours, fs.DPMSolverPP(2, "taylor", 2, method).plan(fs.VPLinear(), nodes))


def test_order_3_multistep_is_unip_3():
    nodes = fs.log_snr(fs.VPLinear(), 6, to_zero=False)
    theirs = fs.UniPC(3, final_order=3, no_corrector="all").plan(fs.VPLinear(), nodes)
    # The second step, of order 2, is UniP's simplified one there.
    assert_same_rows(fs.RES(3).plan(fs.VPLinear(), nodes)[2:], theirs[2:])


@pytest.mark.parametrize("clock", ["lam", "sigma"])
def test_3s_meets_the_conditions_of_stiff_order_3(clock):
    """sum_j b_j = phi_1, sum_j b_j c_j = phi_2, and the third in its weak form, with g = b_2 / b_3."""
    solver, schedule = fs.RES(3, "singlestep", clock), fs.VPLinear()
    s, t = fs.log_snr(schedule, 6, to_zero=False)[2:4]
    stages = solver.plan(schedule, (s, t))
    assert [stage.node.time for stage in stages][0::2] == [s.time, t.time]
    h = solver._u(t) - solver._u(s)
    b3, b2, b1 = (w / (solver._level(t) * h) for w in stages[2].move.weights)
    phi_1 = math.expm1(-h) / -h
    phi_2 = float((mpmath.expm1(-h) / -h - 1) / -h)
    assert b1 + b2 + b3 == pytest.approx(phi_1, rel=1e-13)
    assert b2 / 2 + b3 == pytest.approx(phi_2, rel=1e-12)
    g = b2 / b3
    assert 2 * (g / 2 + 1) == pytest.approx(3 * (g / 4 + 1), rel=1e-12)


def test_a_run_to_zero_from_pure_noise_in_single_steps():
    nodes = fs.time_uniform(fs.Flow(shift=3.0), 4)
    for clock in ("lam", "sigma"):
        stages = fs.RES(3, "singlestep", clock).plan(fs.Flow(shift=3.0), nodes)
        assert len(stages) == 1 + 3 + 3 + 1
        assert all(math.isfinite(w) for stage in stages for w in stage.move.weights)
