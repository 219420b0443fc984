import math

import mpmath
import numpy as np
import pytest

import fewstep as fs
from fewstep.solvers.core.base import Row
from golden import arrays, assert_matches, entries, noise, problem

TABLES = arrays("diffusers")
ZJU = {k: facts for k, facts in entries("zju_diff_solvers").items() if k.startswith("deis")}
TAB = [k for k in ZJU if k.startswith("deis_tab")]
# As shipped, order 4 takes the weights of an earlier step; with another range of sigma the clock of "tab" is another.
RHO = [k for k in ZJU if k.startswith("deis_rhoab") and "asshipped" not in k]
COEFFICIENTS = [k for k in arrays("zju_diff_solvers") if k.startswith("coeff__deis")]
DIFFUSERS = [k for k in entries("diffusers") if k.startswith("deis")]
DISCRETE = fs.Discrete([0.98 * 0.9**i for i in range(12)])


def edm_nodes(name):
    """The nodes of the golden `solver__grid__nodesN`, perhaps with a range of sigma."""
    _, grid, rest = name.split("__", 2)
    sigmas = arrays("zju_diff_solvers")[f"grid__{grid}__rho{1 if grid == 'time_uniform' else 7}__{rest}"]
    return fs.from_times(fs.EDM(), sigmas)


def solver_of(name):
    variant = "tab" if "tab" in name else "rhoab"
    return fs.DEIS(int(name.split(variant)[1][0]), variant, final_order=4)


@pytest.mark.parametrize("key", RHO)
def test_equals_diff_sampler(key):
    assert_matches("zju_diff_solvers", key, solver_of(key), fs.EDM(), edm_nodes(key))


@pytest.mark.parametrize("key", COEFFICIENTS)
def test_weights_equal_diff_samplers_within_its_sum(key):
    """Its sum over N points is off by a share of about 0.3 / N, N = 10^4 or 10^6; rho-AB's are in closed form."""
    name = key.removeprefix("coeff__")
    tolerance = 1e-14 if "rhoab" in name else 4e-7 if "1e6" in name else 4e-5
    stages = solver_of(name).plan(fs.EDM(), edm_nodes(name))
    for stage, row in zip(stages[1:], arrays("zju_diff_solvers")[key][1:], strict=True):
        want = row[np.isfinite(row)]
        np.testing.assert_allclose(stage.move.weights, want, rtol=0, atol=tolerance * abs(want).max())


@pytest.mark.parametrize("name", [k for k in COEFFICIENTS if "1e6" in k])
def test_weights_are_where_diff_samplers_sums_tend_to(name):
    """Their error falls with 1 / N, N = 10^4 and 10^6: what is left of it after Richardson's extrapolation is 1e-8."""
    coarse, fine = (arrays("zju_diff_solvers")[k] for k in (name.replace("_quad1e6", ""), name))
    stages = fs.DEIS(3, final_order=3).plan(fs.EDM(), edm_nodes(name.removeprefix("coeff__")))
    for stage, row in zip(stages[1:], ((100 * fine - coarse) / 99)[1:], strict=True):
        want = row[np.isfinite(row)]
        np.testing.assert_allclose(stage.move.weights, want, rtol=0, atol=1e-8 * abs(want).max())


class Given(fs.DEIS):
    """With the weights of a golden."""

    rows: np.ndarray

    def plan(self, schedule, nodes, nfe=None):
        stages = super().plan(schedule, nodes, nfe)
        for i, row in enumerate(self.rows):
            if np.isfinite(row[0]):
                stages[i] = stages[i]._replace(move=Row(1.0, tuple(row[np.isfinite(row)].tolist())))
        return stages


@pytest.mark.parametrize("key", [k for k in TAB if f"coeff__{k}" in arrays("zju_diff_solvers")])
def test_with_diff_samplers_weights_the_run_is_its_run(key):
    given = Given(4)
    object.__setattr__(given, "rows", arrays("zju_diff_solvers")[f"coeff__{key}"])
    assert_matches("zju_diff_solvers", key, given, fs.EDM(), edm_nodes(key))


@pytest.mark.parametrize("key", TAB)
def test_runs_differ_from_diff_samplers_by_its_sum(key):
    """Errors of 3e-5 (3e-7) in the weights, which multiply numbers of order 80, are of 1e-3 (1e-5) in the result."""
    got = fs.integrate(
        problem().denoiser(fs.EDM()),
        noise() * edm_nodes(key)[0].sigma,
        edm_nodes(key),
        solver=solver_of(key),
        schedule=fs.EDM(),
    )
    difference = abs(got.numpy() - arrays("zju_diff_solvers")[key]).max()
    assert difference < (1e-5 if "1e6" in key else 1e-3)


