"""Everything public can be pickled, for other processes, and does the same there."""

import pickle
from dataclasses import fields, is_dataclass

import pytest
import torch

import fewstep as fs
from fewstep import grid
from fewstep.integrations.kdiffusion import sample_evodiff, sampler
from fewstep.table import SOLVERS
from golden import sd_table

NOISE = fs.unit_noise(range(3), (4, 8))
SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.VPCosine(), sd_table(), fs.Flow(shift=3.0)]


def half(x, t):
    return x / (1 + t * t)


HALF = fs.as_denoiser(half, "sample", fs.EDM())
DENOISERS = {
    "as_denoiser": fs.as_denoiser(half, "epsilon", fs.VPLinear()),
    "reversed": fs.as_denoiser(half, "flow_prediction", fs.Flow(), data_at=1),
    "guided": fs.guided(HALF, half, 2.0),
    "guided each": fs.guided(HALF, half, torch.tensor([1.0, 2.0, 3.0])),
    "threshold": fs.threshold(HALF),
    "clip": fs.clip(HALF),
    "nested": fs.clip(fs.threshold(fs.guided(HALF, half, 2.0))),
}


def again(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers(name):
    denoiser = DENOISERS[name]
    there = again(denoiser)
    assert there.schedule == denoiser.schedule
    assert torch.equal(there(NOISE, 0.5), denoiser(NOISE, 0.5))


def test_every_public_callable():
    """Functions and classes of the package, its schedules, solvers and grids, plans, nodes, steps and errors."""
    public = {name: getattr(fs, name) for name in fs.__all__ if name not in ("Denoiser", "Prediction", "edit")}
    public |= {name: getattr(fs.edit, name) for name in fs.edit.__all__}  # a module; the others are names of types
    for name, value in public.items():
        assert again(value) is value or again(value) == value, name
    for value in SCHEDULES:
        assert again(value) == value
        assert again(value.node(value.t_max)) == value.node(value.t_max)
    for name in grid.__all__:
        value = getattr(grid, name)
        assert again(value) is value or again(value) == value, name
    assert isinstance(again(fs.DenoiserError("x")), fs.DenoiserError)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_and_their_plans(name):
    entry = SOLVERS[name]
    there = again(entry.solver)
    assert is_dataclass(there)
    for each in fields(there):
        ours, theirs = getattr(entry.solver, each.name), getattr(there, each.name)
        assert again(ours) is not None or ours is None
        assert type(ours) is type(theirs)
    options = {"nfe": 5, "schedule": fs.EDM(), "seeds": range(3)}
    assert torch.equal(
        fs.sample(half, NOISE, solver=there, **options), fs.sample(half, NOISE, solver=entry.solver, **options)
    )


def test_samplers_of_k_diffusions_convention():
    sigmas = torch.tensor([10.0, 1.0, 0.0])

    def run(sample):
        return sample(lambda x, sigma: x / (1 + sigma.view(-1, 1, 1) ** 2), NOISE * 10, sigmas, disable=True)

    for each in (sample_evodiff, sampler(fs.DDIM())):
        assert torch.equal(run(again(each)), run(each))


def test_steps():
    *_, step = fs.trajectory(HALF, NOISE * 80, fs.karras(fs.EDM(), 3))
    there = again(step)
    assert (there.index, there.node) == (step.index, step.node)
    assert torch.equal(there.x, step.x)
