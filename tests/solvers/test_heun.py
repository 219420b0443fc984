import pytest

import fewstep as fs
from golden import GRIDS, assert_matches, entries

EDM = [k for k in entries("dpm_solver_edm") if "__heun__" in k]
ZJU = [k for k in entries("zju_diff_solvers") if k.startswith("heun") and "time_uniform" not in k]


@pytest.mark.parametrize("key", EDM)
def test_equals_the_edm_code(key):
    _, _, grid, budget = key.split("__")
    nfe = int(budget.removeprefix("steps_arg"))
    odd = bool(nfe % 2)
    nodes = GRIDS[grid](fs.EDM(), nfe // 2 + odd, to_zero=odd)
    assert_matches("dpm_solver_edm", key, fs.Heun(), fs.EDM(), nodes)


@pytest.mark.parametrize("key", ZJU)
def test_equals_diff_sampler(key):
    facts = entries("zju_diff_solvers")[key]
    closing = bool(facts["denoise_to_zero"])
    nodes = GRIDS[facts["schedule"]](fs.EDM(), facts["nodes"] - 1 + closing, to_zero=closing)
    assert_matches("zju_diff_solvers", key, fs.Heun(), fs.EDM(), nodes)


def test_an_odd_budget_takes_the_last_noisy_step_at_first_order():
    nodes = fs.karras(fs.EDM(), 4, to_zero=False)
    assert [s.hold for s in fs.Heun().plan(fs.EDM(), nodes)] == [True, False] * 4
    assert [s.hold for s in fs.Heun().plan(fs.EDM(), nodes, 7)] == [True, False] * 3 + [False]
    for nfe in (6, 9):
        with pytest.raises(ValueError, match=f"4 steps costs Heun 8 calls, or one less .* got nfe={nfe}"):
            fs.Heun().plan(fs.EDM(), nodes, nfe)


def test_a_flow_needs_the_velocity_field():
    nodes = fs.time_uniform(fs.Flow(), 4)
    with pytest.raises(ValueError, match='field="velocity"'):
        fs.Heun().plan(fs.Flow(), nodes)
    assert len(fs.Heun(field="velocity").plan(fs.Flow(), nodes)) == 7
