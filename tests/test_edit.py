"""Edit-friendly inversion: the image comes back, its maps are what they should be, and edits are what is asked for."""

import math
import pickle

import pytest
import torch

import fewstep as fs
from fewstep import edit
from table import stochastic

SCHEDULE = fs.EDM(0.05, 20.0)
NODES = fs.karras(SCHEDULE, 6)
ONE_CALL = {name: entry.solver for name, entry in stochastic.items() if entry.calls == 1}
VARIANCE = 0.3  # of Gaussian data


def gaussian(x, t):
    """Of pixels N(0.2, VARIANCE)."""
    return 0.2 + (x - 0.2) * (VARIANCE / (VARIANCE + t * t))


def blurring(x, t):
    """No distribution's; commutes with shifts, and bends."""
    return (x + x.roll(1, -1) + x.roll(-1, -2)).tanh() / (1 + t)


def images(count=3, dtype=torch.float64, side=4):
    return torch.rand(count, 2, side, side, dtype=torch.float64).mul(2).sub(1).to(dtype)


def steps_of(solver, schedule=SCHEDULE, nodes=NODES):
    return solver.plan(schedule, nodes)


# The image comes back


@pytest.mark.parametrize("solver", ONE_CALL.values(), ids=ONE_CALL.keys())
def test_a_replay_returns_the_image_with_every_stochastic_solver_of_one_call(solver):
    """To the last bits: the states of the replay are those of the inversion, and mean + (x - mean) is rounded twice."""
    x = images()
    maps = edit.invert(blurring, x, NODES, solver=solver, schedule=SCHEDULE, seeds=range(3))
    largest = max(float(step.abs().max()) for step in maps.steps[-1:]) + 1
    assert (edit.replay(blurring, maps) - x).abs().max() <= 4 * 2**-53 * largest


def test_32_images_come_back_from_a_network(tmp_path):
    """In float32, with its answers the same to the bit in any batch."""
    pytest.importorskip("safetensors", reason="needs the extra cli")
    from fewstep.adapters import load_model
    from tiny import save_model

    model = load_model(save_model(tmp_path / "model"), batch=8)
    x = torch.rand(32, *model.shape).mul(2).sub(1)
    source = model.conditioned([i % 3 for i in range(32)])
    maps = edit.invert(source, x, fs.karras(model.schedule, 12), seeds=range(32))
    assert (edit.replay(source, maps) - x).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept(dtype):
    x = images(dtype=dtype)
    maps = edit.invert(gaussian, x, NODES, schedule=SCHEDULE, seeds=range(3))
    assert maps.start.dtype == dtype
    assert all(step.dtype == torch.float32 for step in maps.steps)
    assert edit.replay(gaussian, maps).dtype == dtype
    torch.testing.assert_close(edit.replay(gaussian, maps), x, rtol=0, atol=4 * 2**-24)


@pytest.mark.parametrize("schedule", [fs.VPLinear(), fs.Flow(), fs.Discrete([0.9, 0.5, 0.1, 0.01])])
def test_on_any_schedule(schedule):
    nodes = fs.time_uniform(schedule, 5)
    x = images()
    maps = edit.invert(blurring, x, nodes, solver=fs.SDEDPMSolverPP(), schedule=schedule, seeds=range(3))
    torch.testing.assert_close(edit.replay(blurring, maps), x, rtol=0, atol=1e-14)


# What the maps are


