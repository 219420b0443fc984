"""DPM-Solver and DPM-Solver++, multistep and single step."""

from itertools import pairwise

import pytest
import torch

import fewstep as fs
from fewstep.sampling import plan
from fewstep.solvers.core.base import euler_row
from fewstep.solvers.core.exponential import single_step
from golden import GRIDS, arrays, assert_matches, entries, sd_table
from peers import assert_equals_scheduler

VP = list(entries("dpm_solver"))
EDM = [k for k in entries("dpm_solver_edm") if "__heun__" not in k]
FAMILIES = {"dpmsolver": fs.DPMSolver, "dpmsolver++": fs.DPMSolverPP}
VARIANTS = {"dpmsolver": "midpoint", "taylor": "taylor"}
every_family = pytest.mark.parametrize("family", FAMILIES.values())


class Points:
    """A plan of single steps over given points."""

    def __init__(self, field, steps, variant):
        self.field, self.steps, self.variant = field, steps, variant

    def plan(self, schedule, nodes, nfe=None):
        return [stage for points in self.steps for stage in single_step(self.field, points, self.variant)]


# The authors' code


@pytest.mark.parametrize("key", [k for k in VP if "__multistep__" in k])
def test_multistep_equals_the_authors_code_on_vp(key):
    schedule_name, family, _, order, skip, steps, variant, *flags = key.split("__")
    schedule = sd_table() if schedule_name == "sd_discrete" else fs.VPLinear()
    order, steps, closing = int(order[-1]), int(steps[5:]), "dtz1" in flags
    lowered = "lof0" not in flags and steps < 10  # the code lowers the last steps below ten steps only
    solver = FAMILIES[family](order, VARIANTS[variant], final_order=1 if lowered else 3)
    nodes = GRIDS[skip](schedule, steps + closing, to_zero=closing)
    assert_matches("dpm_solver", key, solver, schedule, nodes)


@pytest.mark.parametrize("key", [k for k in EDM if "__multistep__" in k])
def test_multistep_equals_the_authors_code_on_edm(key):
    facts = entries("dpm_solver_edm")[key]
    closing = bool(facts["denoise_to_zero"])
    nodes = GRIDS[facts["grid"]](fs.EDM(), facts["steps"] + closing, to_zero=closing)
    solver = FAMILIES[key.split("__")[1]](facts["order"], final_order=1)
    assert_matches("dpm_solver_edm", key, solver, fs.EDM(), nodes)


def test_multistep_in_noise_equals_diff_samplers():
    nodes = fs.karras(fs.EDM(), 5, to_zero=False)
    key = "dpmpp3_noise__polynomial__nodes6"
    assert_matches("zju_diff_solvers", key, fs.DPMSolver(3, final_order=1), fs.EDM(), nodes)


@pytest.mark.parametrize("key", [k for k in VP if "__singlestep" in k and "__logSNR__" in k])
def test_single_steps_equal_the_authors_code_on_log_snr_grids(key):
    """The whole run from its budget: the packing too, but for "singlestep_fixed", which has equal steps."""
    _, family, method, order, _, steps, variant = key.split("__")
    order, steps, fixed = int(order[-1]), int(steps[5:]), method == "singlestep_fixed"
    solver = FAMILIES[family](order, VARIANTS[variant], 3 if fixed else 2, "singlestep")
    nodes, _ = plan(fs.VPLinear(), solver, nfe=steps, grid=fs.log_snr(to_zero=False))
    assert_matches("dpm_solver", key, solver, fs.VPLinear(), nodes, steps)


@pytest.mark.parametrize("key", [k for k in EDM if "__singlestep__" in k])
def test_single_steps_equal_the_authors_code_on_edm(key):
    facts = entries("dpm_solver_edm")[key]
    solver = FAMILIES[key.split("__")[1]](facts["order"], method="singlestep")
    nodes, _ = plan(fs.EDM(), solver, nfe=facts["nfe"], grid=fs.log_snr(to_zero=False))
    assert_matches("dpm_solver_edm", key, solver, fs.EDM(), nodes, facts["nfe"])


@pytest.mark.parametrize("key", [k for k in VP if "__singlestep__" in k and "__time_uniform__" in k])
def test_single_steps_equal_the_authors_code_on_time_grids(key):
    """With their outer nodes and orders, and inner points that are even in time."""
    _, family, _, order, skip, steps, variant = key.split("__")
    schedule, grid = fs.VPLinear(), f"grid__vp_linear__{skip}__{steps}__singlestep{order[-1]}"
    if order == "order1":
        outer = arrays("dpm_solver")[f"grid__vp_linear__{skip}__{steps}__t"]
        orders = [1] * (len(outer) - 1)
    else:
        outer, orders = arrays("dpm_solver")[f"{grid}__t_outer"], arrays("dpm_solver")[f"{grid}__orders"]
    runs = [
        [schedule.node(s + k / calls * (t - s)) for k in range(calls + 1)]
        for (s, t), calls in zip(pairwise(outer), map(int, orders), strict=True)
    ]
    solver = Points(FAMILIES[family].field, runs, VARIANTS[variant])
    assert_matches("dpm_solver", key, solver, schedule, [runs[0][0], runs[-1][-1]])


def test_every_golden_is_compared():
    multi = [k for k in (*VP, *EDM) if "__multistep__" in k]
    single = [k for k in (*VP, *EDM) if "__singlestep" in k and ("__logSNR__" in k or "__time_uniform__" in k)]
    assert len(multi) + len(single) == len(VP) + len(EDM) == 78 + 44