@pytest.mark.parametrize("key", DIFFUSERS)
def test_equals_diffusers(key):
    """Tables `asshipped` are float32, and the integrals in log rho cancel: 1e-5."""
    facts = entries("diffusers")[key]
    tables = key.replace("asshipped", "f64tables")
    sigmas, times = TABLES[f"sigmas__{tables}"], TABLES[f"timesteps__{tables}"]
    levels = [(1 / math.hypot(1, n), n / math.hypot(1, n)) for n in sigmas]
    nodes = [fs.Node(float(t), *level) for t, level in zip([*times, -0.5], levels, strict=True)]
    still = sigmas[-1] == sigmas[-2]
    if still:
        nodes.pop()  # with karras the last step, that of order 1, leads from sigma_min to sigma_min
    schedule = fs.Discrete(TABLES["alphas_cumprod_f64"])
    model, at = problem().denoiser(schedule), {node.time: node for node in nodes}

    def denoiser(x, t):
        """The model predicts noise, for the level of its integer time, which with karras is not the node's."""
        told, node = schedule.node(t), at[t]
        return (x - node.sigma * (x - told.alpha * model(x, t)) / told.sigma) / node.alpha

    final_order = 1 + still if facts["lower_order_final"] and facts["steps"] < 15 else 4
    solver = fs.DEIS(facts["order"], "logrhoab", final_order=final_order)
    got = fs.integrate(denoiser, noise(), nodes, solver=solver, schedule=schedule)
    tolerance = 2e-5 if facts["tables"] == "asshipped" else 10 * facts["tol"]
    np.testing.assert_allclose(got.numpy(), TABLES[key], rtol=0, atol=tolerance)


def vp(t, d, b):
    return mpmath.sqrt(mpmath.expm1(t * (d * t / 2 + b)))


def polyline(t):
    table = [mpmath.mpf(0), *(-mpmath.log(a) for a in DISCRETE.alphas_cumprod)]
    k = min(int(mpmath.floor(t)) + 1, len(table) - 2)
    return mpmath.sqrt(mpmath.expm1(table[k] + (t + 1 - k) * (table[k + 1] - table[k])))


def equivalent(schedule):
    """diff-sampler's clock of EDM, by its definition: beta_d and beta_0, and t of a sigma by bisection."""
    low, high = (mpmath.log(1 + mpmath.mpf(s) ** 2) for s in (schedule.sigma_min, schedule.sigma_max))
    e = mpmath.mpf("1e-3")
    d = 2 * (low / e - high) / (e - 1)
    return d, high - d / 2


def cosine(t):
    def f(u, s="0.008"):
        return mpmath.cos(mpmath.pi / 2 * (u + mpmath.mpf(s)) / (1 + mpmath.mpf(s)))

    return mpmath.sqrt((f(0) / f(t)) ** 2 - 1)


