"""What holds for every solver of the table."""

import functools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from benchmarks import orders
from benchmarks.numerics import state_tensors
from benchmarks.problems import gaussian
from fewstep.bench.compare import Counted
from fewstep.sampling import _step_noise, plan
from fewstep.solvers import reab
from fewstep.solvers.core.base import LinearStage, renoise
from fewstep.solvers.dpm_solver_v3.ems_steps import EMSStage
from fewstep.table import CASES, SOLVERS
from table import ORDER_BAND, deterministic, every_deterministic, every_solver, every_stochastic, stochastic

SCHEDULES = {
    "edm": fs.EDM(),
    "vp": fs.VPLinear(),
    "cosine": fs.VPCosine(),
    "discrete": fs.Discrete([0.999 * 0.99**i for i in range(1000)]),
    "flow": fs.Flow(shift=3.0),
}
HALVES = (torch.float16, torch.bfloat16)


def stages_of(solver):
    return solver.plan(fs.EDM(), fs.log_snr(fs.EDM(), 4))


def solver_for(entry, name):
    return entry.on_flow if name == "flow" else entry.solver


def is_published(solver):
    return isinstance(solver, fs.EVODiff) and solver.mode == "published"


def holds_a_prediction(solver):
    """Whether a denoised image that is always the same is followed exactly.

    Published EVODiff extrapolates it, and REAB holds what a Gaussian does not explain.
    """
    return not is_published(solver) and not isinstance(solver, fs.REAB)


def draw(denoiser, noise, entry, nfe, first=0, **options):
    """Samples of the seeds from `first` on; seeds are used by stochastic solvers only."""
    options = {"solver": entry.solver, "schedule": fs.EDM(), **options}
    return fs.sample(denoiser, noise, nfe=nfe, seeds=range(first, first + len(noise)), **options)


def rational(x, t):
    """A denoiser of exact arithmetic only, hence the same to the last bit in any batch."""
    return x / (1 + x * x + t * t) + 0.25


# Orders


@functools.cache
def reference(case):
    """The problem with its reference solution, which takes 10,000 calls on a mixture, found once."""
    _, schedule, components = CASES[case]
    problem = gaussian(components=components)
    nodes = fs.log_snr(schedule, 2, to_zero=False)
    x = orders.start(problem, nodes[0])
    return problem, orders.reference(problem, schedule, x, nodes[0], nodes[-1])


@pytest.mark.parametrize("case", range(len(CASES)), ids=[name for name, _, _ in CASES])
@every_deterministic
def test_order(entry, case, monkeypatch):
    problem, exact = reference(case)
    monkeypatch.setattr(orders, "reference", lambda *_: exact)
    errors = orders.convergence(entry.solver, CASES[case][1], problem)
    assert orders.fitted_order(orders.STEPS, errors) == pytest.approx(entry.orders[case], abs=ORDER_BAND)


@pytest.mark.parametrize("case", range(3), ids=[name for name, _, _ in CASES[:3]])
@every_stochastic
def test_order_of_the_covariance(entry, case):
    errors = orders.covariance_convergence(entry.solver, CASES[case][1])
    assert orders.fitted_order(orders.STEPS, errors) == pytest.approx(entry.orders[case], abs=ORDER_BAND)


# Noise

SAMPLES = (4, 5000)  # images, and independent draws in each


