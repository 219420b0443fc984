"""EVODiff's default: its weights are those of least variance under the prior, and keep what DDIM keeps."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.variance import LeastVariance
from fewstep.grid import trailing
from fewstep.sampling import plan
from fewstep.solvers.core.base import State
from fewstep.solvers.evodiff import variance as evodiff_variance
from fewstep.solvers.evodiff.path_prior import PathPrior, Paths

SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow()]
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def planned(schedule=SCHEDULES[0], steps=8):
    """Without the limit to the last stage, which is as linear then as the others."""
    nodes = fs.focused(schedule, steps)
    return nodes, evodiff_variance.stages(nodes, False, limit=math.inf)


def replay(nodes, stages, change=()):
    """Every stage's prediction and correction under the prior: how far each is from the path, in all modes.

    `change` adds to the weights of one row: (stage, "move" or "correct", addition).
    """
    paths = Paths(PathPrior(), [node.lam for node in nodes])
    y, past, errors = paths.state[0], [], {}

    def weights(i, name, row, alpha):
        found = np.array(row.weights) / alpha
        for stage, which, addition in change:
            if (stage, which) == (i, name):
                found[: len(addition)] += addition
        return found

    for i, stage in enumerate(stages):
        past.insert(0, paths.answer(i, y))
        if stage.correct is not None:
            y = y + sum(w * m for w, m in zip(weights(i, "correct", stage.correct, nodes[i].alpha), past, strict=False))
            errors[i, "correct"] = np.square(y - paths.state[i]).sum()
        if i + 1 < len(nodes):
            share = nodes[i + 1].nsr / nodes[i].nsr
            row = weights(i, "move", stage.move, nodes[i + 1].alpha)
            y = share * y + sum(w * m for w, m in zip(row, past, strict=False))
            errors[i, "move"] = np.square(y - paths.state[i + 1]).sum()
    return errors


def followed(nodes, stages):
    """The state after every linear stage under the prior, alpha being 1, and the answers so far, newest first."""
    paths = Paths(PathPrior(), [node.lam for node in nodes])
    y, past = paths.state[0], []
    for i, stage in enumerate(stages):
        past.insert(0, paths.answer(i, y))
        for row, share in ((stage.correct, 1.0), (stage.move, nodes[i + 1].nsr / nodes[i].nsr)):
            if row is not None:
                y = share * y + sum(w * m for w, m in zip(row.weights, past, strict=False))
        yield y, past


def assert_least(nodes, stages, i, name, used, error):
    """No shift of weight between neighbours of the row's first `used` leaves less than `error`."""
    for newer in range(used - 1):
        for size in (1e-2, -1e-2):
            addition = np.zeros(used)
            addition[newer : newer + 2] = size, -size
            assert replay(nodes, stages, [(i, name, addition)])[i, name] >= error * (1 - 1e-9)


def at_the_mean(steps=8):
    nodes = fs.focused(fs.EDM(), steps)
    return nodes, evodiff_variance.stages(nodes, False, reach=0.0, restored=0.0, limit=math.inf)


@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize(("plan", "rows"), [(at_the_mean, {"move", "correct"}), (planned, {"correct"})])
def test_no_other_weights_of_the_same_sum_leave_less_variance(plan, rows, steps):
    """But for the prediction that the call is made at, which goes further."""
    nodes, stages = plan(steps=steps)
    least = replay(nodes, stages)
    assert len(least) == 2 * steps - 1
    for (i, name), error in least.items():
        if name not in rows:
            continue
        used = len(getattr(stages[i], name).weights) - (name == "correct" and i > 3)  # but for what it takes back
        assert_least(nodes, stages, i, name, used, error)


def test_peers_leave_more_variance_from_the_same_state():
    """Each step of 2M and 3M in place of ours, from the state that ours reached."""
    nodes, stages = at_the_mean()
    ours = replay(nodes, stages)
    for solver in (fs.DPMSolverPP(order=2), fs.DPMSolverPP(order=3), fs.DDIM()):
        peer = solver.plan(fs.EDM(), nodes)
        for i in range(1, len(nodes) - 1):
            mixed = [*stages[:i], stages[i]._replace(move=peer[i].move), *stages[i + 1 :]]
            assert replay(nodes, mixed)[i, "move"] >= ours[i, "move"]


