"""The push API: what it accepts, what it refuses, and what it tells."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.sampling import _step_noise, plan
from table import every_solver

NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def half(x, t):
    return x / (1 + t * t)


def test_defaults_are_the_documented_ones():
    calls = []
    got = fs.sample(lambda x, t: calls.append(t) or half(x, t), NOISE, schedule=fs.EDM())
    assert len(calls) == 10
    want = fs.sample(half, NOISE, nfe=10, solver=fs.EVODiff(), schedule=fs.EDM(), grid=fs.focused(to_zero=False))
    assert torch.equal(got, want)


def test_noise_is_scaled_to_the_first_node():
    first = []
    fs.sample(lambda x, t: first.append((x, t)) or half(x, t), NOISE, nfe=3, schedule=fs.EDM(sigma_max=40.0))
    assert torch.equal(first[0][0], NOISE * 40)
    assert first[0][1] == 40.0


def test_noise_is_left_alone():
    before = NOISE.clone()
    fs.sample(half, NOISE, nfe=5, schedule=fs.EDM())
    assert torch.equal(NOISE, before)


@pytest.mark.parametrize(
    "times", [[80.0, 5.0, 0.5, 0.0], np.array([80.0, 5.0, 0.5, 0.0]), torch.tensor([80.0, 5.0, 0.5, 0.0])]
)
def test_explicit_times_set_the_budget(times):
    seen = []
    fs.sample(lambda x, t: seen.append(t) or half(x, t), NOISE, grid=times, schedule=fs.EDM())
    assert seen == [80.0, 5.0, 0.5]


def test_explicit_times_and_a_contradicting_budget():
    with pytest.raises(ValueError, match="a grid of 3 steps costs this solver 3 calls; got nfe=5"):
        fs.sample(half, NOISE, nfe=5, grid=[80.0, 5.0, 0.5, 0.0], schedule=fs.EDM())


def test_steps_are_told_as_they_happen():
    told = []
    got = fs.sample(half, NOISE, nfe=5, callback=told.append, schedule=fs.EDM())
    assert [step.index for step in told] == [0, 1, 2, 3, 4]
    assert [step.node.time for step in told] == [n.time for n in fs.focused(fs.EDM(), 5)[:-1]]
    assert torch.equal(told[-1].x, got)
    for before, after in pairwise(told):
        assert torch.equal(after.denoised, half(before.x, after.node.time))


def test_a_trajectory_can_be_left_early():
    calls = []
    nodes = fs.log_snr(fs.EDM(), 10)
    for step in fs.trajectory(
        lambda x, t: calls.append(t) or half(x, t), NOISE * 80, nodes, solver=fs.DDIM(), schedule=fs.EDM()
    ):
        if step.index == 3:
            break
    assert len(calls) == 4


def test_integrate_is_sample_without_the_scaling():
    nodes = fs.focused(fs.EDM(), 7)
    assert torch.equal(
        fs.integrate(half, NOISE * 80, nodes, schedule=fs.EDM()), fs.sample(half, NOISE, nfe=7, schedule=fs.EDM())
    )


@every_solver
def test_a_model_may_reuse_its_buffers(entry):
    """In place on its input, and always answering in the same tensor, as CUDA graphs do."""
    buffer = torch.empty_like(NOISE)

    def reusing(x, t):
        torch.div(x, 1 + t * t, out=buffer)
        x.zero_()
        return buffer

    start = NOISE * 80
    before = start.clone()
    nodes = fs.log_snr(fs.EDM(), 7)
    run = {"nodes": nodes, "solver": entry.solver, "seeds": range(len(start)), "schedule": fs.EDM()}
    got = fs.integrate(reusing, start, **run)
    assert torch.equal(got, fs.integrate(half, start, **run))
    assert torch.equal(start, before)


def test_samples_carry_no_graph_and_can_enter_one():
    weight = torch.nn.Parameter(torch.ones(()))
    got = fs.sample(lambda x, t: weight * half(x, t), NOISE, nfe=4, schedule=fs.EDM())
    assert not got.requires_grad
    (got * weight).sum().backward()  # an inference tensor would refuse
    assert weight.grad is not None


def test_a_denoiser_may_take_gradients_of_its_input():
    def guided(x, t):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return half(x, t) - torch.autograd.grad(leaf.square().sum(), leaf)[0] * 1e-4

    assert fs.sample(guided, NOISE, nfe=4, schedule=fs.EDM()).isfinite().all()


def test_progress_needs_no_more_than_rich_and_writes_to_stderr(capsys):
    pytest.importorskip("rich", reason="needs the extra cli")
    fs.sample(half, NOISE, nfe=3, progress=True, schedule=fs.EDM())
    out, err = capsys.readouterr()
    assert out == ""
    assert "sampling" in err


@pytest.mark.parametrize("nfe", [0, -1, 2.5, "8", True])
def test_a_budget_is_a_positive_integer(nfe):
    with pytest.raises(ValueError, match="nfe must be an integer of at least 1; got"):
        fs.sample(half, NOISE, nfe=nfe, schedule=fs.EDM())


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (np.zeros((2, 3)), TypeError, "noise must be a torch.Tensor; got ndarray"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "noise must be floating point; got torch.int64"),
        (torch.zeros(2, 3, dtype=torch.uint8), TypeError, r"got torch.uint8 \(.float\(\) / 127.5 - 1, of an image"),
        (torch.zeros(3), ValueError, r"noise must be \(B, \*\) of rank 2 or more and not empty; got shape \(3,\)"),
        (torch.zeros(0, 3), ValueError, r"not empty; got shape \(0, 3\)"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "noise must be finite"),
        (torch.tensor([[1.0, float("inf")]]), ValueError, "noise must be finite"),
    ],
)
def test_wrong_noise(noise, error, message):
    with pytest.raises(error, match=message):
        fs.sample(half, noise, schedule=fs.EDM())


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([80.0], "times must hold at least 2 points; got 1"),
        ([], "times must hold at least 2 points; got 0"),
        ([80.0, 90.0, 1.0], "strictly sorted by noise level.*got time 1.0 after 90.0 at index 2"),
        ([80.0, 5.0, 5.0, 1.0], "got time 5.0 after 5.0 at index 2"),
        ([80.0, float("nan"), 1.0], "time must be finite and lie in"),
        ([80.0, 1.0, -1.0], "time must be finite and lie in"),
        ([1.0, 5.0, 80.0], "grid must go from noisy to clean; to go the other way, use integrate"),
        (lambda schedule, steps: fs.log_snr(schedule, steps + 1), r"grid must return steps \+ 1"),
        (lambda schedule, steps: fs.log_snr(schedule, steps)[::-1], "noisy to clean"),
    ],
)
def test_wrong_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        fs.sample(half, NOISE, grid=grid, schedule=fs.EDM())


def test_errors_come_before_the_first_call():
    def never(x, t):
        raise AssertionError("called")

    for wrong in ({"nfe": 0}, {"grid": [1.0, 2.0, 1.5]}, {"nfe": 3, "grid": [80.0, 1.0]}):
        with pytest.raises(ValueError, match=r"nfe|grid|times"):
            fs.sample(never, NOISE, schedule=fs.EDM(), **wrong)
    with pytest.raises(ValueError, match="nodes must hold at least 2"):
        fs.trajectory(never, NOISE, [], schedule=fs.EDM())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_nan_from_the_denoiser_names_the_call(bad, at):
    calls = []

    def denoiser(x, t):
        out = half(x, t)
        if len(calls) == at:
            out = out.clone()
            out[1, 2, 3, 3] = bad
        calls.append(t)
        return out

    with pytest.raises(fs.DenoiserError, match=f"NaN or inf at call {at} ") as info:
        fs.sample(denoiser, NOISE, nfe=5, solver=fs.DDIM(), schedule=fs.EDM())
    assert f"sigma {calls[at]:g}" in str(info.value)


def test_nan_is_never_passed_on_even_if_a_later_call_hides_it():
    def denoiser(x, t):
        return torch.nan_to_num(half(x, t)) if t < 1 else half(x, t) * float("nan")

    with pytest.raises(fs.DenoiserError, match="at call 0 "):
        fs.sample(denoiser, NOISE, nfe=5, grid=fs.log_snr(to_zero=True), schedule=fs.EDM())


class Output:
    sample = NOISE


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:1], r"returned shape \(1, 3, 4, 4\) for x of shape \(2, 3, 4, 4\) at call 0"),
        (lambda x: x.flatten(1), r"returned shape \(2, 48\)"),
        (lambda x: x.to(torch.int32), "returned torch.int32 at call 0"),
        (lambda x: x.to("meta"), "returned a tensor on meta for x on cpu at call 0"),
        (lambda x: Output(), "returned Output at call 0.*must return a tensor"),
        (lambda x: None, "returned NoneType at call 0"),
    ],
)
def test_wrong_answers_are_named_at_once(answer, message):
    calls = []
    with pytest.raises(fs.DenoiserError, match=message):
        fs.sample(lambda x, t: calls.append(t) or answer(x), NOISE, schedule=fs.EDM())
    assert len(calls) == 1


def test_an_answer_in_another_precision_is_taken():
    got = fs.sample(lambda x, t: half(x, t).half(), NOISE, nfe=4, schedule=fs.EDM())
    assert got.dtype == torch.float32


def test_a_denoisers_own_error_comes_through_unchanged():
    with pytest.raises(KeyError, match="mine"):
        fs.sample(lambda x, t: {}["mine"], NOISE, schedule=fs.EDM())


def test_unit_noise_belongs_to_its_seed():
    all_of_them = fs.unit_noise(range(5, 12), (3, 4, 4))
    assert all_of_them.shape == (7, 3, 4, 4)
    assert torch.equal(all_of_them[3:4], fs.unit_noise([8], (3, 4, 4)))
    assert torch.equal(fs.unit_noise([8], (3, 4, 4), dtype=torch.float64).float(), all_of_them[3:4])
    before = torch.get_rng_state()
    fs.unit_noise([1], (2,))
    assert torch.equal(torch.get_rng_state(), before)


def test_unit_noise_of_no_seeds_is_refused():
    with pytest.raises(ValueError, match="seeds must hold at least one; got none"):
        fs.unit_noise([], (3, 4, 4))


def test_plan_counts_two_call_solvers():
    for nfe in range(1, 20):
        nodes, stages = plan(fs.EDM(), fs.Heun(), nfe=nfe)
        assert len(stages) == nfe
        assert nodes[-1].sigma == pytest.approx(0.002)


def test_a_run_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.sample(half, NOISE, nfe=3, schedule=fs.EDM())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "evodiff"}, r"solver must be a solver such as EVODiff\(\); got 'evodiff'"),
        ({"solver": fs.EVODiff}, r"solver must be a solver such as EVODiff\(\); got <class"),
        ({"schedule": "edm"}, r"schedule must be a schedule such as EDM\(\); got 'edm'"),
        ({"schedule": fs.Flow}, r"schedule must be a schedule such as EDM\(\); got <class"),
        ({"grid": "karras"}, "grid must be a grid such as .*; got 'karras'"),
        ({"grid": 5}, "grid must be a grid such as .*; got 5"),
        ({"grid": np.int64(5)}, "grid must be a grid such as .*; got np.int64"),
    ],
)
def test_parts_of_the_wrong_kind(wrong, message):
    with pytest.raises(TypeError, match=message):
        fs.sample(half, NOISE, **{"schedule": fs.EDM(), **wrong})
    if "grid" not in wrong:
        with pytest.raises(TypeError, match=message):
            fs.integrate(half, NOISE, fs.log_snr(fs.EDM(), 3), **{"schedule": fs.EDM(), **wrong})


def test_a_denoiser_is_called():
    with pytest.raises(TypeError, match=r"denoiser must be a function denoiser\(x, t\); got Tensor"):
        fs.sample(NOISE, NOISE, schedule=fs.EDM())


# Stochastic solvers


class Jitter(fs.DDIM):
    """DDIM that adds noise after every step but the last; its plan begins at a noisier node if asked to."""

    def plan(self, schedule, nodes, nfe=None):
        stages = super().plan(schedule, nodes, nfe)
        return [stage._replace(noise=0.25) for stage in stages[:-1]] + stages[-1:]


class Lifted(fs.DDIM):
    def plan(self, schedule, nodes, nfe=None):
        return super().plan(schedule, (schedule.node(2 * nodes[0].time), *nodes[1:]), nfe)


def test_the_driver_adds_the_noise_that_stages_ask_for():
    nodes = fs.log_snr(fs.EDM(), 3, to_zero=False)
    x = torch.zeros(2, 5, 4)
    steps = list(
        fs.trajectory(lambda x, t: torch.zeros_like(x), x, nodes, solver=Jitter(), seeds=[4, 4], schedule=fs.EDM())
    )
    z = steps[0].x / 0.25
    assert torch.equal(z[0], z[1])  # the same seed
    # 20 unit Gaussian draws: their mean square is within 4 standard deviations, sqrt(2 / 20) each, of 1.
    assert abs(z[0].square().mean().item() - 1) < 4 * 0.1**0.5
    assert not torch.equal(steps[1].x, steps[0].x)
    assert not torch.equal(z[0], fs.unit_noise([4], (5, 4))[0])  # steps draw from a stream of their own


def test_a_plan_that_begins_noisier_is_brought_there():
    nodes = fs.log_snr(fs.EDM(), 3, to_zero=False)
    seen = []

    def denoiser(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    fs.integrate(denoiser, torch.zeros(1, 5000), nodes, solver=Lifted(), seeds=[0], schedule=fs.EDM())
    # From sigma_max to twice that: noise of sqrt(3) sigma_max; 5,000 draws know their deviation to 1 %.
    assert seen[0].std().item() == pytest.approx(3**0.5 * nodes[0].sigma, rel=0.04)


@pytest.mark.parametrize("solver", [fs.DDIM(eta=1.0), fs.SDEDPMSolverPP(1), fs.SEEDS()], ids=repr)
def test_a_run_in_two_parts_draws_the_noise_of_the_whole(solver):
    """Bit for bit for methods without a memory; a part that is run twice does not repeat the noise of the other."""
    nodes = fs.log_snr(fs.EDM(), 8, to_zero=True)
    run = {"solver": solver, "schedule": fs.EDM(), "seeds": [5, 6]}
    x = 80 * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    whole = fs.integrate(half, x, nodes, **run)
    middle = fs.integrate(half, x, nodes[:5], **run)
    assert torch.equal(fs.integrate(half, middle, nodes[4:], **run), whole)


def test_noise_at_one_level_is_not_noise_at_another():
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=False)
    stages = fs.DDIM(eta=1.0).plan(fs.EDM(), nodes)
    draw = _step_noise(fs.DDIM(eta=1.0), nodes[0], stages, torch.zeros(1, 20_000, dtype=torch.float64), [7])
    drawn = torch.cat([draw(node) for node in (*nodes, nodes[0])])
    # Of 20,000 independent pairs the mean product is 0 within 5 / sqrt(20,000).
    assert (drawn @ drawn.T / 20_000 - torch.eye(6)).abs().max() < 5 / 20_000**0.5


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], []])
def test_seeds_are_one_a_sample(seeds):
    noise = torch.randn(2, 3)
    with pytest.raises(ValueError, match=f"seeds must be one a sample; got {len(seeds)} for 2 samples"):
        fs.sample(half, noise, solver=Jitter(), seeds=seeds, schedule=fs.EDM())


def test_noise_does_not_depend_on_batch_type_or_call():
    noise = torch.randn(4, 3, dtype=torch.float64)
    whole = fs.sample(half, noise, solver=Jitter(), seeds=[9, 8, 7, 6], schedule=fs.EDM())
    parts = [fs.sample(half, noise[i : i + 1], solver=Jitter(), seeds=[9 - i], schedule=fs.EDM()) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    single = fs.sample(half, noise.float(), solver=Jitter(), seeds=[9, 8, 7, 6], schedule=fs.EDM())
    # Ten steps of float32 on numbers that begin at 80 times unit Gaussians.
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=10 * 4 * 80 * 2**-24)


@pytest.mark.parametrize("seeds", [np.arange(2), np.arange(2, dtype=np.int32), torch.arange(2)])
def test_seeds_may_be_of_numpy_and_torch(seeds):
    assert torch.equal(fs.unit_noise(seeds, (3,)), fs.unit_noise(range(2), (3,)))
    noise = torch.zeros(2, 3)
    drawn = [fs.sample(half, noise, solver=Jitter(), seeds=each, schedule=fs.EDM()) for each in (seeds, range(2))]
    assert torch.equal(*drawn)


def test_seeds_are_integers():
    with pytest.raises(TypeError, match=r"seeds must be integers, one a sample; got \[0.5\]"):
        fs.unit_noise([0.5], (3,))


# Schedules that denoisers carry


def carrying(schedule=fs.EDM()):  # noqa: B008
    return fs.as_denoiser(half, "sample", schedule)


@pytest.mark.parametrize(
    "wrap",
    [lambda d: d, lambda d: fs.guided(d, half, 2.0), lambda d: fs.guided(half, d, 2.0), fs.clip, fs.threshold],
    ids=["plain", "guided", "unconditional", "clip", "threshold"],
)
def test_the_denoisers_schedule_is_taken(wrap):
    denoiser, nodes = wrap(carrying(fs.VPCosine())), fs.log_snr(fs.VPCosine(), 4)
    want = fs.sample(denoiser, NOISE, nfe=4, schedule=fs.VPCosine(), solver=fs.UniPC())
    assert torch.equal(fs.sample(denoiser, NOISE, nfe=4, solver=fs.UniPC()), want)
    want = fs.integrate(denoiser, NOISE, nodes, schedule=fs.VPCosine())
    assert torch.equal(fs.integrate(denoiser, NOISE, nodes), want)
    assert torch.equal(list(fs.trajectory(denoiser, NOISE, nodes))[-1].x, want)


def test_a_schedule_is_needed():
    for run in (
        lambda: fs.sample(half, NOISE),
        lambda: fs.integrate(half, NOISE, fs.karras(fs.EDM(), 3)),
        lambda: fs.trajectory(half, NOISE, fs.karras(fs.EDM(), 3)),
    ):
        with pytest.raises(
            TypeError, match=r"schedule is needed.*schedule=EDM\(\), or .*as_denoiser\(network, kind, sch"
        ):
            run()


class Module(torch.nn.Module):
    schedule = "cosine"  # of another kind of schedule: a learning rate's

    def forward(self, x, t):
        return half(x, t)


def test_another_thing_of_that_name_is_no_schedule():
    with pytest.raises(TypeError, match="schedule is needed"):
        fs.sample(Module(), NOISE)
    fs.sample(Module(), NOISE, schedule=fs.EDM())


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (fs.EDM(), fs.VPLinear()),
        (fs.VPLinear(), fs.EDM()),
        (fs.VPLinear(), fs.VPLinear(0.1, 19.0)),
        (fs.VPCosine(), fs.VPLinear()),
        (fs.Flow(), fs.EDM()),
        (fs.Discrete([0.999 * 0.99**i for i in range(1000)]), fs.VPLinear()),
        (fs.Discrete([0.999 * 0.99**i for i in range(1000)]), fs.Discrete([0.999 * 0.98**i for i in range(1000)])),
    ],
    ids=repr,
)
def test_a_schedule_that_contradicts_the_denoisers_is_refused(own, given):
    for run in (
        lambda: fs.sample(carrying(own), NOISE, schedule=given),
        lambda: fs.integrate(carrying(own), NOISE, fs.log_snr(given, 3), schedule=given),
        lambda: fs.guided(carrying(own), carrying(given), 2.0),
    ):
        with pytest.raises(ValueError, match=r"a run has one schedule; got .* made with .*: leave schedule= out"):
            run()


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (fs.EDM(), fs.EDM(0.02, 50.0)),
        (fs.VPLinear(), fs.VPLinear(t_min=1e-4)),
        (fs.Flow(), fs.Flow(shift=3.0)),
        (
            fs.Discrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
            fs.Discrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).astype(np.float32)),
        ),
    ],
    ids=repr,
)
def test_another_range_shift_or_precision_is_no_contradiction(own, given):
    got = fs.sample(carrying(own), NOISE, nfe=3, schedule=given)
    assert torch.equal(got, fs.sample(half, NOISE, nfe=3, schedule=given))


@pytest.mark.parametrize(
    ("made_of", "schedule"),
    [(fs.VPLinear(), fs.EDM()), (fs.EDM(), fs.VPLinear()), (fs.Flow(), fs.VPCosine()), (fs.VPLinear(), fs.Flow())],
    ids=repr,
)
def test_nodes_of_another_schedule_are_refused(made_of, schedule):
    """Solvers ask the schedule for levels between the nodes, which would be others'."""
    nodes = fs.log_snr(made_of, 5)
    message = r" must hold nodes of .*; Node\(.*\) at index \d (is off by|is no time of its clock).*give schedule="
    for run in (fs.integrate, fs.trajectory):
        with pytest.raises(ValueError, match="nodes" + message):
            run(half, NOISE, nodes, schedule=schedule)
    for grid in (nodes, lambda schedule, steps: nodes):
        with pytest.raises(ValueError, match="grid" + message):
            fs.sample(half, NOISE, nfe=5, grid=grid, schedule=schedule)