@pytest.mark.parametrize(
    ("entry", "name"),
    [(entry, ("edm", "vp", "flow")[i % 3]) for i, entry in enumerate(stochastic.values())],
    ids=stochastic.keys(),
)
def test_stochastic_samples_have_the_mean_and_the_covariance_of_the_data(entry, name):
    """Within three standard errors for 20,000 draws of a Gaussian, at so many steps that the method's bias is less.

    Of the mean and of the covariance as a whole: with k errors, each divided by its standard error, the sum of squares
    has mean k and standard deviation sqrt(2 k).
    """
    schedule, solver = SCHEDULES[name], solver_for(entry, name)
    problem = gaussian((4,), seed=2)
    mean, variances, vectors = problem.means[0], problem.variances[0], problem.vectors[0]
    steps = 400 if min(entry.orders) > 1.5 else 3200  # the bias of a first-order method falls slowly
    nodes = fs.log_snr(schedule, steps, to_zero=False)
    s, t = nodes[0], nodes[-1]

    def marginal(node):
        return node.alpha * mean, vectors * (node.alpha**2 * variances + node.sigma**2).sqrt()

    def denoiser(x, time):
        node = schedule.node(time)
        gain = node.alpha * variances / (node.alpha**2 * variances + node.sigma**2)
        return mean + (x - node.alpha * mean) @ (vectors * gain @ vectors.T)

    z = fs.unit_noise(range(SAMPLES[0]), (SAMPLES[1], 4), dtype=torch.float64)
    centre, root = marginal(s)
    got = fs.integrate(denoiser, centre + z @ root.T, nodes, solver=solver, schedule=schedule, seeds=range(SAMPLES[0]))
    centre, root = marginal(t)
    unit = torch.linalg.solve(root, (got.reshape(-1, 4) - centre).T).T  # unit Gaussian if the sample is right
    count = len(unit)
    # The variance of a product of two independent unit Gaussians is 1, of a square 2.
    covariance = (unit.T @ unit / count - torch.eye(4)) * (count / (1 + torch.eye(4))).sqrt()
    upper = torch.triu_indices(4, 4)
    for errors in (unit.mean(0) * count**0.5, covariance[*upper]):
        k = len(errors)
        assert abs(errors.square().sum() - k) < 3 * (2 * k) ** 0.5


@every_stochastic
def test_the_same_seed_is_the_same_sample(entry):
    noise = torch.randn(5, 3, 4, 4, dtype=torch.float64)

    def run(seeds):
        return fs.sample(rational, noise, nfe=9, solver=entry.solver, seeds=seeds, schedule=fs.EDM())

    first = run([7, 3, 9, 1, 4])
    assert torch.equal(first, run([7, 3, 9, 1, 4]))
    other = run([7, 3, 8, 1, 4])
    changed = (first != other).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False]


@every_stochastic
def test_stochastic_solvers_ask_for_seeds(entry):
    with pytest.raises(ValueError, match=r"draws noise: give seeds=, one integer a sample, such as range\(2\)"):
        fs.sample(rational, torch.randn(2, 3), nfe=9, solver=entry.solver, schedule=fs.EDM())


@every_deterministic
def test_deterministic_solvers_use_no_seeds(entry):
    noise = torch.randn(2, 3, 4, 4)
    plain = fs.sample(rational, noise, nfe=9, solver=entry.solver, schedule=fs.EDM())
    assert torch.equal(plain, draw(rational, noise, entry, 9, first=5))


# Cost


def test_every_public_solver_is_in_the_table():
    public = {each for each in vars(fs).values() if isinstance(each, type) and hasattr(each, "plan")}
    public -= {fs.Solver, fs.Tuned}  # a plan is of one model
    assert {type(entry.solver) for entry in SOLVERS.values()} == public


@every_solver
def test_claims_are_complete(entry):
    assert entry.reference
    assert len(entry.orders) == (3 if entry.stochastic else len(CASES))
    nodes = fs.log_snr(fs.EDM(), 24, to_zero=False)
    stages = entry.solver.plan(fs.EDM(), nodes)
    assert entry.stochastic == (stages[0].node != nodes[0] or any(stage.noise for stage in stages))
    assert entry.calls == entry.solver.calls_per_step
    # As many calls a step over the whole run as the most that a step costs, but for warm-up and last steps.
    assert len(stages) <= entry.calls * 24 + 1


RUN_BUDGETS = (1, 2, 3, 4, 5, 8, 13, 50)
PLANNED = (*range(1, 17), 24, 37, 50)  # every remainder of calls a step, and long runs


@every_solver
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("to_zero", [True, False])
def test_spends_exactly_the_budget(entry, name, to_zero):
    noise = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    solver, schedule = solver_for(entry, name), SCHEDULES[name]
    grid = solver.grid(to_zero=to_zero)
    for nfe in PLANNED:
        assert len(plan(schedule, solver, nfe=nfe, grid=grid)[1]) == nfe
    for nfe in RUN_BUDGETS:
        denoiser = Counted(lambda x, t: 0.5 * x / (1 + x.abs()))
        got = draw(denoiser, noise, entry, nfe, solver=solver, schedule=schedule, grid=grid)
        assert denoiser.calls == nfe
        assert got.isfinite().all()


