"""The pages of tune and analyze: their numbers are those of the library, and the pages have every row."""

import math
from pathlib import Path

import pytest
import torch

import fewstep as fs
from benchmarks import entropy, tune
from benchmarks.stress.problems import problems
from fewstep.bench.metrics import rmse

DOCS = Path(__file__).parents[2] / "docs"


class Gaussians:
    """As an EDM model: N(0, 1/4) in every pixel, whatever the class and the guidance."""

    schedule, shape, classes = fs.EDM(), (3, 4, 4), ("a", "b")

    def __call__(self, x, t):
        return x * 0.25 / (0.25 + t**2)

    def conditioned(self, labels, guidance):
        assert set(labels) <= {0, 1}
        return self


def test_a_cell_is_a_run_of_the_library(tmp_path, monkeypatch):
    """Errors over the best peer's, so that tuned over default is that of the runs."""
    monkeypatch.setattr(tune, "CALLS", (5,))
    name = "posterior, 3"
    problem = problems("exact", "report", tmp_path)[name]
    schedule = problem.schedules["flow-1"]
    (gain,) = tune._gains("some", problem, "flow-1", schedule, tmp_path, tmp_path, tune.Effort(8, 1500, 4))
    tuned = fs.Tuned.load(tmp_path / "posterior__3-flow_1.json", schedule=schedule)
    denoiser = fs.as_denoiser(lambda x, t: problem.law.denoised(x, schedule.node(t)), "sample", schedule)

    def run(calls, solver):
        return fs.sample(denoiser, problem.noise, nfe=calls, solver=solver)

    exact = run(400, fs.EVODiff())
    ratio = rmse(run(5, tuned), exact) / rmse(run(5, fs.EVODiff()), exact)
    assert gain.tuned / gain.default == pytest.approx(ratio, rel=0.01)
    assert (gain.calls, gain.peer) == (5, 1.0)


def test_tuned_samples_are_not_those_of_the_report():
    seeds = range(tune.FIRST_SEED, tune.FIRST_SEED + max(tune.USUAL.seeds, tune.LARGE.seeds))
    for problem in problems("exact", "report", Path()).values():
        assert not set(seeds) & set(range(problem.seed, problem.seed + problem.samples))


def test_means_are_geometric():
    gains = [tune.Gain("a", 5, 4.0, 1.0, 2.0), tune.Gain("a", 8, 1.0, 1.0, 2.0), tune.Gain("b", 8, 1.0, 8.0, 1.0)]
    rows = [line.split(" | ") for line in tune._means(gains).splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["all", "a", "b"]
    assert rows[1][1:] == ["2", "0.50", f"{math.sqrt(1):.2f}", "0.50", "0.50 |"]


def test_the_page_of_entropy_is_of_the_analysis():
    found = entropy.measured(Gaussians(), 4.0)
    n = torch.tensor(-found.lams).exp()
    exact = 0.25 * n**2 / (0.25 + n**2)
    assert torch.tensor(found.variance).div(exact).sub(1).abs().max() < 0.35  # 16 samples of 48 elements
    made = entropy.page(Gaussians(), [1.0, 4.0])
    assert made.count("•") == 2 * 9  # of 8 steps, for each of two
    assert "## No guidance" in made
    assert "## Guidance 4" in made
    assert made.count("| RE, high |") == 2
    assert made.count("RMSE at the end: evodiff ") == 2


def test_the_pages_have_every_row():
    page = (DOCS / "tune.md").read_text(encoding="utf-8").splitlines()
    for group in tune.PROBLEMS:
        assert sum(line.startswith(f"| {group} |") for line in page) == 2  # of few seeds, and of many
    assert sum(line.startswith("| VE, ") for line in page) > 0
    assert "## Guidance 4" in (DOCS / "entropy.md").read_text(encoding="utf-8").splitlines()
