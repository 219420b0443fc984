from pathlib import Path

import pytest

import fewstep as fs
from benchmarks.ablation import BUDGETS, ITERATIONS, PRINTED, PROBLEMS, exact_problem, rmses
from fewstep.table import call

PAGE = Path(__file__).parents[2] / "docs" / "evodiff.md"


def cells():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_a_call_makes_its_solver():
    for solver in (*(iteration.solver for iteration in ITERATIONS), *(solver for _, _, solver in PRINTED)):
        assert eval(call(solver), vars(fs)) == solver


def test_no_two_iterations_are_the_same():
    assert len({call(iteration.solver) for iteration in ITERATIONS}) == len(ITERATIONS)
    assert len({iteration.name for iteration in ITERATIONS}) == len(ITERATIONS)


def test_the_page_has_every_iteration_and_every_row_of_the_printed_tables():
    rows = list(cells())
    for name, iclr, neurips, solver in ITERATIONS:
        assert [name, iclr, neurips, f"`{call(solver)}`"] in rows
    for name, reading, solver in PRINTED:
        assert [name, reading, f"`{call(solver)}`"] in rows


def test_the_page_says_what_is_measured_on_the_gaussian():
    measured = {row[0]: row[1:] for row in cells() if len(row) == 1 + 3 * len(BUDGETS)}
    for iteration, values in zip(ITERATIONS, rmses(*exact_problem(PROBLEMS["Gaussian"])), strict=True):
        on_page = [float(value) for value in measured[iteration.name][: len(BUDGETS)]]
        # Three decimals, and the rounding of sums in another order.
        assert on_page == pytest.approx(values, abs=6e-4, rel=1e-6)