def test_maps_of_ddpm_are_those_of_the_paper():
    """z_t = (x_(t-1) - mu_t(x_t)) / sigma_t by DDPM's own formulas, with states that are noised apart (Algorithm 1)."""
    bars = torch.linspace(0.98, 0.02, 20, dtype=torch.float64).tolist()
    schedule, times = fs.Discrete(bars), (19, 12, 6, 2)
    nodes = fs.from_times(schedule, [*times, -1])
    x = images(side=64)
    maps = edit.invert(blurring, x, nodes, schedule=schedule, seeds=range(3))
    stages = steps_of(fs.DDIM(eta=1.0), schedule, nodes)
    state, noises = maps.start, []
    for s, t, step, stage in zip(times, times[1:], maps.steps, stages, strict=False):
        alpha = bars[s] / bars[t]
        mean = bars[t] ** 0.5 * (1 - alpha) * blurring(state, float(s)) + alpha**0.5 * (1 - bars[t]) * state
        assert stage.noise**2 == pytest.approx((1 - bars[t]) / (1 - bars[s]) * (1 - alpha), rel=1e-12)
        noises.append((state - bars[s] ** 0.5 * x) / (1 - bars[s]) ** 0.5)
        state = mean / (1 - bars[s]) + step
    noises.append((state - bars[2] ** 0.5 * x) / (1 - bars[2]) ** 0.5)
    correlations = torch.corrcoef(torch.stack(noises).flatten(1))
    assert (correlations - torch.eye(4)).abs().max() < 5 / math.sqrt(x.numel())
    assert torch.stack(noises).std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * 4 * x.numel()))


def test_maps_have_more_variance_than_noise_and_neighbours_are_opposed():
    """In closed form: with a step's mean g x + c, r_i = sigma_(i+1) e_(i+1) - g_i sigma_i e_i + (what is constant)."""
    x = torch.zeros(1, 200_000, dtype=torch.float64)
    maps = edit.invert(gaussian, x, NODES, schedule=SCHEDULE, seeds=[5])
    stages = steps_of(fs.DDIM(eta=1.0))
    gains = [stage.move.scale + stage.move.weights[0] * VARIANCE / (VARIANCE + stage.node.sigma**2) for stage in stages]
    for i in range(4):
        s, t = NODES[i].sigma, NODES[i + 1].sigma
        variance = t**2 + (gains[i] * s) ** 2
        # Standard errors of a variance and of a covariance of so many draws.
        assert float(maps.steps[i].var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / x.numel()))
        assert variance > stages[i].noise ** 2
        after = NODES[i + 2].sigma ** 2 + (gains[i + 1] * t) ** 2
        found = float(torch.cov(torch.cat(maps.steps[i : i + 2]))[0, 1])
        assert found == pytest.approx(-gains[i + 1] * t**2, abs=5 * math.sqrt(2 * variance * after / x.numel()))


# Edits


def test_another_denoiser_moves_the_image_by_what_it_moves_its_answers():
    """Where an answer is the same for all x, the last one is the sample."""
    maps = edit.invert(lambda x, t: torch.full_like(x, 0.1), images(), NODES, schedule=SCHEDULE, seeds=range(3))
    moved = edit.replay(lambda x, t: torch.full_like(x, 0.4), maps)
    torch.testing.assert_close(moved, images_again() + 0.3, rtol=0, atol=1e-14)


def images_again():
    torch.manual_seed(0)
    return images()


def test_shifted_maps_make_the_shifted_image():
    def shift(each):
        return each.roll((1, 2), (-2, -1))

    x = images()
    maps = edit.invert(blurring, x, NODES, solver=fs.SDEDPMSolverPP(), schedule=SCHEDULE, seeds=range(3))
    torch.testing.assert_close(edit.replay(blurring, maps.changed(shift)), shift(x), rtol=0, atol=1e-14)


def test_a_skipped_start_begins_at_the_state_that_the_whole_run_comes_through():
    x = images()
    whole = edit.invert(blurring, x, NODES, schedule=SCHEDULE, seeds=range(3))
    late = edit.invert(blurring, x, NODES[3:], schedule=SCHEDULE, seeds=range(3))
    assert len(late.steps) == len(whole.steps) - 3
    for got, want in zip(late.steps, whole.steps[3:], strict=True):
        # A state of size 20 is rounded once more in the whole run.
        torch.testing.assert_close(got, want, rtol=0, atol=20 * 4 * 2**-53)


