"""The programs of examples/ run as they are, and do what they say."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_there_are_four_and_each_is_tested_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"inverse", "own_model", "pipeline", "tabular"}


def test_a_pipeline_of_diffusers(tmp_path, capsys):
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    load("pipeline").main(str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "8 steps of EVODiffScheduler" in capsys.readouterr().out


def test_a_model_of_your_own_has_less_error_than_eulers_method():
    own = load("own_model")
    errors = own.main(steps=1000)
    assert errors["EVODiff(), 8 calls"] < errors["Euler, 8 calls"]
    code = (FOLDER / "own_model.py").read_text(encoding="utf-8")
    assert len(code[code.index("def main") : code.index("    exact = ")].splitlines()) <= 30


def test_rows_of_a_table_have_its_correlations():
    """The model's own error is most of it: few calls have hardly more than many."""
    found = load("tabular").main(steps=1000)
    assert found[8] < found[50] + 0.1
    assert found[50] < 0.5


def test_an_inverse_problem_explains_what_was_seen(tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra cli")
    error, unaware = load("inverse").main(str(tmp_path / "inverse.png"), seeds=range(2))
    assert error < unaware / 10
    assert (tmp_path / "inverse.png").is_file()
