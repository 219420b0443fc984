"""The flow table: what is measured is a run of the library, and the command works on a few images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fewstep as fs
from benchmarks import flow
from benchmarks.problems import ClassGaussians, Problem, gaussian, suite
from fewstep.grid import simple
from smooth import smooth_pictures

PAGE = Path(__file__).parents[2] / "docs" / "flow.md"


def small():
    mixture = gaussian((3, 8, 8))
    return Problem("small", (3, 8, 8), 7, lambda seeds: ClassGaussians(mixture, (0,) * len(seeds)), steps=None)


def test_an_error_is_that_of_a_run_and_more_images_add_to_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "CALLS", (4, 20))
    problem, schedule = small(), fs.Flow(3.0)
    flow.fill(problem, tmp_path, 4, 80, print)
    few = flow.errors(problem, tmp_path, 4)
    monkeypatch.setattr(flow, "SHIFTS", (3.0,))
    flow.fill(problem, tmp_path, 6, 80, print)
    found = flow.errors(problem, tmp_path, 6)
    assert {name for _, name in found} == {name for name, each in flow.SAMPLERS.items() if not each.draws}
    seeds = range(7, 13)
    images = fs.sample(
        problem.denoiser(schedule, seeds),
        problem.noise(seeds),
        nfe=4,
        solver=fs.RES(clock="sigma"),
        schedule=schedule,
        grid=simple,
    )
    expected = (images - problem.solution(schedule, seeds)).square().mean((1, 2, 3)).sqrt()
    row = found[3.0, "res_multistep"]
    assert row[0].tolist() == pytest.approx(expected.tolist(), rel=1e-6)  # records keep seven digits
    for key, row in found.items():
        assert torch.equal(row[:, :4], few[key])
        assert row[1].mean() < row[0].mean()


def test_standard_errors_are_those_of_the_draw():
    draws = torch.Generator().manual_seed(0)
    ours, theirs = (scale * torch.rand(3, 200, 40, generator=draws, dtype=torch.float64) for scale in (1.0, 2.0))
    roots = torch.tensor([flow._root(each) for each in ours[0]])
    ratios = torch.tensor([flow._mean_ratio(theirs[:, i], ours[:, i]) for i in range(200)])
    for value, error in (roots.T, ratios.T):
        assert error.mean().item() == pytest.approx(
            value.std().item(), rel=0.1
        )  # of 200 draws: 5 %, and a bias of 1/40
    assert ratios[:, 0].mean().item() == pytest.approx(2, rel=0.02)


def test_the_command_writes_a_table_for_each_problem_and_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "CALLS", (4, 6))
    monkeypatch.setattr(flow, "SHIFTS", (1.0, 3.0))
    monkeypatch.setattr(suite, "STATISTICS_IMAGES", 50)
    images, labels = smooth_pictures()
    data, out = tmp_path / "pictures.npz", tmp_path / "flow.md"
    np.savez(data, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    app = flow.typer.Typer()
    app.command()(flow.main)
    options = ["--data", data, "--problem", "mixture", "--images", 2, "--many", 70, "--out", out]
    result = CliRunner().invoke(app, [str(each) for each in [*options, "--results", tmp_path / "records"]])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    for shift in flow.SHIFTS:
        assert f"| shift {shift:g} | 4 | 6 |" in text
    assert text.count("| uni_pc |") == len(flow.SHIFTS) + 2
    assert text.count("| er_sde |") == 1
    assert "nan" not in text


def test_guidance_1_and_4_are_of_the_packaged_network():
    assert set(flow.MADE) == {"mixture", "guided-1", "guided-4"}
    assert flow.SHIFTS == (1.0, 3.0, 5.0, 7.0)
    assert torch.tensor(flow.CALLS).diff().min() > 0


def test_the_page_is_that_of_the_records():
    tag = (flow.RECORDS / "guided-1" / "10000-10003" / "fingerprint.txt").read_text().strip()
    problems = [
        Problem("mixture", (), 10_000, list, 1, targets={"exact": pytest.fail}),
        *(Problem(name, (), 10_000, list, 1, fingerprint=tag) for name in ("guided-1", "guided-4")),
    ]
    assert PAGE.read_text(encoding="utf-8") == flow.page(problems, flow.RECORDS, flow.IMAGES, flow.MANY)
