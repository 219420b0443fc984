"""A plan says what will be measured, or what is wrong with it."""

import json

import pytest

from fewstep import DPMSolverPP
from fewstep.bench.plan import Cell, Plan
from fewstep.bench.presets import load_preset, presets
from fewstep.grid import log_snr


def test_cells_are_solvers_by_grids_by_calls():
    plan = Plan.of({"solvers": ["ddim", "heun"], "grids": ["own", "karras"], "calls": [5, 8]})
    cells = [cell for cell, _, _ in plan.cells("m", 2.0)]
    assert len(set(cells)) == 2 * 2 * 2
    assert cells[0] == Cell("m", "ddim", "own", 2.0, 5)


def test_a_table_sets_options_of_the_solver_and_of_its_grid():
    table = {"name": "closing", "solver": "dpmpp-2m", "final_order": 1, "grid": "log-snr", "to_zero": True}
    ((cell, solver, grid),) = Plan.of({"solvers": [table], "grids": ["own", "karras"], "calls": [5]}).cells("m", 1.0)
    assert solver == DPMSolverPP(order=2, final_order=1)
    assert grid == log_snr(to_zero=True)
    assert (cell.solver, cell.grid) == ("closing", "log_snr(to_zero=True)")


def test_batches_are_the_seeds():
    plan = Plan.of({"n": 10, "seed": 7, "batch": 4})
    assert plan.batches() == [range(7, 11), range(11, 15), range(15, 17)]


def test_a_record_gives_the_plan_back():
    plan = Plan.of({"solvers": ["ddim", {"solver": "heun", "name": "h"}], "guidance": [1, 2.5], "scores": {"a": "b:c"}})
    assert Plan.of(json.loads(json.dumps(plan.record()))) == plan


def test_toml(tmp_path):
    path = tmp_path / "bench.toml"
    path.write_text('solvers = ["ddim"]\ncalls = 5\n')
    assert Plan.of(Plan.keys(path)) == Plan.of({"solvers": ["ddim"], "calls": [5]})
    path.write_text("solvers = [")
    with pytest.raises(ValueError, match="is not valid TOML"):
        Plan.keys(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": ["ddim"]}, "no 'solver'; choose from models, solvers"),
        ({"solvers": ["euler"]}, "no solver 'euler'"),
        ({"solvers": []}, "solvers must name at least one"),
        ({"clip": "folder"}, "clip is for the metrics aesthetic, clip: name one of them, or leave it out"),
        ({"aesthetic": "a.pth"}, "aesthetic is for the metrics aesthetic: name one"),
        ({"solvers": ["ddim", "ddim"]}, "two solvers are called 'ddim': give one a `name`"),
        ({"solvers": [{"solver": "ddim", "order": 3}]}, "the table of ddim has options"),
        ({"solvers": [{"solver": "ddim", "grid": "karras", "order": 3}]}, "the table of ddim has options"),
        ({"solvers": [{"solver": "ddim", "grid": "even"}]}, "no grid 'even'"),
        ({"solvers": ["dpm-solver-v3-3"]}, "dpm-solver-v3-3 needs statistics"),
        ({"grids": ["even"]}, "'even' is none of the grids"),
        ({"metrics": ["fid"]}, "'fid' is none of the metrics"),
        ({"calls": [0]}, "calls must be at least 1; got 0"),
        ({"calls": ["many"]}, "calls must be of int; got 'many'"),
        ({"n": True}, "n must be of int; got True"),
        ({"n": 1}, "n must be at least 2; got 1"),
        ({"guidance": ["no"]}, "guidance must be of float"),
        ({"converged": 0}, "rmse and gain need the converged solution"),
        ({"scores": "clip"}, "scores must be of mapping"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(given, message):
    with pytest.raises(ValueError, match=message):
        Plan.of(given)


@pytest.mark.parametrize("name", presets())
def test_presets_are_plans_whose_figures_are_of_their_budgets(name):
    preset = load_preset(name)
    plan = Plan.of(preset.filled(name, dict.fromkeys(preset.files, "x") | {"models": "m:f"}))
    names = plan.candidates()
    for by in plan.published.values():
        assert names.keys() & by.keys()
        for solver, figures in by.items():
            assert solver not in names or set(map(int, figures)) <= set(plan.calls)


def test_presets_hold_the_figures_of_the_papers():
    figures = load_preset("evodiff-table2-cifar10").plan["published"]["frechet"]
    # Where the papers contradict each other, both are there: 45.5 % of 5.10 is the claim, 2.91 the other baseline.
    assert (figures["evodiff-published"]["10"], figures["dpmpp-2m-closing"]["10"]) == (2.78, 5.10)
    assert figures["dpmpp-3m"]["10"] == 2.91
    assert round(1 - 2.78 / 5.10, 3) == 0.455
    assert load_preset("re-table3-cifar10-edm").plan["published"]["frechet"]["unipc-3"]["10"] == 2.85


def test_a_preset_tells_which_files_it_needs():
    preset = load_preset("evodiff-table2-cifar10")
    with pytest.raises(
        FileNotFoundError, match=r"models: edm-cifar10-32x32-uncond-vp\.pkl from NVlabs.*reference: cif"
    ):
        preset.filled("evodiff-table2-cifar10", {"weights": "w.pth"})
    with pytest.raises(ValueError, match="no preset 'table9'; choose from evodiff-table2-cifar10"):
        load_preset("table9")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"guidance": [2.0000001, 2.0000002]}, "guidance 2.0000001 and 2.0000002"),
        ({"solvers": [{"solver": "ddim", "name": "a b"}, {"solver": "heun", "name": "a-b"}]}, "'a b' and 'a-b'"),
        ({"solvers": [{"solver": "ddim", "name": "A"}, {"solver": "heun", "name": "a"}]}, "solvers 'A' and 'a'"),
        ({"models": ["m:a b", "m:a-b"]}, "models 'm:a b' and 'm:a-b'"),
        ({"solvers": [{"solver": "unipc-3", "name": "converged!"}], "calls": 128}, "solvers 'converged' and"),
    ],
)
def test_two_cells_share_no_folder(given, told):
    with pytest.raises(ValueError, match=f"{told}.* would share the folder .*: leave out one, or give names that"):
        Plan.of(given)