@every_solver
def test_state_is_as_small_as_claimed(entry):
    assert state_tensors(entry.solver) == entry.state


# Exactness and limits


holding = {name: entry for name, entry in deterministic.items() if holds_a_prediction(entry.solver)}


@pytest.mark.parametrize("entry", holding.values(), ids=holding.keys())
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("to_zero", [True, False])
def test_a_constant_prediction_is_integrated_exactly(entry, name, to_zero):
    """x = alpha c + sigma z is then a solution: a row with swapped or wrong numbers leaves it."""
    solver = solver_for(entry, name)
    schedule = SCHEDULES[name]
    nodes = solver.grid(schedule, 12, to_zero=to_zero)
    c, z = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    s, t = nodes[0], nodes[-1]
    got = fs.integrate(lambda x, _: c, s.alpha * c + s.sigma * z, nodes, solver=solver, schedule=schedule)
    # A handful of roundings a step, of numbers as large as the noisiest state, or as x / alpha in the noise field.
    size = max(1.0, s.sigma, 1 / s.alpha if s.alpha else 1.0)
    torch.testing.assert_close(got, t.alpha * c + t.sigma * z, rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize(
    "entry", [e for e in deterministic.values() if not isinstance(e.solver, fs.REAB)], ids=lambda e: repr(e.solver)
)
def test_zero_predictions_only_scale(entry):
    nodes = entry.solver.grid(fs.EDM(), 8, to_zero=False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    got = fs.integrate(lambda x, t: torch.zeros_like(x), x, nodes, solver=entry.solver, schedule=fs.EDM())
    scale = nodes[-1].sigma / nodes[0].sigma
    if is_published(entry.solver) and entry.solver.lower_order_final:
        scale *= 1 - math.sqrt(nodes[-1].sigma * nodes[-2].sigma)  # its last step
    # The noise field gets there by subtracting from the noisiest state: roundings of its size.
    torch.testing.assert_close(got, x * scale, rtol=1e-13, atol=1e-14 * x.abs().max().item())


@every_solver
def test_a_run_to_zero_returns_the_last_denoised(entry):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    nodes = entry.solver.grid(fs.EDM(), 6, to_zero=True)
    last = list(fs.trajectory(rational, x * 80, nodes, solver=entry.solver, seeds=range(2), schedule=fs.EDM()))[-1]
    # The noise field reaches it through (x - sigma eps) / alpha: a few roundings of numbers of order 1.
    torch.testing.assert_close(last.x, last.denoised, rtol=0, atol=1e-14)


DEGENERATE = {
    "zero": lambda x, t: torch.zeros_like(x),
    "constant": lambda x, t: torch.full_like(x, 0.5),
    "constant channel": lambda x, t: torch.cat([torch.ones_like(x[:, :1]), x[:, 1:] / (1 + t * t)], 1),
    "dead channel": lambda x, t: torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:] / (1 + t * t)], 1),
    "the input": lambda x, t: x,
    "alternating": lambda x, t: torch.ones_like(x) * math.copysign(1.0, math.sin(1e3 * t)),
    "tiny": lambda x, t: torch.full_like(x, 1e-30),
}


RANKS = [(2, 3), (2, 1), (2, 3, 5), (2, 3, 1, 1), (2, 3, 4, 4), (1, 1, 1, 1), (2, 3, 2, 4, 4)]


@every_solver
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_predictions_stay_finite(entry, kind):
    cases = [(shape, torch.float32, 8) for shape in RANKS]
    cases += [((2, 3, 4, 4), dtype, nfe) for dtype in (torch.float32, torch.float64) for nfe in (1, 2, 3, 25)]
    for shape, dtype, nfe in cases:
        noise = torch.randn(shape, dtype=dtype)
        for schedule, solver in ((fs.EDM(), entry.solver), (fs.Flow(), entry.on_flow)):
            got = draw(DEGENERATE[kind], noise, entry, nfe, solver=solver, schedule=schedule)
            assert got.isfinite().all(), (shape, nfe, dtype, schedule)


