"""What holds for every solver of the table."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from fewstep.bench import orders
from fewstep.bench.compare import Counted
from fewstep.bench.numerics import state_tensors
from fewstep.bench.problems import gaussian
from fewstep.sampling import plan
from table import ORDER_BAND, TABLE, every_solver

SCHEDULES = {
    "edm": fs.EDM(),
    "vp": fs.VPLinear(),
    "cosine": fs.VPCosine(),
    "discrete": fs.Discrete([0.999 * 0.99**i for i in range(1000)]),
    "flow": fs.Flow(shift=3.0),
}
HALVES = (torch.float16, torch.bfloat16)


def solver_for(entry, name):
    return entry.on_flow if name == "flow" else entry.solver


def is_published(solver):
    return isinstance(solver, fs.EVODiff) and solver.mode == "published"


def rational(x, t):
    """A denoiser of exact arithmetic only, hence the same to the last bit in any batch."""
    return x / (1 + x * x + t * t) + 0.25


# Orders


@every_solver
def test_order_on_a_gaussian(entry):
    errors = orders.convergence(entry.solver, fs.EDM(), gaussian())
    assert orders.fitted_order(orders.STEPS, errors) == pytest.approx(entry.gaussian, abs=ORDER_BAND)


@pytest.fixture(scope="module")
def mixture():
    """The two-component problem with its reference solution, which takes 10,000 calls, found once."""
    problem = gaussian(components=2)
    nodes = fs.log_snr(fs.EDM(), 2, to_zero=False)
    x = orders.start(problem, nodes[0])
    return problem, orders.reference(problem, fs.EDM(), x, nodes[0], nodes[-1])


@every_solver
def test_order_on_a_mixture(entry, mixture, monkeypatch):
    problem, exact = mixture
    monkeypatch.setattr(orders, "reference", lambda *_: exact)
    errors = orders.convergence(entry.solver, fs.EDM(), problem)
    assert orders.fitted_order(orders.STEPS, errors) == pytest.approx(entry.mixture, abs=ORDER_BAND)


# Cost


@every_solver
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("to_zero", [None, True, False])
def test_spends_exactly_the_budget(entry, name, to_zero):
    noise = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    for nfe in range(1, 51):
        denoiser = Counted(lambda x, t: 0.5 * x / (1 + x.abs()))
        solver = solver_for(entry, name)
        grid = solver.grid(to_zero=to_zero)
        got = fs.sample(denoiser, noise, nfe=nfe, solver=solver, schedule=SCHEDULES[name], grid=grid)
        assert denoiser.calls == nfe
        assert got.isfinite().all()


@every_solver
def test_state_is_as_small_as_claimed(entry):
    assert state_tensors(entry.solver) == entry.state


# Exactness and limits


@pytest.mark.parametrize("entry", [e for e in TABLE.values() if not is_published(e.solver)], ids=repr)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("to_zero", [True, False])
def test_a_constant_prediction_is_integrated_exactly(entry, name, to_zero):
    """x = alpha c + sigma z is then a solution: a row with swapped or wrong numbers leaves it.

    Published EVODiff is not among these: it extrapolates a constant prediction.
    """
    solver = solver_for(entry, name)
    schedule = SCHEDULES[name]
    nodes = solver.grid(schedule, 12, to_zero=to_zero)
    c, z = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    s, t = nodes[0], nodes[-1]
    got = fs.integrate(lambda x, _: c, s.alpha * c + s.sigma * z, nodes, solver=solver, schedule=schedule)
    # A handful of roundings a step, of numbers as large as the noisiest state, or as x / alpha in the noise field.
    size = max(1.0, s.sigma, 1 / s.alpha if s.alpha else 1.0)
    torch.testing.assert_close(got, t.alpha * c + t.sigma * z, rtol=0, atol=1e-13 * size)


@every_solver
def test_zero_predictions_only_scale(entry):
    nodes = entry.solver.grid(fs.EDM(), 8, to_zero=False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    got = fs.integrate(lambda x, t: torch.zeros_like(x), x, nodes, solver=entry.solver)
    scale = nodes[-1].sigma / nodes[0].sigma
    if is_published(entry.solver) and entry.solver.lower_order_final:
        scale *= 1 - math.sqrt(nodes[-1].sigma * nodes[-2].sigma)  # its last step
    # The noise field gets there by subtracting from the noisiest state: roundings of its size.
    torch.testing.assert_close(got, x * scale, rtol=1e-13, atol=1e-14 * x.abs().max().item())


@every_solver
def test_a_run_to_zero_returns_the_last_denoised(entry):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    nodes = entry.solver.grid(fs.EDM(), 6, to_zero=True)
    last = list(fs.trajectory(rational, x * 80, nodes, solver=entry.solver))[-1]
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


@every_solver
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize(
    "shape", [(2, 3), (2, 1), (2, 3, 5), (2, 3, 1, 1), (2, 3, 4, 4), (1, 1, 1, 1), (2, 3, 2, 4, 4)]
)
def test_degenerate_predictions_stay_finite(entry, kind, shape):
    for nfe in (1, 2, 3, 8, 25):
        for dtype in (torch.float32, torch.float64):
            noise = torch.randn(shape, dtype=dtype)
            for schedule, solver in ((fs.EDM(), entry.solver), (fs.Flow(), entry.on_flow)):
                got = fs.sample(DEGENERATE[kind], noise, nfe=nfe, solver=solver, schedule=schedule)
                assert got.isfinite().all(), (nfe, dtype, schedule)


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
        got = fs.sample(denoiser, noise, nfe=nfe, solver=entry.solver)
        near = fs.sample(perturbed, noise, nfe=nfe, solver=entry.solver)
        # Weights of any method here add up to far less than 1e4 in absolute value (Heun's first steps).
        assert (got - near).abs().max() < 1e-5


# Independence


@every_solver
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (5,), (3, 11), (2, 3, 4, 5), (1, 256, 128), (1, 40000)])
def test_a_batch_equals_its_images_bit_for_bit(entry, shape, two_threads):
    """(1, 256, 128) and (1, 40000) are long enough for a sum over a single image to be split over threads."""
    noise = torch.randn(7, *shape, dtype=torch.float64)
    for nfe in (5, 23):
        whole = fs.sample(rational, noise, nfe=nfe, solver=entry.solver)
        parts = [fs.sample(rational, noise[i : i + 1], nfe=nfe, solver=entry.solver) for i in range(7)]
        assert torch.equal(whole, torch.cat(parts))


@given(
    split=st.integers(1, 8),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    name=st.sampled_from(sorted(TABLE)),
)
def test_any_split_of_any_shape(split, shape, name):
    noise = torch.randn(9, *shape, dtype=torch.float64)
    solver = TABLE[name].solver
    whole = fs.sample(rational, noise, nfe=6, solver=solver)
    parts = [fs.sample(rational, part, nfe=6, solver=solver) for part in noise.split(split)]
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

    got = fs.sample(denoiser, noise, nfe=9, solver=entry.solver)
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
        return fs.sample(denoiser, start, nfe=10, solver=entry.solver).double()

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
    pushed = fs.sample(rational, noise, nfe=9, solver=entry.solver)
    nodes, stages = plan(fs.EDM(), entry.solver, nfe=9)
    assert stages[0].node == nodes[0]
    x, state = noise * nodes[0].sigma, None
    for stage in stages:
        denoised = rational(x, stage.node.time)
        x_again, state_again = pickle.loads(pickle.dumps(stage))(pickle.loads(pickle.dumps(state)), x, denoised)
        x, state = stage(state, x, denoised)
        assert torch.equal(x, x_again)
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
        fs.sample(denoiser, noise, nfe=nfe, solver=solver)
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
            self.stage, self.node = stage, stage.node

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


@pytest.mark.parametrize("entry", [e for e in TABLE.values() if not isinstance(e.solver, fs.EVODiff)], ids=repr)
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
