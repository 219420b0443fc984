import pytest

import fewstep as fs
from golden import assert_matches, entries, zju_nodes
from peers import k_diffusion, rational_model

KEYS = [k for k in entries("zju_diff_solvers") if k.startswith("dpm2")]


@pytest.mark.parametrize("key", KEYS)
def test_equals_diff_sampler(key):
    solver = fs.DPM2(r=0.4) if key.startswith("dpm2_r0.4") else fs.DPM2()
    assert_matches("zju_diff_solvers", key, solver, fs.EDM(), zju_nodes(key))


def test_is_a_single_step_of_dpm_solver():
    nodes = fs.karras(fs.VPLinear(), 5, to_zero=True)
    assert fs.DPM2().plan(fs.VPLinear(), nodes) == fs.DPMSolver(2, method="singlestep").plan(fs.VPLinear(), nodes)


def test_the_second_call_is_at_the_fraction_r_of_log_snr():
    nodes = fs.log_snr(fs.VPLinear(), 1, to_zero=False)
    first, second = fs.DPM2(r=0.3).plan(fs.VPLinear(), nodes)
    assert first.node == nodes[0]
    assert second.node.lam == pytest.approx(0.7 * nodes[0].lam + 0.3 * nodes[1].lam, rel=1e-12)


def test_an_odd_budget_takes_the_last_noisy_step_at_first_order():
    nodes = fs.karras(fs.EDM(), 3, to_zero=True)
    assert [s.hold for s in fs.DPM2().plan(fs.EDM(), nodes)] == [True, False, True, False, False]
    assert [s.hold for s in fs.DPM2().plan(fs.EDM(), nodes, 4)] == [True, False, False, False]


def test_equals_k_diffusion():
    sampling = k_diffusion()
    model, start, nodes, sigmas = rational_model()
    want = sampling.sample_dpm_2(model, start, sigmas, disable=True)
    got = fs.integrate(model.denoiser, start, nodes, solver=fs.DPM2(), schedule=fs.EDM())
    assert (got - want).abs().max() < 1e-12 * sigmas[0]


@pytest.mark.parametrize("r", [0.0, 1e-9, 1.0, -0.5, float("nan")])
def test_r_lies_inside_the_step(r):
    with pytest.raises(ValueError, match=r"r must lie in \[0.01, 1\)"):
        fs.DPM2(r=r)