@every_solver
@pytest.mark.parametrize("kind", ["zero", "constant", "dead channel"])
def test_degenerate_predictions_are_limits(entry, kind):
    """A perturbation of the predictions by 1e-9 moves the result by no more than it is amplified on the way."""
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    denoiser = DEGENERATE[kind]
    wiggle = {}

    def perturbed(x, t):
        wiggle.setdefault(t, torch.randn(x.shape, dtype=x.dtype))
        return denoiser(x, t) + 1e-9 * wiggle[t]

    for nfe in (3, 8, 25):
        got = draw(denoiser, noise, entry, nfe)
        near = draw(perturbed, noise, entry, nfe)
        # Weights of any method here add up to far less than 1e4 in absolute value (Heun's first steps).
        assert (got - near).abs().max() < 1e-5


# Independence


def assert_batch_equals_its_images(entry, shape):
    noise = torch.randn(7, *shape, dtype=torch.float64)
    for nfe in (5, 23):
        whole = draw(rational, noise, entry, nfe)
        parts = [draw(rational, noise[i : i + 1], entry, nfe, first=i) for i in range(7)]
        assert torch.equal(whole, torch.cat(parts))


@every_solver
def test_a_batch_equals_its_images_bit_for_bit(entry):
    for shape in [(3, 5, 7), (1, 1, 1), (5,), (3, 11), (2, 3, 4, 5)]:
        assert_batch_equals_its_images(entry, shape)


LINEAR = (LinearStage, EMSStage, reab.Stage)  # stages that take no sums over an image
measuring = {
    name: e for name, e in SOLVERS.items() if not all(isinstance(stage, LINEAR) for stage in stages_of(e.solver))
}


@pytest.mark.parametrize("entry", measuring.values(), ids=measuring.keys())
@pytest.mark.parametrize("shape", [(1, 256, 128), (1, 40000)])
def test_sums_that_are_split_over_threads_are_the_same_in_a_batch(entry, shape, two_threads):
    """Long enough for a sum over a single image to be split: for the solvers that take sums over images."""
    assert_batch_equals_its_images(entry, shape)


@given(
    split=st.integers(1, 8),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    name=st.sampled_from(sorted(SOLVERS)),
)
def test_any_split_of_any_shape(split, shape, name):
    noise = torch.randn(9, *shape, dtype=torch.float64)
    entry = SOLVERS[name]
    whole = draw(rational, noise, entry, 6)
    starts = range(0, 9, split)
    parts = [draw(rational, noise[i : i + split], entry, 6, first=i) for i in starts]
    assert torch.equal(whole, torch.cat(parts))


# Precision


@every_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_comes_back_and_the_state_is_never_half(entry, dtype):
    noise = torch.randn(2, 3, 4, 4).to(dtype)
    seen = []

    def denoiser(x, t):
        seen.append(x.dtype)
        return x / (1 + t * t)

    got = draw(denoiser, noise, entry, 9)
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert set(seen) == {dtype}

    working = torch.float32 if dtype in HALVES else dtype
    nodes, stages = plan(fs.EDM(), entry.solver, nfe=9)
    x, state = noise.to(working) * nodes[0].sigma, None
    for stage in stages:
        x, state = stage(state, x, (x / (1 + stage.node.time**2)))
        assert {t.dtype for t in _tensors(state)} <= {working}
        assert x.dtype == working


@every_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_no_more_than_the_rounding_of_what_the_model_sees_and_says(entry, dtype):
    """The error of a run in half precision against that of a float64 run whose x and answers are perturbed as much."""
    noise = torch.randn(16, 3, 8, 8).to(dtype)
    eps = torch.finfo(dtype).eps

    def model(x, t):
        return x / (1 + t * t)

    def perturbed(x, t):
        def unit():
            return torch.rand_like(x) * 2 - 1

        return model(x * (1 + eps / 2 * unit()), t) * (1 + eps / 2 * unit())

    def run(denoiser, start):
        return draw(denoiser, start, entry, 10).double()

    exact = run(model, noise.double())
    expected = (run(perturbed, noise.double()) - exact).square().mean().sqrt() + eps / 2 * exact.square().mean().sqrt()
    # Rounding is as uniform as the perturbation, but repeats itself from call to call: twice is ample.
    assert (run(model, noise) - exact).square().mean().sqrt() < 2 * expected


def _tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _tensors(part)


# The contract of stages