def test_calls_are_made_at_states_as_varied_as_the_path():
    """Where the mean is less varied; the first prediction has no differences to enlarge, the last is not called."""
    nodes = fs.focused(fs.EDM(), 12)
    path = Paths(PathPrior(), [node.lam for node in nodes]).state[1:]
    states = [y for y, _ in followed(nodes, evodiff_variance.stages(nodes, False, reach=9.0, limit=math.inf))]
    ratios = [np.square(y).sum() / np.square(there).sum() for y, there in zip(states, path, strict=True)]
    first, *called, _ = ratios
    assert first < 1 - 1e-6
    assert min(called) > 1 - 1e-9
    assert called[:7] == pytest.approx([1.0] * 7, rel=1e-9)


def test_differences_reach_a_quarter_further_at_most():
    """Of the second prediction, the first that has a difference; corrections would follow where it leads."""
    nodes = fs.focused(fs.EDM(), 5)
    plans = [evodiff_variance.stages(nodes, False, reach=reach) for reach in (0.0, evodiff_variance.REACH, 9.0)]
    least, ours, full = (plan[1].move.weights[1] for plan in plans)
    assert 0 > 1.25 * least > full
    assert ours == pytest.approx(1.25 * least, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
@pytest.mark.parametrize("to_zero", [False, True])
def test_the_last_prediction_goes_half_the_way_to_the_variance_of_what_it_decides(steps, to_zero):
    """From the mean, which has less; each mode counts by the share that is undecided, and of what is denoised J."""
    nodes = fs.focused(fs.EDM(sigma_min=0.01), steps + to_zero, to_zero=to_zero)
    noisy = nodes[: steps + 1]
    paths = Paths(PathPrior(), [node.lam for node in noisy])

    def image(**options):
        stages = evodiff_variance.stages(nodes, False, limit=math.inf, **options)[:steps]
        return list(followed(noisy, stages))[-1][0]

    def variance(y):
        image = paths.wiener[steps] * y if to_zero else y
        return ((1 - paths.wiener[steps - 1]) * image**2).sum()

    mean, full = image(restored=0.0), image(restored=1.0)
    assert variance(mean) < (1 - 1e-4) * variance(paths.state[-1])
    assert variance(full) == pytest.approx(variance(paths.state[-1]), rel=1e-9)
    np.testing.assert_allclose(image(), (mean + full) / 2, rtol=1e-9, atol=1e-12)


def last_weights(nodes, extra=False, **options):
    return evodiff_variance.stages(nodes, extra, limit=math.inf, **options)[len(nodes) - 2].move.weights


@pytest.mark.parametrize(
    ("nodes", "extra"),
    [
        (fs.log_snr(fs.EDM(), 6), False),
        (fs.log_snr(fs.EDM(), 5), False),
        (fs.focused(fs.EDM(sigma_min=0.1), 5, to_zero=False), False),
        (fs.focused(fs.EDM(), 5), True),
    ],
    ids=["varied already", "varied less by more", "ends at visible noise", "corrected"],
)
def test_the_last_prediction_stays_the_mean(nodes, extra):
    assert last_weights(nodes, extra, restored=1.0) == last_weights(nodes, extra, restored=0.0)


def test_how_far_the_last_prediction_goes_is_bounded():
    """Where the prior hardly expects a difference that could grow."""
    nodes = fs.karras(fs.Flow(), 2)
    alpha = nodes[-1].alpha
    full, mean = (last_weights(nodes, restored=restored) for restored in (1.0, 0.0))
    assert full[1] == pytest.approx(6 * mean[1], rel=1e-9)
    assert 0 < abs(mean[1]) < 0.1 * alpha


def test_the_limit_is_the_same_on_a_flow():
    """Of the same noise levels, relative to the image, wherever the run ends."""
    ratios = (80.0, 12.0, 4.0, 1.5, 1.0)
    flow = [n / (1 + n) for n in ratios]

    def denoiser(x, n):
        return torch.tanh(3 * x / n**2)

    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edm = fs.sample(denoiser, noise, grid=ratios, schedule=fs.EDM())
    there = fs.sample(lambda x, t: denoiser(x / (1 - t), t / (1 - t)), noise, schedule=fs.Flow(), grid=flow)
    torch.testing.assert_close(there / (1 - flow[-1]), edm, rtol=1e-9, atol=1e-9)
    unlimited = fs.sample(denoiser, noise, grid=ratios, solver=LeastVariance(limit=math.inf), schedule=fs.EDM())
    assert (edm - unlimited).abs().max() > 1e-5  # it takes part


def test_the_last_step_is_linear_where_changes_go_on_and_ddim_where_they_have_ended():
    """In each sample: of one batch, one that goes on, one that has decided, and one that has almost."""
    nodes, stages = planned(steps=5)
    linear, last = stages[-1], evodiff_variance.stages(nodes, False)[-1]
    generator = torch.Generator().manual_seed(0)
    older = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)  # of each call, newest first
    newest = older[0] + torch.tensor([[1.0], [0.0], [1e-3]]) * (older[0] - older[1])
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    got, _ = last(State(None, tuple(older)), x, newest)
    free, _ = linear(State(None, tuple(older)), x, newest)
    corrected = linear.correct.apply(x, (newest, *older))
    ddim = linear.move.scale * corrected + sum(linear.move.weights) * newest
    torch.testing.assert_close(got[0], free[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got[1], ddim[1], rtol=1e-13, atol=1e-13)
    added = (got - ddim).norm(dim=1)[2].item()
    assert added == pytest.approx(last.limit * (newest - older[0])[2].norm().item(), rel=1e-9)
    assert (free - ddim).norm(dim=1)[2] > 100 * added


def test_the_limit_is_what_the_prior_expects_of_the_mean_and_a_quarter():
    nodes = planned(steps=5)[0]
    stages = evodiff_variance.stages(nodes, False, restored=0.0, limit=math.inf)
    *_, (_, past) = followed(nodes, stages)
    total = sum(stages[-1].move.weights)
    added = sum(w * m for w, m in zip(stages[-1].move.weights, past, strict=False)) - total * past[0]
    expected = np.linalg.norm(added) / np.linalg.norm(past[0] - past[1])
    assert evodiff_variance.stages(nodes, False)[-1].limit == pytest.approx(1.25 * expected, rel=1e-9)


def test_a_denoiser_that_has_decided_is_believed():
    """Of two images: from most starts one of them is reached, closer than by the regression alone."""
    images = torch.randn(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoiser(x, sigma):
        return torch.softmax(-(torch.cdist(x, images) ** 2) / (2 * sigma**2), dim=1) @ images

    def away(stages):
        x, state = 80 * torch.randn(256, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64), None
        for stage in stages:
            x, state = stage(state, x, denoiser(x, stage.node.sigma))
        return torch.cdist(x, images).min(dim=1).values

    nodes, stages = planned(steps=5)
    limited, free = away(evodiff_variance.stages(nodes, False)), away(stages)
    noise = nodes[-1].sigma * math.sqrt(12)  # what a state still has at sigma_min
    assert limited.median() < 1.5 * noise < free.median() / 10


@over_schedules
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_what_does_not_change_passes_exactly(schedule, steps):
    nodes, stages = planned(schedule, steps)
    for i, (stage, (s, t)) in enumerate(zip(stages, pairwise(nodes), strict=True)):
        assert stage.move.scale == pytest.approx(t.sigma / s.sigma, rel=1e-15)
        assert sum(stage.move.weights) == pytest.approx(t.alpha - s.alpha * t.sigma / s.sigma, rel=1e-12)
        if stage.correct is None:
            assert i == 0 or t.sigma == 0
        else:
            assert stage.correct.scale == 1
            assert sum(stage.correct.weights) == pytest.approx(0, abs=1e-12)


def test_of_a_gaussian_of_one_mode_a_second_prediction_tells_everything():
    """The better the prior, the less is left: two predictions determine the only number that it does not know."""
    nodes = fs.focused(fs.EDM(), 6)
    std = 0.7
    prior = PathPrior(surprise=0.0, smallest=std, largest=std, modes=1)
    start = 80 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, state = start, None
    for stage in evodiff_variance.stages(nodes, False, prior=prior, reach=0.0):
        x, state = stage(state, x, x * std**2 / (std**2 + stage.node.sigma**2))
    exact = start * math.sqrt((std**2 + nodes[-1].sigma ** 2) / (std**2 + 80**2))
    torch.testing.assert_close(x, exact, rtol=1e-6, atol=0)


def gaussian_denoiser(schedule, std=0.5):
    """Of N(0, std^2) in every pixel, whose runs are x_t = x_s sqrt(var_t / var_s)."""

    def denoiser(x, t):
        node = schedule.node(t)
        return x * node.alpha * std**2 / variance(node)

    def variance(node):
        return (node.alpha * std) ** 2 + node.sigma**2

    return denoiser, variance


ZERO_SNR = fs.Discrete(np.linspace(0.999, 0.0, 1000).tolist())


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (fs.Flow(), fs.time_uniform),  # from sigma = 1, where alpha = 0, as SD3 and Flux
        (fs.Flow(3.0), fs.time_uniform),
        (ZERO_SNR, fs.focused),
        (ZERO_SNR, trailing),
        (fs.EDM(sigma_max=1e5), fs.log_snr),
        (fs.EDM(sigma_min=1e-6), fs.log_snr),
    ],
)
def test_nodes_beyond_the_prior_do_no_harm(schedule, grid):
    """Of |lam| > 7, infinite ones included: better than DDIM at all budgets, and with many steps as good as UniPC-2."""
    denoiser, variance = gaussian_denoiser(schedule)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(nfe, solver):
        nodes, _ = plan(schedule, solver, nfe=nfe, grid=grid)
        assert max(abs(node.lam) for node in nodes[: -1 if nodes[-1].sigma == 0 else None]) > 7
        exact = x * nodes[0].sigma * math.sqrt(variance(nodes[-1]) / variance(nodes[0]))
        got = fs.sample(denoiser, x, nfe=nfe, solver=solver, schedule=schedule, grid=grid)
        return (got - exact).square().mean().sqrt().item()

    for nfe in (8, 16, 32, 64):
        assert error(nfe, fs.EVODiff()) < error(nfe, fs.DDIM())
    assert error(64, fs.EVODiff()) < 1.15 * error(64, fs.UniPC(order=2))


