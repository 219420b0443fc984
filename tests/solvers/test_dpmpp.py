import pytest

import fewstep as fs
from golden import GRIDS, assert_matches, entries, sd_table
from peers import assert_equals_scheduler

VP = [k for k in entries("dpm_solver") if "__dpmsolver++__multistep__" in k]
EDM = [k for k in entries("dpm_solver_edm") if "__dpmsolver++__multistep__" in k]


@pytest.mark.parametrize("key", VP)
def test_equals_the_authors_code_on_vp(key):
    schedule_name, _, _, order, skip, steps, variant, *flags = key.split("__")
    schedule = sd_table() if schedule_name == "sd_discrete" else fs.VPLinear()
    order, steps, closing = int(order[-1]), int(steps[5:]), "dtz1" in flags
    lowered = "lof0" not in flags and steps < 10
    solver = fs.DPMSolverPP(order, "midpoint" if variant == "dpmsolver" else "taylor", final_order=1 if lowered else 3)
    nodes = GRIDS[skip](schedule, steps + closing, to_zero=closing)
    assert_matches("dpm_solver", key, solver, schedule, nodes)


@pytest.mark.parametrize("key", EDM)
def test_equals_the_authors_code_on_edm(key):
    facts = entries("dpm_solver_edm")[key]
    closing = bool(facts["denoise_to_zero"])
    nodes = GRIDS[facts["grid"]](fs.EDM(), facts["steps"] + closing, to_zero=closing)
    assert_matches("dpm_solver_edm", key, fs.DPMSolverPP(facts["order"], final_order=1), fs.EDM(), nodes)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["midpoint", "taylor"])
def test_equals_diffusers(order, variant):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, solver_type="midpoint" if variant == "midpoint" else "heun", beta_schedule="scaled_linear"
    )
    assert_equals_scheduler(scheduler, fs.DPMSolverPP(order, variant, final_order=2))
