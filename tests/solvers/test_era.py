import itertools
import math

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks import orders
from benchmarks.problems import gaussian
from fewstep.solvers.era import ERA, _ladder


def bases_by_rule(i, k, exponent):
    """floor((m / k)^exponent i) for m = 1 ... k, and the next older free one where that repeats."""
    chosen = [i]
    for m in range(k - 1, 0, -1):
        chosen.insert(0, max(min(math.floor((m / k) ** exponent * i), chosen[0] - 1), m - 1))
    return chosen


def by_definition(denoiser, x, nodes, k, scale, history):
    """The module's formulas for one sample, on numbers; also the bases of every guess."""
    e, times, found, guess = [], [], [], None
    for s, t in itertools.pairwise(nodes):
        e.append((x - s.alpha * denoiser(x, s.time)) / s.sigma)
        times.append(s.time)
        e, times = e[-history:], times[-history:]
        mean = e[-1]
        if len(e) >= k and t.sigma:
            error = scale if guess is None else math.sqrt(np.mean((e[-1] - guess) ** 2))
            bases = bases_by_rule(len(e) - 1, k, error / scale)
            found.append(bases)
            guess = sum(
                e[j] * math.prod((t.time - times[n]) / (times[j] - times[n]) for n in bases if n != j) for j in bases
            )
            mean = (9 * guess + 19 * e[-1] - 5 * e[-2] + e[-3]) / 24
        x = t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * mean
    return x, found


@pytest.mark.parametrize("solver", [ERA(), ERA(3, 0.01), ERA(5, 0.05, 6), ERA(6, 2.0)], ids=repr)
@pytest.mark.parametrize("to_zero", [True, False])
def test_equals_its_definition_sample_by_sample(solver, to_zero):
    schedule, problem = fs.VPLinear(), gaussian(components=2)
    nodes = fs.log_snr(schedule, 12, to_zero=to_zero)
    denoiser = problem.denoiser(schedule)
    x = torch.randn(5, *problem.shape, dtype=torch.float64) * torch.tensor([0.3, 0.7, 1.0, 2.0, 4.0]).reshape(
        5, 1, 1, 1
    )
    got = fs.integrate(denoiser, x, nodes, solver=solver, schedule=schedule)
    kinds = set()
    for i in range(len(x)):
        want, bases = by_definition(
            lambda x, t: denoiser(torch.tensor(x[None]), t)[0].numpy(),
            x[i].numpy(),
            nodes,
            solver.bases,
            solver.scale,
            solver.history,
        )
        np.testing.assert_allclose(got[i].numpy(), want, rtol=0, atol=1e-11)
        kinds.add(str(bases))
    if solver == ERA(3, 0.01):
        assert len(kinds) > 1  # the samples did choose for themselves


@pytest.mark.parametrize("count", [4, 5, 9, 10])
@pytest.mark.parametrize("bases", [3, 4])
def test_the_ladder_is_the_rule_for_the_bases(count, bases):
    ladder = _ladder(count, bases)
    low = 0.0
    for high, chosen in ladder:
        for exponent in (low + 1e-9, (low + min(high, low + 5)) / 2, min(high - 1e-9, 50.0)):
            if low < exponent < high:
                assert list(chosen) == bases_by_rule(count - 1, bases, exponent)
        low = high
    assert len({chosen for _, chosen in ladder}) == len(ladder)


def test_good_guesses_take_the_newest_bases_and_bad_ones_the_oldest():
    ladder = _ladder(10, 4)
    assert ladder[0][1] == (6, 7, 8, 9)
    assert ladder[-1][1] == (0, 1, 2, 9)
    evenly = next(chosen for exponent, chosen in ladder if exponent >= 1)
    assert evenly == (2, 4, 6, 9)  # floor(9 m / 4)


@pytest.mark.parametrize(("scale", "chosen"), [(1e9, slice(-4, None)), (1e-9, [0, 1, 2, -1])])
def test_the_scale_forces_the_bases_to_either_limit(scale, chosen):
    """The second guess, extrapolated through the newest or through the oldest and the newest predictions."""
    nodes = fs.karras(fs.EDM(), 9, to_zero=False)
    stages = ERA(scale=scale).plan(fs.EDM(), nodes)
    x, state, past = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 80, None, []
    for stage in stages[:8]:
        denoised = x / (1 + stage.node.time**2) + 0.1 * torch.sin(x)
        past.append((x - denoised) / stage.node.sigma)
        x, state = stage(state, x, denoised)
    times = np.array([node.time for node in nodes[:8]])
    times, e = times[chosen], torch.stack(past)[chosen]
    want = sum(
        e[j] * math.prod((nodes[8].time - times[n]) / (times[j] - times[n]) for n in range(4) if n != j)
        for j in range(4)
    )
    torch.testing.assert_close(state.guess, want, rtol=0, atol=1e-12)


def test_the_first_steps_and_the_one_to_zero_are_ddim():
    nodes = fs.karras(fs.EDM(), 6, to_zero=True)
    stages = ERA().plan(fs.EDM(), nodes)
    assert [stage.table is None for stage in stages] == [True, True, True, False, False, True]
    x = torch.randn(2, 3, dtype=torch.float64) * 80

    def denoiser(x, t):
        return x / (1 + t * t)

    got = [step.x for step in fs.trajectory(denoiser, x, nodes, solver=ERA(), schedule=fs.EDM())]
    ddim = [step.x for step in fs.trajectory(denoiser, x, nodes, solver=fs.DDIM(), schedule=fs.EDM())]
    torch.testing.assert_close(got[:3], ddim[:3], rtol=1e-13, atol=0)
    assert not torch.allclose(got[3], ddim[3], rtol=1e-3, atol=0)


def test_tends_to_second_order():
    """On EDM only from a few hundred steps on: with fewer, the errors of h^2 and of h^3 cancel in part."""
    steps = (320, 640)
    errors = orders.convergence(ERA(), fs.EDM(), gaussian(), steps)
    assert orders.fitted_order(steps, errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bases": 2}, "bases must be one of 3, 4, 5, 6; got 2"),
        ({"field": "data"}, "field must be one of 'noise', 'velocity'"),
        ({"scale": 0.0}, "scale must be positive and finite; got scale=0.0"),
        ({"history": 3}, "history must hold the 4 bases; got history=3"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ERA(**options)


def test_a_flow_needs_velocities():
    nodes = fs.time_uniform(fs.Flow(), 6)
    with pytest.raises(ValueError, match='field="velocity"'):
        ERA().plan(fs.Flow(), nodes)
    assert len(ERA(field="velocity").plan(fs.Flow(), nodes)) == 6


def test_nodes_of_one_time_are_refused():
    nodes = [fs.Node(999.0 if i < 6 else 500.0, *nodes[1:]) for i, nodes in enumerate(fs.log_snr(fs.EDM(), 7))]
    with pytest.raises(ValueError, match="two nodes are at the same one"):
        ERA().plan(fs.EDM(), nodes)