@pytest.mark.parametrize("off", [-0.45, 0.45, -0.55, 0.55])
def test_nodes_may_be_half_a_unit_of_half_log_snr_off(off):
    """As peers' are between the entries of a table, by up to 0.35."""
    nodes = [fs.Node(n.time, n.alpha, n.sigma * np.exp(-off)) for n in fs.karras(fs.EDM(), 3)]
    if abs(off) < 0.5:
        fs.integrate(half, NOISE, nodes, schedule=fs.EDM())
    else:
        with pytest.raises(ValueError, match=r"at index 0 is off by 0\.55"):
            fs.integrate(half, NOISE, nodes, schedule=fs.EDM())


def test_infinite_ends_of_nodes_are_those_of_the_range():
    table = fs.Discrete([0.999 * 0.99**i for i in range(1000)])
    # diffusers' end: time 0 and no noise, where the table's own clean end is -1; its start at no signal (zero SNR).
    nodes = [fs.Node(999.0, 0.0, 1.0), table.node(500), fs.Node(0.0, 1.0, 0.0)]
    fs.integrate(half, NOISE, nodes, schedule=table)
    for wrong, index in (
        ([table.node(999), fs.Node(500.0, 1.0, 0.0)], 1),
        ([fs.Node(500.0, 0.0, 1.0), table.node(5)], 0),
    ):
        with pytest.raises(ValueError, match=f"at index {index} is off by"):
            fs.integrate(half, NOISE, wrong, schedule=table)


