import math

import pytest
import torch

import fewstep as fs

VP = fs.VPLinear()
NODES = fs.log_snr(VP, 7, to_zero=True)


def rational(x, time):
    return x / (1 + x * x + time * time) + 0.25


def assert_same_stages(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        size = len(b.move.weights)
        assert (a.node, a.field) == (b.node, b.field)
        assert (a.move.scale, *a.move.weights[:size], a.noise) == pytest.approx(
            (b.move.scale, *b.move.weights, b.noise), rel=1e-10, abs=1e-14
        )
        assert all(abs(weight) < 1e-14 for weight in a.move.weights[size:])


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "taylor"), (3, "midpoint")])
def test_of_dpm_solver_pp_it_is_sde_dpm_solver_pp(order, variant, eta):
    for schedule, nodes in ((VP, NODES), (fs.Flow(), fs.time_uniform(fs.Flow(), 6))):
        ours = fs.Stochastic(fs.DPMSolverPP(order, variant, 2), eta).plan(schedule, nodes)
        assert_same_stages(ours, fs.SDEDPMSolverPP(order, variant, eta, 2).plan(schedule, nodes))


def test_of_ddim_with_eta_1_it_is_ddpm():
    assert_same_stages(fs.Stochastic(fs.DDIM()).plan(VP, NODES), fs.DDIM(eta=1.0).plan(VP, NODES))


@pytest.mark.parametrize("order", [2, 3])
def test_of_single_steps_it_is_seeds_but_for_noise_within_them(order):
    """Both have the same rows from the step's start; SEEDS draws a part of its noise before its last call."""
    ours = fs.Stochastic(fs.DPMSolverPP(order, method="singlestep", final_order=3)).plan(VP, NODES)
    theirs = fs.SEEDS(order).plan(VP, NODES)
    assert len(ours) == len(theirs)
    drawn = [stage.noise > 0 for stage in ours]
    assert drawn == [*([False] * (order - 1) + [True]) * 6, False]
    s, t = NODES[2:4]
    assert ours[3 * order - 1].noise == pytest.approx(t.sigma * math.sqrt(1 - (t.nsr / s.nsr) ** 2), rel=1e-12)


@pytest.mark.parametrize("solver", [fs.UniPC(2), fs.UniPC(3, "bh1"), fs.REMulti(eta=0.5, zeta=1.0), fs.FDPMSolver()])
def test_a_corrector_keeps_the_noise_of_the_step(solver):
    """With an answer that is the same for x of any noise, x differs by the noise carried along alone, as in DDPM."""

    def denoiser(x, time):
        return torch.full_like(x, math.sin(5 * time))

    def run(solver, draw):
        x, state = torch.zeros(3, 4, dtype=torch.float64), None
        z = torch.Generator().manual_seed(3)
        for stage in solver.plan(VP, NODES[:-1]):
            x, state = stage(state, x, denoiser(x, stage.node.time))
            x = x + draw * stage.noise * torch.randn(x.shape, generator=z, dtype=x.dtype)
        return x

    noise = run(fs.Stochastic(solver), 1.0) - run(fs.Stochastic(solver), 0.0)
    ddpm = run(fs.DDIM(eta=1.0), 1.0) - run(fs.DDIM(eta=1.0), 0.0)
    torch.testing.assert_close(noise, ddpm, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [fs.DDIM(), fs.DPMSolverPP(2), fs.UniPC(3), fs.RES(3, "singlestep"), fs.EVODiff()])
def test_eta_0_is_the_solver(solver):
    assert fs.Stochastic(solver, 0.0).plan(VP, NODES) == solver.plan(VP, NODES)
    near = fs.Stochastic(solver, 1e-12).plan(VP, NODES)
    x = torch.randn(2, 3, dtype=torch.float64)

    def run(stages):
        at, state = x, None
        for stage in stages:
            at, state = stage(state, at, rational(at, stage.node.time))
        return at

    torch.testing.assert_close(run(near), run(solver.plan(VP, NODES)), rtol=0, atol=1e-9)


def test_the_default_keeps_the_variance_of_gaussians_of_any_size_in_few_calls():
    """EVODiff's trust is not linear, so that this is a sample: 400 of 60 elements, 20 of each of three sizes."""
    std = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64).repeat_interleave(20)

    def denoiser(x, time):
        return x * std**2 / (std**2 + time**2)

    for calls in (10, 20, 50):
        nodes = fs.focused(fs.EDM(), calls, to_zero=False)
        x = fs.unit_noise(range(400), (60,), dtype=torch.float64) * (nodes[0].sigma ** 2 + std**2).sqrt()
        solver = fs.Stochastic(fs.EVODiff(), 0.3)
        got = fs.integrate(denoiser, x, nodes, solver=solver, schedule=fs.EDM(), seeds=range(400))
        variance = got.square().mean(0) / (std**2 + nodes[-1].sigma ** 2)
        # Of 60 sample variances of 400 draws each, three standard errors hold 59.8 if there is no bias.
        assert ((variance - 1).abs() < 3 * (2 / 400) ** 0.5).sum() >= 57


DRAWS = 1000  # three standard errors of their variance are 13 %


@pytest.mark.parametrize("calls", [10, 20, 50])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("solver", [fs.DPMSolverPP(2), fs.UniPC(2)], ids=["2m", "unipc-2"])
def test_the_variance_of_a_gaussian_is_kept_in_few_calls(solver, std, calls):
    def denoiser(x, time):
        return x * (std**2 / (std**2 + time**2))

    nodes = fs.log_snr(fs.EDM(), calls, to_zero=False)
    x = fs.unit_noise([0], (DRAWS,), dtype=torch.float64) * 80
    stochastic = fs.Stochastic(solver, 0.3)
    got = fs.integrate(denoiser, x, nodes, solver=stochastic, schedule=fs.EDM(), seeds=[0])
    variance = got.square().mean().item() / (std**2 + nodes[-1].sigma ** 2)
    assert variance == pytest.approx(1, abs=3 * (2 / DRAWS) ** 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.Stochastic(fs.DDIM(), -0.1), r"eta must lie in \[0, 10\]; got eta=-0.1"),
        (
            lambda: fs.Stochastic(fs.DDIM()).plan(VP, NODES[::-1][1:]),
            "needs nodes of falling noise",
        ),
        (lambda: fs.Stochastic(fs.IPNDM()).plan(VP, NODES), "which extrapolates noise"),
        (
            lambda: fs.Stochastic(fs.EVODiff("paper")).plan(VP, NODES),
            "a linear solver that draws no noise",
        ),
        (
            lambda: fs.Stochastic(fs.SDEDPMSolverPP()).plan(VP, NODES),
            "a linear solver that draws no noise",
        ),
        (lambda: fs.Stochastic(fs.SEEDS(eta=0.0)).plan(VP, NODES), "a solver of one call a step, or of single steps"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_eta_cannot_be_drawn_for_is_refused_at_the_door():
    with pytest.raises(ValueError, match=r'made in lam: give it clock="lam"'):  # its steps are no stretched ones
        fs.Stochastic(fs.RES(3, "multistep", "sigma"), 1.0)
    with pytest.raises(TypeError, match="solver must be a solver"):
        fs.Stochastic(fs.EVODiff)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 10\]; got eta=200"):
        fs.Stochastic(fs.DPMSolverPP(), 200)