# diffusers


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["midpoint", "taylor"])
def test_multistep_equals_diffusers(order, variant):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, solver_type="midpoint" if variant == "midpoint" else "heun", beta_schedule="scaled_linear"
    )
    assert_equals_scheduler(scheduler, fs.DPMSolverPP(order, variant, final_order=2))


@every_family
@pytest.mark.parametrize(("order", "variant"), [(2, "midpoint"), (2, "taylor"), (3, "taylor")])
def test_single_steps_equal_diffusers(family, order, variant):
    """Which makes the inner calls at nodes of its grid, and closes with a step of order 1.

    Its "midpoint" of order 3 moves to the second inner point by "midpoint", the authors' code by "taylor".
    """
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    data = family is fs.DPMSolverPP
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=order,
        solver_type="midpoint" if variant == "midpoint" else "heun",
        beta_schedule="scaled_linear",
        algorithm_type="dpmsolver++" if data else "dpmsolver",
        final_sigmas_type="zero" if data else "sigma_min",
        lower_order_final=True,
    )

    class OnNodes:
        def plan(self, schedule, nodes, nfe=None):
            runs = [nodes[i : i + order + 1] for i in range(0, len(nodes) - 1, order)]
            return Points(family.field, runs, variant).plan(schedule, nodes)

    assert_equals_scheduler(scheduler, OnNodes(), steps=3 * order + 1)


# Definitions and limits


@every_family
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_order_1_is_ddim(family, method):
    nodes = fs.log_snr(fs.VPLinear(), 7, to_zero=True)
    stages = family(1, method=method).plan(fs.VPLinear(), nodes)
    assert [stage.move for stage in stages] == [euler_row(family.field, s, t) for s, t in pairwise(nodes)]


PACKINGS = {
    (2, 2): {1: [1], 2: [2], 3: [2, 1], 7: [2, 2, 2, 1], 8: [2, 2, 2, 2]},
    (2, 1): {1: [1], 3: [2, 1], 4: [2, 1, 1], 5: [2, 2, 1]},
    (3, 2): {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 9: [3, 3, 2, 1], 10: [3, 3, 3, 1]},
    (3, 3): {1: [1], 3: [3], 4: [3, 1], 6: [3, 3], 8: [3, 3, 2]},
    (3, 1): {3: [2, 1], 6: [3, 2, 1], 9: [3, 3, 2, 1], 8: [3, 3, 1, 1]},
}


@every_family
@pytest.mark.parametrize(("order", "final_order"), PACKINGS)
def test_single_steps_are_packed_into_the_budget(family, order, final_order):
    solver = family(order, final_order=final_order, method="singlestep")
    for nfe, calls in PACKINGS[order, final_order].items():
        for to_zero in (False, True):
            nodes, stages = plan(fs.EDM(), solver, nfe=nfe + to_zero, grid=fs.log_snr(to_zero=to_zero))
            firsts = [i for i, stage in enumerate(stages) if stage.node in nodes] + [len(stages)]
            assert [b - a for a, b in pairwise(firsts)] == calls + [1] * to_zero


def test_single_steps_name_the_budgets_of_a_grid():
    nodes = fs.log_snr(fs.EDM(), 4, to_zero=True)
    solver = fs.DPMSolver(3, method="singlestep")
    assert len(solver.plan(fs.EDM(), nodes)) == 9
    for nfe in (3, 10):
        with pytest.raises(ValueError, match=f"4 steps costs this solver 4 to 9 calls; got nfe={nfe}"):
            solver.plan(fs.EDM(), nodes, nfe)


@every_family
def test_single_steps_call_at_even_fractions_of_log_snr(family):
    nodes = fs.time_uniform(fs.VPLinear(), 3, to_zero=False)
    for order in (2, 3):
        stages = family(order, final_order=3, method="singlestep").plan(fs.VPLinear(), nodes)
        lams = torch.tensor([stage.node.lam for stage in stages] + [nodes[-1].lam], dtype=torch.float64)
        for i in range(0, 3 * order, order):
            lengths = lams[i : i + order + 1].diff()
            torch.testing.assert_close(lengths, lengths.mean().expand(order), rtol=1e-11, atol=0)


def test_the_noise_field_cannot_leave_pure_noise():
    for method in ("multistep", "singlestep"):
        nodes = fs.time_uniform(fs.Flow(), 4)
        with pytest.raises(ValueError, match="no step away from alpha = 0"):
            fs.DPMSolver(method=method).plan(fs.Flow(), nodes)
        fs.DPMSolverPP(method=method).plan(fs.Flow(), nodes)


def test_options_come_in_the_order_that_they_were_added():
    assert repr(fs.DPMSolverPP()) == "DPMSolverPP(order=2, variant='midpoint', final_order=None, method='multistep')"
    assert fs.DPMSolver(3, "taylor", 1) == fs.DPMSolver(order=3, variant="taylor", final_order=1)
    assert fs.DPMSolver() != fs.DPMSolverPP()


@every_family
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be one of 1, 2, 3; got 4"),
        ({"variant": "heun"}, "variant must be one of 'midpoint', 'taylor'; got 'heun'"),
        ({"final_order": 0}, "final_order must be one of None, 1, 2, 3; got 0"),
        ({"method": "2S"}, "method must be one of 'multistep', 'singlestep'; got '2S'"),
    ],
)
def test_wrong_options_are_refused_at_the_door(family, options, message):
    with pytest.raises(ValueError, match=message):
        family(**options)
