"""The flow table: what is measured is a run of the library, and the command works on a few images."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fewstep as fs
from benchmarks import flow
from benchmarks.problems import ClassGaussians, Problem, gaussian, suite
from fewstep.grid import simple
from smooth import smooth_pictures


def small():
    mixture = gaussian((3, 8, 8))
    return Problem("small", (3, 8, 8), 7, lambda seeds: ClassGaussians(mixture, (0,) * len(seeds)), steps=None)


def test_an_error_is_that_of_a_run(monkeypatch):
    monkeypatch.setattr(flow, "CALLS", (4, 20))
    problem, schedule = small(), fs.Flow(3.0)
    found = flow.errors(problem, 3.0, 2, 80)
    assert list(found) == list(flow.SAMPLERS)
    seeds = range(7, 9)
    images = fs.sample(
        problem.denoiser(schedule, seeds),
        problem.noise(seeds),
        nfe=4,
        solver=fs.RES(clock="sigma"),
        schedule=schedule,
        grid=simple,
    )
    expected = (images - problem.solution(schedule, seeds)).square().mean().sqrt().item()
    assert found["res_multistep"][0][0] == pytest.approx(expected, rel=1e-9)
    assert [pair[0] for pair in found["er_sde"]] == [None, None]
    for row in found.values():
        assert all(distance > 0 for _, distance in row)
        few, many = (pair[0] for pair in row)
        assert few is None or many < few


def test_the_command_writes_a_table_for_each_problem_and_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "CALLS", (4, 6))
    monkeypatch.setattr(suite, "STATISTICS_IMAGES", 50)
    images, labels = smooth_pictures()
    data, out = tmp_path / "pictures.npz", tmp_path / "flow.md"
    np.savez(data, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    app = flow.typer.Typer()
    app.command()(flow.main)
    options = ["--data", data, "--problem", "mixture", "--images", 2, "--many", 70, "--out", out]
    result = CliRunner().invoke(app, [str(each) for each in options])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    for shift in flow.SHIFTS:
        assert f"## mixture, shift {shift:g}" in text
    assert text.count("| uni_pc |") == 2 * len(flow.SHIFTS)
    assert "nan" not in text


def test_guidance_1_and_4_are_of_the_packaged_network():
    assert set(flow.MADE) == {"mixture", "guided-1", "guided-4"}
    assert flow.SHIFTS == (1.0, 3.0, 5.0, 7.0)
    assert torch.tensor(flow.CALLS).diff().min() > 0