@every_solver
def test_pull_equals_push_and_survives_pickling(entry):
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pushed = draw(rational, noise, entry, 9)
    nodes, stages = plan(fs.EDM(), entry.solver, nfe=9)
    x, state = noise * nodes[0].sigma, None
    unit = _step_noise(entry.solver, nodes[0], stages, x, range(2))
    if stages[0].node != nodes[0]:
        scale, added = renoise(nodes[0], stages[0].node)
        x = x * scale + unit(nodes[0]) * added
    for stage in stages:
        denoised = rational(x, stage.node.time)
        x_again, state_again = pickle.loads(pickle.dumps(stage))(pickle.loads(pickle.dumps(state)), x, denoised)
        x, state = stage(state, x, denoised)
        assert torch.equal(x, x_again)
        if stage.noise:
            x = x + unit(stage.node) * stage.noise
        assert all(torch.equal(a, b) for a, b in zip(_tensors(state), _tensors(state_again), strict=True))
    assert torch.equal(x, pushed)


@every_solver
def test_stages_change_nothing_they_are_given(entry):
    nodes, stages = plan(fs.EDM(), entry.solver, nfe=24)
    x, state = torch.randn(2, 3, 4, 4) * nodes[0].sigma, None
    for stage in stages:
        denoised = rational(x, stage.node.time)
        held = [x, denoised, *_tensors(state)]
        before = [t.clone() for t in held]
        x, state = stage(state, x, denoised)
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


# item() and bool() under their names with and without inference mode; resolve_conj is how tolist and numpy begin.
CONVERSIONS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "resolve_conj"}


class Conversions(TorchDispatchMode):
    """Notes each time a tensor becomes a Python number, which on an accelerator waits for it."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in CONVERSIONS:
            self.log.append("conversion")
        return func(*args, **(kwargs or {}))


def conversions_between_calls(solver, noise, nfe):
    log = []

    def denoiser(x, t):
        log.append("call")
        return x / (1 + t * t)

    with Conversions(log):
        fs.sample(denoiser, noise, nfe=nfe, solver=solver, seeds=range(len(noise)), schedule=fs.EDM())
    first, last = log.index("call"), len(log) - 1 - log[::-1].index("call")
    return log[first:last].count("conversion")


@every_solver
def test_no_tensor_becomes_a_number_inside_the_loop(entry):
    for shape in ((2, 3, 4, 4), (1, 2, 200, 200)):
        for nfe in (9, 25):
            assert conversions_between_calls(entry.solver, torch.randn(shape), nfe) == 0


@pytest.mark.parametrize("peek", [float, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy])
def test_the_count_of_conversions_counts(peek):
    class Peeking(fs.DDIM):
        def plan(self, schedule, nodes, nfe=None):
            return [Peek(stage) for stage in super().plan(schedule, nodes, nfe)]

    class Peek:
        def __init__(self, stage):
            self.stage, self.node, self.noise = stage, stage.node, stage.noise

        def __call__(self, state, x, denoised):
            peek(denoised.sum())
            return self.stage(state, x, denoised)

    assert conversions_between_calls(Peeking(), torch.randn(2, 3, 4, 4), 9) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_solver
def test_no_synchronisation_on_a_gpu(entry):
    nodes, stages = plan(fs.EDM(), entry.solver, nfe=24)
    x, state = torch.randn(2, 4, 64, 64, device="cuda") * nodes[0].sigma, None
    answers = [torch.randn_like(x) for _ in stages]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stage, answer in zip(stages, answers, strict=True):
            x, state = stage(state, x, answer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Grids


@pytest.mark.parametrize("entry", [e for e in deterministic.values() if not isinstance(e.solver, fs.EVODiff)], ids=repr)
def test_inversion_and_back_with_a_linear_method(entry):
    """Noise may rise: a run up and down again returns, to the method's own error, and closer with more steps."""
    schedule, problem = fs.EDM(0.05, 5.0), gaussian()
    x = torch.randn(2, *problem.shape, dtype=torch.float64)

    def there_and_back(steps):
        nodes = fs.log_snr(schedule, steps, to_zero=False)
        run = {"solver": entry.solver, "schedule": schedule}
        up = fs.integrate(problem.denoiser(schedule), x, nodes[::-1], **run)
        return (fs.integrate(problem.denoiser(schedule), up, nodes, **run) - x).square().mean().sqrt().item()

    # At least first order: four times the steps, at most a third of the error.
    assert there_and_back(160) < there_and_back(40) / 3
    assert there_and_back(160) < 0.1