# Starts


def test_a_start_of_ones_own():
    """That of libraries that begin at the marginal of their data, N(m, s^2 + sigma^2)."""
    schedule, mean, std = fs.EDM(0.01, 20.0), 3.0, 2.0

    def exact(x, t):
        return (std**2 * x + t**2 * mean) / (std**2 + t**2)

    noise = fs.unit_noise(range(4), (1024,), dtype=torch.float64)
    got = fs.sample(exact, x=mean + noise * (std**2 + 20.0**2) ** 0.5, nfe=10, schedule=schedule)
    # The ODE carries the marginal at sigma_max to that at sigma_min, z by z; ten calls are right to 1 % of the spread.
    want = mean + noise * (std**2 + 0.01**2) ** 0.5
    assert (got - want).square().mean().sqrt() < 0.01 * std


def test_a_start_is_noise_or_x():
    for given in ({}, {"noise": NOISE, "x": NOISE}):
        with pytest.raises(
            TypeError, match="give either noise, unit Gaussian, or x, the state at the grid's first node"
        ):
            fs.sample(half, schedule=fs.EDM(), **given)


@pytest.mark.parametrize(("factor", "size"), [(80.0, "79.5"), (0.1, "0.0993"), (1.5, "1.49"), (0.6, "0.596")])
def test_noise_that_is_not_unit_is_told(factor, size):
    noise = fs.unit_noise(range(64), (64,)) * factor
    with pytest.warns(UserWarning, match=f"noise must be unit Gaussian.*root mean square of {size}: .*x="):
        fs.sample(half, noise, nfe=1, schedule=fs.EDM())


