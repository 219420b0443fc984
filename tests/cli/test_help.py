"""Lists, help, and what is missing."""

import json
import subprocess
import sys

import pytest

import fewstep
from cli.commands import DONE, FAILED, USAGE, names, run
from fewstep.cli.options import SOME_GRIDS, SOME_SOLVERS
from fewstep.table import FAMILIES, GRID_FAMILIES, GRIDS, SOLVERS, call


def test_models_are_listed(model):
    told = run("models")
    assert told.exit_code == DONE
    assert "cifar32" in told.stdout
    assert "FOLDER" in told.stdout
    assert list(json.loads(run("models", "--json").stdout)) == ["cifar32"]


def test_solvers_are_listed_by_family():
    told = run("solvers")
    assert told.exit_code == DONE
    rows = {row["name"]: row for row in json.loads(run("solvers", "--json").stdout)}
    assert rows.keys() == SOLVERS.keys()
    assert FAMILIES.keys() == {type(entry.solver) for entry in SOLVERS.values()}
    for name, entry in SOLVERS.items():
        line = next(line for line in told.stdout.splitlines() if line[2:].startswith(f"{name} "))
        assert line.startswith("*") == (name in SOME_SOLVERS)
        assert line.endswith(f" {call(entry.solver)}")
        assert rows[name]["calls"] == entry.calls
        assert f"\n{rows[name]['family']}: {rows[name]['use']}\n" in told.stdout


def test_grids_are_listed_by_family():
    told = run("grids")
    assert told.exit_code == DONE
    rows = {row["name"]: row for row in json.loads(run("grids", "--json").stdout)}
    assert rows.keys() == GRIDS.keys()
    for family, members in GRID_FAMILIES.items():
        part = told.stdout.split(f"\n{family}:\n")[1].split("\n\n")[0]
        for name, grid in members.items():
            assert rows[name]["python"] == repr(grid)
            assert f" {name} " in part
            assert rows[name]["use"] in part


@pytest.mark.parametrize(
    ("some", "known", "command"), [(SOME_SOLVERS, SOLVERS, "solvers"), (SOME_GRIDS, GRIDS, "grids")]
)
def test_the_help_names_some_that_there_are(some, known, command):
    assert set(some) < set(known)
    for asking in ("sample", "compare"):
        words = " ".join(run(asking, "--help").stdout.split()).replace("- ", "-")
        assert f"{', '.join(some)}; `fewstep {command}` lists all" in words


def test_version_and_help():
    assert run("--version").stdout == fewstep.__version__ + "\n"
    told = run("--help")
    assert told.exit_code == DONE
    for command in ("sample", "compare", "models", "solvers", "grids", "estimate"):
        assert command in told.stdout
        assert run(command, "--help").exit_code == DONE


def test_no_command_shows_the_help_and_is_wrong_usage():
    result = run()
    assert result.exit_code == USAGE
    assert "Commands" in result.output


@pytest.mark.parametrize(
    ("missing", "args", "extra"),
    [
        ("typer", ["--help"], "fewstep[cli]"),
        ("rich", ["--help"], "fewstep[cli]"),
        ("PIL", ["sample"], "fewstep[cli]"),
        ("safetensors", ["sample"], "fewstep[cli]"),
        ("diffusers", ["sample", "--model", "a/pipeline"], "fewstep[pipelines]"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, missing, args, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; from fewstep.cli import app; app({args!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == FAILED
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install '{extra}'")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["sample", "--help"], ["estimate", "ems", "--help"], ["models"]]
)
def test_help_needs_no_torch(args):
    code = f"import sys; sys.modules.update(torch=None, numpy=None); from fewstep.cli import app; app({args!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_fewstep_needs_no_extra():
    heavy = ("diffusers", "safetensors", "typer", "rich", "PIL", "scipy")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); import fewstep, fewstep.adapters"
    subprocess.run([sys.executable, "-c", code], check=True)
