"""What the tests of the command line share."""

import json

import numpy as np
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.files import LOCK
from fewstep.pictures import read

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def stored(folder):
    return np.stack([read(path) for path in sorted(folder.glob("[0-9]*.png"))])


def record(folder):
    return json.loads((folder / "run.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def assert_refused(result, code, *parts):
    """One line that begins with "error", and no traceback."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error")]
    for part in parts:
        assert part in line
    if code == FAILED:
        assert result.stderr.splitlines()[-1] == line
    else:
        assert "--help" in result.stderr