def test_few_numbers_may_be_anything():
    fs.sample(half, torch.full((1, 127), 5.0), nfe=1, schedule=fs.EDM())


# Draws


def everywhere(draw):
    """What `draw` draws, under each default that a program may set."""
    yield draw()
    try:
        torch.set_default_dtype(torch.float64)
        yield draw()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        yield draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: fs.unit_noise([1, 2], (3, 8, 8)),
        lambda: fs.sample(half, NOISE, nfe=3, solver=fs.DDIM(eta=1.0), seeds=[1, 2], schedule=fs.EDM()),
        lambda: fs.estimate_gamma(half, fs.EDM(), NOISE, points=4).gamma,
        lambda: fs.estimate_ems(half, fs.EDM(), NOISE, points=8).s,
    ],
    ids=["unit_noise", "steps", "gamma", "ems"],
)
def test_draws_do_not_depend_on_torchs_defaults(draw):
    first, *others = everywhere(draw)
    for other in others:
        assert (other.dtype, other.device) == (first.dtype, first.device)
        assert torch.equal(other, first)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_seeds_beyond_torchs_are_told(seed):
    with pytest.raises(ValueError, match=rf"seeds must lie in \[-2\^63, 2\^64\), as torch's; got {seed}"):
        fs.unit_noise([seed], (3,))
    with pytest.raises(ValueError, match="seeds must lie in"):
        fs.sample(half, NOISE, solver=fs.DDIM(eta=1.0), seeds=[0, seed], schedule=fs.EDM())


