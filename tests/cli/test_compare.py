"""`fewstep compare`."""

import json

import pytest

import fewstep
from cli.commands import DONE, names
from fewstep.pictures import read


def test_comparison_is_a_picture_and_a_table(compare, tmp_path):
    result = compare()
    assert result.exit_code == DONE
    assert names(tmp_path) == ["compare.png"]
    picture = read(tmp_path / "compare.png")
    # At least two rows of images of 64 pixels, and three columns of two of them.
    assert picture.shape[0] > 2 * 64
    assert picture.shape[1] > 3 * 2 * 64
    for word in ("ddim", "heun", "1 call", "3 calls", "RMSE"):
        assert word in result.stdout
    assert str(tmp_path / "compare.png") in result.stderr.replace("\n", "")


def test_json_has_every_solver_at_every_budget_and_nothing_else_is_on_stdout(compare, tmp_path):
    told = json.loads(compare("--json", "--guidance", "2").stdout)
    cells = told["cells"]
    assert [(c["solver"], c["nfe"]) for c in cells] == [(s, b) for s in ("ddim", "heun") for b in (1, 3)]
    assert all(c["calls"] == c["nfe"] for c in cells)
    assert all(c["seconds"] > 0 and c["rmse"] > 0 for c in cells)
    assert told["out"] == str(tmp_path / "compare.png")
    assert (told["guidance"], told["n"]) == (2.0, 2)


def test_distances_are_those_of_the_library_from_the_same_noise(compare, model):
    (cell,) = json.loads(compare("--json", "--seed", "4", "--label", "1", solvers="unipc-2", nfe="3").stdout)["cells"]
    loaded = fewstep.adapters.load_model(model, batch=8)
    noise = fewstep.unit_noise([4, 5], loaded.shape)
    exact, got = (
        fewstep.sample(loaded.conditioned(1), noise, nfe=nfe, solver=solver, schedule=loaded.schedule)
        for nfe, solver in ((128, fewstep.UniPC(order=3)), (3, fewstep.UniPC(order=2)))
    )
    assert cell["rmse"] == pytest.approx((got - exact).double().square().mean().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_one_solver_one_budget_and_few_images_are_enough(compare, tmp_path, n):
    assert compare(n=n, solvers="unipc-2-bh1", nfe="1").exit_code == DONE
    assert (tmp_path / "compare.png").exists()
