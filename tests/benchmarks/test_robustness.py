"""What counts losses, on a small model and few disturbances; and that it would tell."""

import os
import signal

import pytest

from benchmarks.robustness import FIRST, Check, images
from tiny import save_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robustness")
    return Check(folder, str(save_model(folder / "tiny")), 60)


def test_nothing_is_lost(check):
    check.signals(signal.SIGKILL, 2)
    check.signals(signal.SIGTERM, 1)
    check.pairs(1)
    assert check.faults == []


def test_a_lost_or_foreign_image_is_told(check, capsys):
    found = images(check.folder / "0")
    check._expect_own(FIRST, {**found, "000003.png": b""}, "here")
    assert check.faults.pop() == "here: ['000003.png'] are not what this run draws"
    (check.folder / "0" / "run.json").write_text('{"status": "done", "images": 60, "settings": {"solver": "ddim"}}')
    check._expect_done(FIRST, check.folder / "0", "here")
    assert check.faults