def test_the_ends_of_the_seeds():
    assert not torch.equal(fs.unit_noise([2**64 - 1], (3,)), fs.unit_noise([2**64 - 2], (3,)))
    # torch's generator looks at the low 32 bits alone.
    assert fs.unit_noise([5, 5 + 2**32, 5 + 2**62, 5 - 2**63], (3,)).unique(dim=0).shape == (4, 3)
    fs.unit_noise([-(2**63)], (3,))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (3, TypeError, r"shape must be the integers of one sample, such as \(3, 32, 32\); got 3"),
        ((3, 2.5), TypeError, "shape must be the integers of one sample"),
        ("32", TypeError, "shape must be the integers of one sample"),
        ((), ValueError, "not empty"),
        ((3, 0), ValueError, "not empty"),
        ((-1,), ValueError, "not empty"),
    ],
)
def test_wrong_shapes_of_noise(shape, error, message):
    with pytest.raises(error, match=message):
        fs.unit_noise(range(4), shape)


def test_noise_is_floating_point():
    with pytest.raises(TypeError, match=r"dtype must be floating point; got torch\.int64"):
        fs.unit_noise([0], (3,), dtype=torch.int64)


# Budgets


@pytest.mark.parametrize("nfe", [np.int64(5), torch.tensor(5), torch.tensor([5])])
def test_a_budget_may_be_of_numpy_and_torch(nfe):
    for solver in (fs.EVODiff(), fs.Heun(), fs.UniPC()):
        got = fs.sample(half, NOISE, nfe=nfe, solver=solver, schedule=fs.EDM())
        assert torch.equal(got, fs.sample(half, NOISE, nfe=5, solver=solver, schedule=fs.EDM()))


