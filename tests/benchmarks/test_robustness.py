"""What counts losses, on a small model and one disturbance; and that it would tell."""

import os
import signal

import pytest

from benchmarks.robustness import FIRST, Check
from tiny import save_model


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_killed_run_loses_nothing_and_a_foreign_image_would_be_told(tmp_path):
    check = Check(tmp_path, str(save_model(tmp_path / "tiny")), 20)
    check.signals(signal.SIGKILL, 1)
    assert check.faults == []
    check._expect_own(FIRST, {**check.alone(FIRST), "000003.png": check.alone(FIRST)["000004.png"]}, "here")
    assert check.faults == ["here: ['000003.png'] are not what this run draws"]
