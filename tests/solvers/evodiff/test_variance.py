"""EVODiff's default: its weights are those of least variance under the prior, and keep what DDIM keeps."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.grid import trailing
from fewstep.sampling import plan
from fewstep.schedule import DATA_STD
from fewstep.solvers.evodiff import differences
from fewstep.solvers.evodiff import variance as evodiff_variance
from fewstep.solvers.evodiff.path_prior import PathPrior, Paths

SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow()]
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def planned(schedule=SCHEDULES[0], steps=8, extra=False, **options):
    nodes = fs.focused(schedule, steps)
    return nodes, evodiff_variance.stages(nodes, extra, DATA_STD, **options)


def at_the_mean(schedule=SCHEDULES[0], steps=8):
    return planned(schedule, steps, reach=0.0, restored=0.0)


def by_answers(total, differences=()):
    """The weights of m_0, m_1, ..., of total m_0 + sum_j differences_j (m_j - m_j+1)."""
    weights = np.diff([0.0, *differences, 0.0])
    weights[0] += total
    return weights


def row(stage, name):
    """What a stage weighs answers by if all is trusted, z = s = 1; of "lead", only the two newest."""
    total, split = (stage.gain, stage.correct) if name == "correct" else (stage.move, stage.predict)
    if not split:
        return by_answers(total)
    if name == "lead" or not split.rest:
        return by_answers(total, (split.lead,))
    return by_answers(total, (split.lead + split.rest[0], *split.rest[1:]))


def weighed(weights, answers):
    return sum(w * m for w, m in zip(weights, answers, strict=False))


def replay(nodes, stages, changed=()):
    """Every stage's correction and predictions under the prior, in all modes: i, the name, the state and its error.

    `changed` are weights in place of those of (stage, name). The run goes on from "move".
    """
    changed = dict(changed)
    paths = Paths(PathPrior(), [node.lam for node in nodes])
    y, kept, past = paths.state[0], None, []
    for i, stage in enumerate(stages):
        past.insert(0, paths.answer(i, y).reshape(y.shape))
        if stage.correct:
            y = kept + weighed(changed.get((i, "correct"), row(stage, "correct") / nodes[i].alpha), past)
            yield i, "correct", y, np.square(y - paths.state[i]).sum()
        if i + 1 < len(nodes):
            kept = nodes[i + 1].nsr / nodes[i].nsr * y
            for name in ("lead", "move"):
                y = kept + weighed(changed.get((i, name), row(stage, name) / nodes[i + 1].alpha), past)
                yield i, name, y, np.square(y - paths.state[i + 1]).sum()


def errors(nodes, stages, changed=()):
    return {(i, name): error for i, name, _, error in replay(nodes, stages, changed)}


def followed(nodes, stages):
    """The state after every stage under the prior, alpha being 1."""
    return [y for _, name, y, _ in replay(nodes, stages) if name == "move"]


@pytest.fixture
def unbounded(monkeypatch):
    """The rows as the prior asks for them."""
    for bound in ("LEAD", "REST"):
        monkeypatch.setattr(differences, bound, 1e300)


@pytest.mark.usefixtures("unbounded")
@over_schedules
@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize(("plan", "rows"), [(at_the_mean, {"move", "lead", "correct"}), (planned, {"correct"})])
def test_no_other_weights_of_the_same_sum_leave_less_variance(schedule, plan, rows, steps):
    """But for the prediction that the call is made at, which goes further; of the two newest answers, if only those."""
    nodes, stages = plan(schedule, steps)
    least = errors(nodes, stages)
    assert len(least) == 3 * steps - 1
    for (i, name), error in least.items():
        if name not in rows:
            continue
        weights = row(stages[i], name) / nodes[i + (name != "correct")].alpha
        for newer in range(len(weights) - 1):
            for size in (1e-2, -1e-2):
                other = weights.copy()
                other[newer : newer + 2] += size, -size
                assert errors(nodes, stages, {(i, name): other})[i, name] >= error * (1 - 1e-9)


@over_schedules
def test_a_row_has_as_many_answers_as_there_are_and_four_at_most(schedule):
    stages = planned(schedule, 8)[1]
    assert [len(row(stage, "move")) for stage in stages] == [1, 2, 3, 4, 4, 4, 4, 4]
    assert [len(row(stage, "lead")) for stage in stages] == [1, 2, 2, 2, 2, 2, 2, 2]
    assert [len(row(stage, "correct")) for stage in stages] == [1, 2, 3, 4, 4, 4, 4, 4]
    assert [len(stage.foretold) for stage in stages] == [0, 0, 1, 2, 2, 2, 2, 2]


def test_what_is_foretold_leaves_least_of_the_answer():
    """What is left is the surprise, or a share of the step's length: no other weights of earlier answers leave less."""
    nodes, stages = planned(steps=6)
    paths = Paths(PathPrior(), [node.lam for node in nodes])
    states = [paths.state[0], *followed(nodes, stages)]  # where the calls are made
    past = []
    for i, stage in enumerate(stages):
        answer = paths.answer(i, states[i]).reshape(states[i].shape)
        if past:
            used = len(stage.foretold) + 1
            weights = by_answers(1.0, stage.foretold)[:used]

            def left(weights, answer=answer):
                return np.linalg.norm(answer - weighed(weights, past))

            length = 1 - nodes[i].nsr / nodes[i - 1].nsr
            least = evodiff_variance.ONE_SCALE * length
            assert max(left(weights), least) == pytest.approx(stage.surprise, rel=1e-9)
            for newer in range(used - 1):
                for size in (1e-2, -1e-2):
                    other = weights.copy()
                    other[newer : newer + 2] += size, -size
                    assert left(other) >= left(weights) * (1 - 1e-9)
        past.insert(0, answer)