@pytest.mark.parametrize("nfe", [torch.tensor(5.0), torch.tensor([5, 6]), np.float64(5)])
def test_a_budget_of_another_kind_is_told(nfe):
    with pytest.raises(ValueError, match="nfe must be an integer of at least 1; got"):
        fs.sample(half, NOISE, nfe=nfe, schedule=fs.EDM())


class Counting:
    """A solver that counts the plans it is asked for."""

    def __init__(self, solver):
        self.solver, self.plans = solver, 0
        self.grid, self.calls_per_step = solver.grid, solver.calls_per_step

    def plan(self, schedule, nodes, nfe=None):
        self.plans += 1
        return self.solver.plan(schedule, nodes, nfe)


@pytest.mark.parametrize("solver", [fs.PNDM(), fs.PNDM(4, "heun"), fs.Heun(), fs.DPM2()], ids=repr)
def test_a_plan_is_found_in_few_tries_and_uses_the_fewest_steps(solver):
    # Doubled strides and halves: 2 log2 of the 1,000 steps that it could be, and one cut to the budget.
    counting = Counting(solver)
    nodes, stages = plan(fs.EDM(), counting, nfe=1000)
    assert len(stages) == 1000
    assert counting.plans <= 2 * 10 + 2
    for nfe in (1, 2, 7, 20, 33):
        nodes, stages = plan(fs.EDM(), solver, nfe=nfe)
        assert len(stages) == nfe
        if len(nodes) > 2:
            assert len(solver.plan(fs.EDM(), solver.grid(fs.EDM(), len(nodes) - 2))) < nfe


