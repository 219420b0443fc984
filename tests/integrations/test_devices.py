"""A transformer that two processes share, as diffusers does it over devices, under our scheduler."""

import subprocess
import sys
from pathlib import Path

import pytest

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
SCRIPT = Path(__file__).with_name("two_devices.py")


@pytest.mark.skipif(not hasattr(diffusers, "ContextParallelConfig"), reason="this diffusers has no context parallelism")
def test_two_processes_with_half_the_tokens_each_make_what_one_makes(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        share, error = map(float, said.split()[-2:])
        assert share == 0.5
        assert error <= 1e-5  # a few hundred roundings of float32