def test_peers_leave_more_variance_from_the_same_state():
    """Each step of 2M and 3M in place of ours, from the state that ours reached."""
    nodes, stages = at_the_mean()
    ours = errors(nodes, stages)
    for solver in (fs.DPMSolverPP(order=2), fs.DPMSolverPP(order=3), fs.DDIM()):
        peer = solver.plan(fs.EDM(), nodes)
        for i in range(1, len(nodes) - 1):
            assert errors(nodes, stages, {(i, "move"): peer[i].move.weights})[i, "move"] >= ours[i, "move"]


@pytest.mark.parametrize("part", ["move", "lead"])
def test_calls_are_made_at_states_as_varied_as_the_path(part):
    """Where the mean is less varied; the first prediction has no differences to enlarge, the last is not called.

    Of the two newest answers alone too, from the state that the plan reached.
    """
    nodes, stages = planned(steps=12, reach=9.0)
    paths = Paths(PathPrior(), [node.lam for node in nodes])
    ratios = [
        np.square(y).sum() / np.square(paths.state[i + 1]).sum()
        for i, name, y, _ in replay(nodes, stages)
        if name == part
    ]
    first, *called, _ = ratios
    assert first < 1 - 1e-6
    assert min(called) > 1 - 1e-9
    assert called[:7] == pytest.approx([1.0] * 7, rel=1e-9)


def test_differences_reach_a_quarter_further_at_most():
    """Of the second prediction, the first that has a difference; corrections would follow where it leads."""
    plans = [planned(steps=5, reach=reach)[1] for reach in (0.0, evodiff_variance.REACH, 9.0)]
    least, ours, full = (plan[1].predict.lead for plan in plans)
    assert 0 < 1.25 * least < full
    assert ours == pytest.approx(1.25 * least, rel=1e-12)


@pytest.mark.parametrize("part", ["move", "lead"])
@pytest.mark.parametrize("steps", [2, 3, 5, 8])
@pytest.mark.parametrize("to_zero", [False, True])
def test_the_last_prediction_goes_half_the_way_to_the_variance_of_what_it_decides(steps, to_zero, part):
    """From the mean, which has less; each mode counts by the share that is undecided, and of what is denoised J."""
    nodes = fs.focused(fs.EDM(sigma_min=0.01), steps + to_zero, to_zero=to_zero)
    noisy = nodes[: steps + 1]
    paths = Paths(PathPrior(), [node.lam for node in noisy])

    def image(**options):
        stages = evodiff_variance.stages(nodes, False, DATA_STD, **options)[:steps]
        last = [y for i, name, y, _ in replay(noisy, stages) if (i, name) == (steps - 1, part)]
        return last[-1]

    def variance(y):
        image = paths.wiener[steps] * y if to_zero else y
        return ((1 - paths.wiener[steps - 1]) * image**2).sum()

    mean, full = image(restored=0.0), image(restored=1.0)
    assert variance(mean) < (1 - 1e-4) * variance(paths.state[-1])
    assert variance(full) == pytest.approx(variance(paths.state[-1]), rel=1e-9)
    np.testing.assert_allclose(image(), (mean + full) / 2, rtol=1e-9, atol=1e-12)


def last_weights(nodes, extra=False, **options):
    return row(evodiff_variance.stages(nodes, extra, DATA_STD, **options)[len(nodes) - 2], "move").tolist()


@pytest.mark.usefixtures("unbounded")
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
    assert 0 < abs(mean[1]) < 0.2 * alpha