def test_budgets_that_cannot_be_planned_are_told():
    def never(schedule, steps):
        raise AssertionError("planned")

    with pytest.raises(ValueError, match="nfe must be at most 10,000; got 100000"):
        plan(fs.EDM(), fs.PNDM(), nfe=100_000, grid=never)
    with pytest.raises(ValueError, match="grid must hold at most 10,001 nodes; got 10,002"):
        plan(fs.EDM(), fs.DDIM(), grid=np.linspace(80, 0.01, 10_002))


def test_a_run_that_diverged_is_not_the_models_fault_alone():
    with pytest.raises(fs.DenoiserError, match=r"NaN or inf at call \d .* by callback= whether the run had diverged"):
        fs.sample(lambda x, t: x * 1e30, NOISE, nfe=5, solver=fs.DDIM(), schedule=fs.EDM())
    with pytest.raises(fs.DenoiserError, match="last state is NaN or inf, though each answer was finite"):
        fs.sample(lambda x, t: torch.full_like(x, 1e36), NOISE, grid=[80.0, 1e-3], solver=Blown(), schedule=fs.EDM())


class Blown(fs.DDIM):
    """Its last step is a thousand times too long."""

    def plan(self, schedule, nodes, nfe=None):
        *stages, last = super().plan(schedule, nodes, nfe)
        return [*stages, last._replace(move=last.move._replace(weights=(1000.0,)))]