def test_a_later_start_keeps_more_of_the_image():
    x = images()
    moved = []
    for skip in range(0, 5, 2):
        maps = edit.invert(gaussian, x, NODES[skip:], schedule=SCHEDULE, seeds=range(3))
        moved.append(float((edit.replay(blurring, maps) - x).square().mean()))
    assert moved == sorted(moved, reverse=True)


# Batches, calls, errors


@pytest.mark.parametrize("solver", [fs.DDIM(eta=1.0), fs.Stochastic(fs.EVODiff(), 1.0)])
def test_maps_do_not_depend_on_the_batch(solver):
    x = images()
    options = {"solver": solver, "schedule": SCHEDULE}
    together = edit.invert(blurring, x, NODES, seeds=(3, 4, 5), **options)
    alone = edit.invert(blurring, x[1:2], NODES, seeds=[4], **options)
    assert torch.equal(together.start[1:2], alone.start)
    assert all(torch.equal(a[1:2], b) for a, b in zip(together.steps, alone.steps, strict=True))


def test_each_costs_one_call_a_step():
    calls = []

    def counting(x, t):
        calls.append(t)
        return gaussian(x, t)

    maps = edit.invert(counting, images(), NODES, schedule=SCHEDULE, seeds=range(3))
    assert calls == [node.time for node in NODES[:-1]]
    edit.replay(counting, maps)
    assert calls[6:] == calls[:6]


def test_maps_can_be_kept_and_serve_under_autograd():
    maps = pickle.loads(pickle.dumps(edit.invert(gaussian, images(), NODES, schedule=SCHEDULE, seeds=range(3))))
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (maps.steps[0] * weight).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(edit.replay(gaussian, maps), images_again(), rtol=0, atol=1e-14)


def test_the_schedule_is_that_of_the_source():
    source = fs.as_denoiser(gaussian, "sample", SCHEDULE)
    maps = edit.invert(source, images(), NODES, seeds=range(3))
    torch.testing.assert_close(edit.replay(gaussian, maps), images_again(), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="a run has one schedule"):
        edit.replay(fs.as_denoiser(gaussian, "sample", fs.VPLinear()), maps)


@pytest.mark.parametrize("solver", [fs.DDIM(), fs.UniPC(), fs.EVODiff(), fs.SDEDPMSolverPP(eta=0.0)])
def test_a_solver_without_noise_is_refused(solver):
    with pytest.raises(ValueError, match="draws no noise over these nodes: take DDIM"):
        edit.invert(gaussian, images(), NODES, solver=solver, schedule=SCHEDULE, seeds=range(3))


@pytest.mark.parametrize("solver", [fs.SEEDS(), fs.SASolver(mode="PECE"), fs.Heun(s_churn=3.0)])
def test_a_solver_of_more_calls_is_refused(solver):
    with pytest.raises(ValueError, match="one call a step"):
        edit.invert(gaussian, images(), NODES, solver=solver, schedule=SCHEDULE, seeds=range(3))


def test_wrong_input_is_refused_at_the_door():
    x = images()
    options = {"schedule": SCHEDULE, "seeds": range(3)}
    with pytest.raises(ValueError, match="x must be finite"):
        edit.invert(gaussian, x * math.nan, NODES, **options)
    with pytest.raises(ValueError, match="seeds must be one a sample; got 2 for 3"):
        edit.invert(gaussian, x, NODES, schedule=SCHEDULE, seeds=range(2))
    with pytest.raises(ValueError, match=r"give x.detach\(\)"):  # no differentiable=True, which it does not have
        edit.invert(gaussian, x.clone().requires_grad_(), NODES, **options)
    with pytest.raises(ValueError, match="nodes must be of falling noise"):
        edit.invert(gaussian, x, fs.karras(SCHEDULE, 6, to_zero=False)[::-1], **options)
    maps = edit.invert(gaussian, x, NODES, **options)
    with pytest.raises(ValueError, match="change must make a tensor of each"):
        maps.changed(lambda each: None)
    with pytest.raises(fs.DenoiserError, match="call 2 "):
        edit.replay(lambda x, t: x * (math.nan if t == NODES[2].time else 1), maps)