@over_schedules
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_what_does_not_change_passes_exactly(schedule, steps):
    """The weights of x and of an answer that is always the same are those of DDIM; a correction takes back its own."""
    nodes, stages = planned(schedule, steps)
    for i, (stage, (s, t)) in enumerate(zip(stages, pairwise(nodes), strict=True)):
        assert stage.scale == pytest.approx(t.sigma / s.sigma, rel=1e-15)
        assert stage.move == pytest.approx(t.alpha - s.alpha * t.sigma / s.sigma, rel=1e-12)
        if stage.correct:
            assert stage.gain == stages[i - 1].move
        else:
            assert i == 0 or t.sigma == 0


def test_of_a_gaussian_of_one_mode_a_second_prediction_tells_everything():
    """The better the prior, the less is left: two predictions determine the only number that it does not know."""
    nodes = fs.focused(fs.EDM(), 6)
    std = 0.7
    prior = PathPrior(surprise=0.0, smallest=std, largest=std, modes=1)
    start = 80 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, state = start, None
    for stage in evodiff_variance.stages(nodes, False, DATA_STD, prior=prior, reach=0.0):
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


ZERO_SNR = fs.Discrete(np.linspace(0.999, 0.0, 1000).tolist(), data_std=0.5)


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

    for nfe in (8, 16, 32, 64, 256):
        assert error(nfe, fs.EVODiff()) < error(nfe, fs.DDIM())
    assert error(256, fs.EVODiff()) < 1.15 * error(256, fs.UniPC(order=2))


@pytest.mark.parametrize("schedule", [fs.EDM(0.03, 15.0), fs.Flow(), fs.Flow(3.0)], ids=repr)
@pytest.mark.parametrize("steps", [5, 20])
def test_a_step_to_zero_foretells_the_answer_where_the_schedule_ends(schedule, steps):
    """Exactly where answers are a linear function of n^1.5, from levels even in time, which stop far above that."""
    nodes = fs.time_uniform(schedule, steps, to_zero=True)
    end = math.exp(-schedule.lam_range[1])
    assert nodes[-2].nsr > end
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def answer(nsr):
        return x + 1e-4 * x.flip(0) * min(nsr, 100.0) ** 1.5

    got = fs.sample(
        lambda _, t: answer(schedule.node(t).nsr), x, nfe=steps, schedule=schedule, grid=fs.time_uniform(to_zero=True)
    )
    torch.testing.assert_close(got, answer(end), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "levels", "lead"),
    [
        (fs.Flow(), [1.0, 0.20558875829986847, 0.20558875829986845, 0.0], 1.0),  # sigma / alpha rounds to the same
        (fs.EDM(), [1e250, 1e10, 0.0], 0.0),
        (fs.Flow(), [1.0, 0.5, 0.0], 0.0),
    ],
)
def test_what_is_foretold_is_finite_however_levels_lie(schedule, levels, lead):
    predict = fs.EVODiff().plan(schedule, fs.grid.from_times(schedule, levels))[-1].predict
    assert (predict.lead if predict else 0.0) == lead


@over_schedules
def test_a_step_to_zero_from_where_the_schedule_ends_foretells_nothing(schedule):
    nodes = fs.log_snr(schedule, 6, to_zero=True)
    assert fs.EVODiff().plan(schedule, nodes)[-1].predict is None


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
    left = errors(nodes, stages)
    assert left[6, "correct"] < left[5, "move"]


def test_channels_are_not_for_it():
    with pytest.raises(ValueError, match='only mode="published" and "paper" measure channels; got EVODiff'):
        fs.EVODiff(channel_dim=-1)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_a_denoiser_that_always_answers_the_same_is_followed(value):
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = fs.sample(lambda x, t: torch.full_like(x, value), x, nfe=7, schedule=fs.EDM())
    # The line from 80 x at 80 to the value at 0.
    torch.testing.assert_close(got, value + (80 * x - value) * (0.002 / 80), rtol=1e-12, atol=1e-12)


@over_schedules
def test_a_long_run_is_planned_in_windows_as_well_as_in_one(schedule, monkeypatch):
    denoiser, variance = gaussian_denoiser(schedule)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(window):
        monkeypatch.setattr(evodiff_variance, "WINDOW", window)
        nodes, _ = plan(schedule, fs.EVODiff(), nfe=150)
        got = fs.sample(denoiser, x, nfe=150, solver=fs.EVODiff(), schedule=schedule)
        exact = x * nodes[0].sigma * math.sqrt(variance(nodes[-1]) / variance(nodes[0]))
        return (got - exact).square().mean().sqrt().item()

    assert error(64) < 1.5 * error(150)  # a tenth of the steps: the order is 4


def test_planning_takes_room_in_proportion_to_the_steps():
    def peak(steps):
        nodes = fs.focused(fs.EDM(), steps)
        tracemalloc.start()
        evodiff_variance.stages(nodes, False, DATA_STD)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1200) < 4 * peak(300)