# Schedule, sigma / alpha as a function of the clock, the clock's times of five nodes, and its corners in the last step.
CLOCKS = {
    "vp": (fs.VPLinear(), lambda t: vp(t, mpmath.mpf("19.9"), mpmath.mpf("0.1")), (0.9, 0.7, 0.5, 0.2, 0.02), ()),
    "vp, rising": (
        fs.VPLinear(),
        lambda t: vp(t, mpmath.mpf("19.9"), mpmath.mpf("0.1")),
        (0.1, 0.2, 0.3, 0.5, 0.9),
        (),
    ),
    "cosine": (fs.VPCosine(), cosine, (0.99, 0.9, 0.8, 0.5, 0.01), ()),
    "flow": (fs.Flow(), lambda t: t / (1 - t), (0.99, 0.9, 0.7, 0.6, 0.01), ()),
    "discrete": (DISCRETE, polyline, (11, 9.5, 8, 6.5, 0.5), (6, 5, 4, 3, 2, 1)),
    "edm": (fs.EDM(), lambda t: vp(t, *equivalent(fs.EDM())), (0.999, 0.8, 0.5, 0.3, 0.01), ()),
    "edm, range": (fs.EDM(0.01, 40), lambda t: vp(t, *equivalent(fs.EDM(0.01, 40))), (0.9, 0.8, 0.5, 0.3, 0.01), ()),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_tab_weights_are_the_integrals_over_the_clock(name):
    schedule, ratio, times, corners = CLOCKS[name]
    with mpmath.workdps(30):
        times = [mpmath.mpf(t) for t in times]
        if isinstance(schedule, fs.EDM):
            nodes = [schedule.node(float(ratio(t))) for t in times]
        else:
            nodes = [schedule.node(float(t)) for t in times]
        start, end = times[-2:]
        total = ratio(end) - ratio(start)
        want = []
        for own in times[-2::-1]:
            others = [t for t in times[:-1] if t != own]

            def basis(t, own=own, others=others):
                return mpmath.fprod((t - other) / (own - other) for other in others)

            def slope(t, basis=basis):  # of the basis, times the share of the step that is done
                return mpmath.diff(basis, t) * (ratio(t) - ratio(start)) / total

            # By parts, which needs no derivative of the schedule.
            want.append(basis(end) - mpmath.quad(slope, [start, *corners, end]))
    weights = np.array(fs.DEIS(4, final_order=4).plan(schedule, nodes)[-1].move.weights)
    want = np.array([float(w) for w in want])
    np.testing.assert_allclose(weights / weights.sum(), want, rtol=0, atol=1e-12 * abs(want).max())


@pytest.mark.parametrize("order", [2, 3, 4])
def test_log_rho_is_unip_with_exact_weights(order):
    nodes = fs.log_snr(fs.VPLinear(), 8, to_zero=True)
    unip = fs.UniPC(order, "vary", field="noise", final_order=4, no_corrector="all")
    deis = fs.DEIS(order, "logrhoab", final_order=4)
    for a, b in zip(unip.plan(fs.VPLinear(), nodes), deis.plan(fs.VPLinear(), nodes), strict=True):
        assert a.move.scale == b.move.scale
        # Of the roundings in the largest weight.
        assert a.move.weights == pytest.approx(b.move.weights, abs=1e-13 * max(map(abs, b.move.weights)))


def test_order_one_is_ddim_in_the_noise():
    nodes = fs.log_snr(fs.EDM(), 5, to_zero=True)
    plans = [fs.DEIS(1, variant).plan(fs.EDM(), nodes) for variant in ("tab", "rhoab", "logrhoab")]
    assert plans[0] == plans[1] == plans[2] == fs.IPNDM(1).plan(fs.EDM(), nodes)


def test_on_a_flow_the_clock_is_the_velocitys_variable():
    nodes = fs.time_uniform(fs.Flow(shift=3), 8)
    tab, rho = (fs.DEIS(4, variant, "velocity", 4).plan(fs.Flow(), nodes) for variant in ("tab", "rhoab"))
    for a, b in zip(tab, rho, strict=True):
        assert a.move.weights == pytest.approx(b.move.weights, rel=1e-12)
    assert [len(stage.move.weights) for stage in tab] == [1, 2, 3, 4, 4, 4, 4, 1]


def test_a_flow_needs_the_velocity_field():
    with pytest.raises(ValueError, match='field="velocity"'):
        fs.DEIS().plan(fs.Flow(), fs.time_uniform(fs.Flow(), 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be one of 1, 2, 3, 4; got 0"),
        ({"variant": "ab"}, "variant must be one of 'tab', 'rhoab', 'logrhoab'; got 'ab'"),
        ({"field": "data"}, "field must be one of 'noise', 'velocity'; got 'data'"),
        ({"final_order": 5}, "final_order must be one of None, 1, 2, 3, 4; got 5"),
        ({"variant": "logrhoab", "field": "velocity"}, 'variant="logrhoab" needs field="noise"'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fs.DEIS(**options)


def test_nodes_where_the_clock_stands_still_are_refused():
    """Beyond the noise levels of a table, where a scheduler's Karras sigmas may lie."""
    schedule = fs.Discrete(np.linspace(0.999, 0.005, 1000).tolist())
    nodes = [fs.Node(999.0, (1 + nsr**2) ** -0.5, nsr * (1 + nsr**2) ** -0.5) for nsr in (700.0, 300.0, 100.0, 30.0)]
    with pytest.raises(ValueError, match="stands still beyond its noise levels"):
        fs.DEIS(3).plan(schedule, nodes)
    assert np.isfinite([fs.DEIS(3, "rhoab").plan(schedule, nodes)[2].move.weights]).all()
