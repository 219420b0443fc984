from pathlib import Path

import pytest

import fewstep as fs
from fewstep.bench.numerics import MEASURED, state_tensors
from table import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"


def test_the_page_has_a_row_for_every_solver_measured_and_agrees_with_the_table():
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells
    assert set(rows) == {repr(solver) for solver in MEASURED}
    for entry in TABLE.values():
        cells = rows.get(repr(entry.solver))
        if cells is None:
            continue
        assert int(cells[1]) == entry.solver.calls_per_step
        assert int(cells[2]) == entry.state
        assert float(cells[3]) == pytest.approx(entry.gaussian, abs=0.15)
        assert float(cells[6]) == pytest.approx(entry.mixture, abs=0.15)


def test_state_is_counted_in_a_run():
    assert state_tensors(fs.DDIM()) == 0
    assert state_tensors(fs.DPMSolverPP(order=3)) == 2
