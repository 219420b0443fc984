from pathlib import Path

import pytest

import fewstep as fs
from benchmarks.numerics import state_tensors, wide_order
from fewstep.table import SOLVERS
from table import ORDER_BAND

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"


def test_the_page_has_a_row_for_every_solver_and_agrees_with_the_table():
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and cells[1].startswith("`"):
            rows[cells[0]] = cells
    assert set(rows) == set(SOLVERS)
    for name, entry in SOLVERS.items():
        _, solver, calls, state, *orders, wide, grid, reference = rows[name]
        assert solver == f"`{entry.solver!r}`"
        assert (int(calls), int(state)) == (entry.calls, entry.state)
        assert (grid, reference) == (repr(entry.solver.grid), entry.reference)
        assert (wide == "–") == entry.stochastic
        assert [float(order) for order in orders if order != "–"] == pytest.approx(entry.orders, abs=0.005)


def test_state_is_counted_in_a_run():
    assert state_tensors(fs.DDIM()) == 0
    assert state_tensors(fs.DPMSolverPP(order=3)) == 2


def test_on_wide_data_a_first_step_of_first_order_costs_a_multistep_method_its_order():
    """Of 3 on data that are small beside the noise at the start, towards 2; single steps keep theirs."""
    assert wide_order(fs.UniPC(3, no_corrector="all")) < 2.2
    assert wide_order(fs.DPMSolverPP(3, method="singlestep", final_order=3)) == pytest.approx(3, abs=ORDER_BAND)
