from itertools import groupby, pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.sampling import plan
from golden import TIMES_TOL, arrays, entries, noise, problem

GOLDENS = arrays("diffusers")
KEYS = [k for k in entries("diffusers") if k.startswith("pndm")]
# With 'linspace' diffusers moves by 100 indices a step and calls the model 111 further on: a run on no grid.
ON_A_GRID = [k for k in KEYS if "linspace" not in k]


@pytest.mark.parametrize("key", ON_A_GRID)
def test_equals_diffusers(key):
    """Tables `asshipped` are float32: 1e-6. Without "prk" the second time is listed twice, which is Heun's start."""
    facts = entries("diffusers")[key]
    schedule = fs.Discrete(GOLDENS["alphas_cumprod_f64"])
    times = GOLDENS[f"timesteps__{key}"].tolist()
    if facts["skip_prk_steps"]:
        solver, outer = fs.PNDM(warmup="heun"), [times[0], *times[2:]]
    else:
        solver, outer = fs.PNDM(), [*times[:12:4], *times[12:]]
    nodes = [schedule.node(t) for t in outer]
    if facts["set_alpha_to_one"]:
        # Clean data as a noise level that is not quite 0: the last step is then of order 4, as theirs.
        nodes.append(fs.Node(-1.0, 1.0, 1e-200))
    elif outer[-1]:
        nodes.append(schedule.node(0.0))
    # With a last time of 0 the last call leads from index 0 to itself.
    nfe = facts["nfe"] - (not outer[-1])
    got = fs.integrate(problem().denoiser(schedule), noise(), nodes, solver=solver, schedule=schedule, nfe=nfe)
    tolerance = 1e-6 if facts["tables"] == "asshipped" else TIMES_TOL * facts["tol"]
    np.testing.assert_allclose(got.numpy(), GOLDENS[key], rtol=0, atol=tolerance)


def test_s_pndm_is_a_heun_step_and_then_adams_bashforth_of_order_two():
    schedule = fs.VPLinear()
    nodes = fs.time_uniform(schedule, 4, to_zero=False)

    def denoiser(x, t):
        return x / (1 + x * x + t) + 0.25

    def e(x, node):
        return (x - node.alpha * denoiser(x, node.time)) / node.sigma

    def phi(x, s, t, e):
        return t.alpha * (x / s.alpha + (t.nsr - s.nsr) * e)

    x = start = torch.randn(2, 3, dtype=torch.float64)
    last = e(x, nodes[0])
    x = phi(x, *nodes[:2], (last + e(phi(x, *nodes[:2], last), nodes[1])) / 2)
    for s, t in pairwise(nodes[1:]):
        new = e(x, s)
        x, last = phi(x, s, t, (3 * new - last) / 2), new
    got = fs.integrate(denoiser, start, nodes, solver=fs.PNDM(2, "heun"), schedule=schedule)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_a_runge_kutta_step_has_the_terms_of_the_exponential(calls):
    """For dx / dsigma = e = a x one step of order p gives x sum_k (a h)^k / k! up to k = p."""
    nodes, a = fs.from_times(fs.EDM(), [3.0, 2.0]), 0.7
    x = torch.ones(1, 1, dtype=torch.float64)
    got = fs.integrate(lambda x, t: x - t * a * x, x, nodes, solver=fs.PNDM(), nfe=calls, schedule=fs.EDM())
    want = np.cumsum(np.cumprod([1, -a, -a / 2, -a / 3, -a / 4]))[calls]
    assert got.item() == pytest.approx(want, rel=1e-14)


def calls_of_steps(stages, nodes):
    """How many calls each step makes: the first of a step is made at its node, with nothing held before it."""
    starts = [i for i in range(len(stages)) if not i or not stages[i - 1].hold]
    assert [stages[i].node for i in starts] == list(nodes[:-1])
    return np.diff([*starts, len(stages)]).tolist()


def test_extra_calls_go_to_the_first_steps():
    nodes = fs.log_snr(fs.EDM(), 5, to_zero=False)

    def calls(nfe, solver=None, nodes=nodes):
        return calls_of_steps((solver or fs.PNDM()).plan(fs.EDM(), nodes, nfe), nodes)

    assert [calls(nfe) for nfe in (5, 6, 7, 8, 9)] == [
        [1, 1, 1, 1, 1], [2, 1, 1, 1, 1], [3, 1, 1, 1, 1], [4, 1, 1, 1, 1], [4, 2, 1, 1, 1],
    ]  # fmt: skip
    assert calls(13) == [4, 4, 3, 1, 1]
    assert calls(14) == [4, 4, 4, 1, 1]
    assert calls(None) == calls(9)
    assert calls(8, fs.PNDM(2)) == [4, 1, 1, 1, 1]
    assert calls(None, fs.PNDM(4, "heun")) == [2, 1, 1, 1, 1]
    closing = fs.log_snr(fs.EDM(), 3, to_zero=True)
    assert calls(9, nodes=closing) == [4, 4, 1]
    for solver, nfe, most in ((fs.PNDM(), 15, 14), (fs.PNDM(), 4, 14), (fs.PNDM(2), 9, 8), (fs.PNDM(4, "heun"), 7, 6)):
        with pytest.raises(ValueError, match=f"5 steps costs PNDM 5 to {most} calls; got nfe={nfe}"):
            solver.plan(fs.EDM(), nodes, nfe)


def test_a_budget_is_spent_on_steps_until_the_whole_start_fits_in():
    def steps_and_start(nfe):
        nodes, stages = plan(fs.EDM(), fs.PNDM(), nfe=nfe, grid=fs.log_snr(to_zero=False))
        assert len(stages) == nfe
        return [(n, len(list(group))) for n, group in groupby(calls_of_steps(stages, nodes))]

    assert steps_and_start(4) == [(2, 1), (1, 2)]
    assert steps_and_start(8) == [(4, 1), (1, 4)]
    assert steps_and_start(19) == [(4, 3), (1, 7)]
    assert steps_and_start(30) == [(4, 3), (1, 18)]


def test_inner_calls_are_at_the_middle_of_the_clock():
    schedule = fs.VPLinear()
    nodes = fs.log_snr(schedule, 2)
    middle = (nodes[0].time + nodes[1].time) / 2
    times = [stage.node.time for stage in fs.PNDM().plan(schedule, nodes, 5)]
    assert times == [nodes[0].time, middle, middle, nodes[1].time, nodes[1].time]


def test_a_flow_needs_the_velocity_field():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match='field="velocity"'):
        fs.PNDM().plan(fs.Flow(), nodes)
    assert len(fs.PNDM(field="velocity").plan(fs.Flow(), nodes)) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order must be one of 2, 3, 4; got 1"),
        ({"warmup": "euler"}, "warmup must be one of 'prk', 'heun'; got 'euler'"),
        ({"field": "data"}, "field must be one of 'noise', 'velocity'; got 'data'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fs.PNDM(**options)
