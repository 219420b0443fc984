"""Which grid for which solver: the ranking is of the records, over the same cells for every grid."""

from pathlib import Path

import pytest

from benchmarks import grids
from benchmarks.quality.results import Measurement, Results

PAGE = Path(__file__).parents[2] / "docs" / "grids.md"


def add(folder, solver, grid, nfe, error):
    Results(folder).add(Measurement("VP", nfe, solver, grid, [error], [], [], {}))


def test_the_best_grid_has_the_least_geometric_mean_and_was_measured_everywhere(tmp_path):
    for problem, factor in (("one", 1.0), ("other", 10.0)):
        for nfe in (5, 6):
            add(tmp_path / problem / "heats", "ddim", "A", nfe, 0.2 * factor)
            add(tmp_path / problem / "heats", "ddim", "B", nfe, 0.1 * factor)
            add(tmp_path / problem / "heats", "evodiff", "own", nfe, 0.25)
            add(tmp_path / problem, "ddim", "B", nfe, 9.0)  # of contenders alone
    add(tmp_path / "one" / "heats", "ddim", "C", 5, 0.01)  # one cell, which is no comparison
    found = grids.errors(("one", "other"), tmp_path)
    assert grids.best(found, "VP", "ddim", (5, 6)) == [("B", 1.0), ("A", pytest.approx(2.0))]
    assert grids.best(found, "VP", "evodiff", (5, 6)) == [("own", 1.0)]
    assert grids.best(found, "flow", "ddim", (5, 6)) == []


def test_the_page_is_that_of_the_records():
    assert PAGE.read_text(encoding="utf-8").rstrip() == grids.page().rstrip()