def test_noise_in_answers_is_not_enlarged_where_the_prior_sees_no_difference():
    """Twenty nodes below 9e-4, where answers differ by their noise only: what reaches the image is of its size."""
    schedule = fs.EDM(sigma_min=1e-9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 100, generator=generator, dtype=torch.float64)

    def denoiser(x, t):
        return 0 * x + 0.01 * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    got = fs.sample(denoiser, x, nfe=40, schedule=schedule, grid=fs.log_snr(to_zero=False))
    assert got.std() < 3 * 0.01


def test_an_extra_call_corrects_the_last_step():
    nodes = fs.focused(fs.EDM(), 6)
    stages = fs.EVODiff(lower_order_final=False).plan(fs.EDM(), nodes)
    assert len(stages) == 7
    assert stages[-1].node == nodes[-1]
    errors = replay(nodes, stages)
    assert errors[6, "correct"] < errors[5, "move"]


@over_schedules
def test_it_keeps_four_predictions_at_most(schedule):
    nodes = fs.focused(schedule, 12)
    *linear, last = fs.EVODiff().plan(schedule, nodes)
    assert max(len(stage.keep) for stage in linear) == 4
    assert not any(stage.hold for stage in linear)
    _, state = last(State(None, (torch.zeros(1, 2),) * 4), torch.zeros(1, 2), torch.ones(1, 2))
    assert state == (None, ())


def test_channels_are_not_for_it():
    with pytest.raises(ValueError, match='only mode="published" and "paper" measure channels; got EVODiff'):
        fs.EVODiff(channel_dim=-1)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_a_denoiser_that_always_answers_the_same_is_followed(value):
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = fs.sample(lambda x, t: torch.full_like(x, value), x, nfe=7, schedule=fs.EDM())
    # The line from 80 x at 80 to the value at 0.
    torch.testing.assert_close(got, value + (80 * x - value) * (0.002 / 80), rtol=1e-12, atol=1e-12)
