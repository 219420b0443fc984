"""Runs that pass derivatives, and words for those that would drop them."""

import pytest
import torch

import fewstep as fs
from table import every_solver

SCHEDULE = fs.EDM(0.1, 5.0)
NOISE = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
WEIGHT = torch.tensor(0.7, dtype=torch.float64)
BOTH = {"schedule": SCHEDULE, "nfe": 5, "seeds": range(2)}


def bent(x, t, weight=WEIGHT):
    return x / (1 + t * t + x * x) + weight * x.sin() / (1 + t)


@every_solver
def test_a_differentiable_run_is_the_same_and_its_derivatives_are_right(entry):
    """In reverse and in forward mode, by noise and by a weight of the model, against differences."""

    def run(noise, weight, **more):
        return fs.sample(lambda x, t: bent(x, t, weight), noise, solver=entry.solver, **BOTH, **more)

    inputs = NOISE.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    assert torch.equal(run(*inputs, differentiable=True), run(NOISE, WEIGHT))
    differentiable = lambda noise, weight: run(noise, weight, differentiable=True)  # noqa: E731
    assert torch.autograd.gradcheck(differentiable, inputs, check_forward_ad=True)


def test_integrate_trajectory_and_torch_func_pass_derivatives_too():
    nodes = fs.karras(SCHEDULE, 5)
    x = (5 * NOISE).requires_grad_()
    options = {"solver": fs.DPMSolverPP(), "schedule": SCHEDULE, "differentiable": True}
    (want,) = torch.autograd.grad(fs.integrate(bent, x, nodes, **options).sum(), x)
    *_, last = fs.trajectory(bent, x, nodes, **options)
    assert torch.equal(torch.autograd.grad(last.x.sum(), x)[0], want)
    got = torch.func.grad(lambda x: fs.integrate(bent, x, nodes, **options).sum())(x.detach())
    assert torch.equal(got, want)


def test_a_wrapped_model_passes_derivatives():
    """A guided, clipped, converted network, as reward tuning has it."""
    weight = WEIGHT.clone().requires_grad_()

    def run(weight):
        network = fs.as_denoiser(lambda x, t: bent(x, t, weight), "epsilon", SCHEDULE)
        return fs.sample(fs.clip(fs.guided(network, bent, 1.5), -50, 50), NOISE, nfe=3, differentiable=True).sum()

    assert torch.autograd.gradcheck(run, weight)


def test_a_scale_passes_derivatives_or_says_that_it_would_not():
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    network = fs.as_denoiser(bent, "epsilon", SCHEDULE)

    def run(scale):
        return fs.sample(fs.guided(network, bent, scale.expand(len(NOISE))), NOISE, nfe=3, differentiable=True)

    assert torch.autograd.gradcheck(run, scale)
    with pytest.raises(ValueError, match=r"scale as one number drops its derivative.*scale\.expand\(B\)"):
        fs.guided(network, bent, scale)


@pytest.mark.parametrize("solver", [fs.DDIM(), fs.Heun(), fs.EVODiff()])
def test_a_classifier_passes_derivatives(solver):
    """Those of its gradient, too, by noise and by a weight of the classifier, in reverse and in forward mode."""

    def run(noise, weight):
        network = fs.as_denoiser(bent, "sample", SCHEDULE)
        model = fs.classifier_guided(network, lambda x, t: (weight * (x / (1 + t)).sin()).flatten(1).sum(1), 0.5)
        return fs.sample(model, noise, nfe=4, solver=solver, differentiable=True)

    noise, weight = NOISE.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (noise, weight), check_forward_ad=True)
    assert torch.autograd.gradcheck(lambda weight: run(NOISE, weight), weight)  # the first x asks for no derivative
    assert not run(NOISE, WEIGHT).requires_grad


def dropped(x):
    return fs.sample(bent, x, **BOTH).sum()


@pytest.mark.parametrize(
    "take",
    [
        lambda: dropped(NOISE.clone().requires_grad_()),
        lambda: torch.func.grad(dropped)(NOISE),
        lambda: torch.func.jvp(dropped, (NOISE,), (NOISE,)),
        lambda: torch.func.grad(lambda w: fs.sample(lambda x, t: bent(x, t, w), NOISE, **BOTH).sum())(WEIGHT),
        lambda: torch.func.jvp(lambda w: fs.sample(lambda x, t: bent(x, t, w), NOISE, **BOTH), (WEIGHT,), (WEIGHT,)),
    ],
    ids=["requires_grad", "grad", "jvp", "grad by a weight", "jvp by a weight"],
)
def test_a_derivative_that_would_be_dropped_is_told(take):
    with pytest.raises(
        ValueError, match=r"a derivative is taken of noise .*, which would drop it: .*differentiable=True"
    ):
        take()


def test_without_gradients_nothing_is_asked():
    with torch.no_grad():
        assert not dropped(NOISE.clone().requires_grad_()).requires_grad
