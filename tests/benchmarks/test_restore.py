"""docs/restore-exact.md and docs/restore-cost.md: what they count is so, and what they say is in their tables."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from benchmarks.restore import cost, exact
from fewstep import EDM
from gaussians import normal

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("method", "gradients"), [(exact.IDEAL, 0), (exact.SPECTRAL, 0), ("PiGDM", 3), ("DPS", 3), ("RED-Diff", 0)]
)
def test_runs_have_the_calls_and_gradients_that_are_counted(method, gradients):
    run = exact.measured(exact.gaussians()[2], method, 3, count=4)
    assert (run.cost.calls, run.cost.gradients) == (3, gradients)


def test_the_laws_are_those_of_their_samples():
    """Within five standard errors of a mean, and of a weight."""
    for problem in (exact.hazy()[0], exact.mixtures()[1]):
        samples = exact.drawn(problem.law, 2000, seed=1)
        assert exact.found(samples, problem.law).bias < 5 / 2000**0.5
        first = exact._first(samples, problem.law)
        assert abs(first - float(problem.law.weights[0])) < 5 * 0.5 / 2000**0.5


def test_what_the_page_says_is_in_its_tables():
    page = (DOCS / "restore-exact.md").read_text(encoding="utf-8")
    assert page.startswith(exact.PAGE.split("{")[0])
    of_gaussians = page.split("## Gaussian images")[1].split("## Mixtures")[0]
    rows = re.findall(rf"\| {exact.MOMENT} \| (.*) \|", of_gaussians)
    assert len(rows) == 6
    for row in rows:
        cells = [[float(number) for number in cell.split(" / ")] for cell in row.split(" | ")]
        six, ten = cells[1:3]
        assert ten[0] < 3 / exact.SAMPLES**0.5
        assert 0.95 <= ten[1] <= 1.05
        assert 0.8 <= six[1] <= 1.25
    assert f"- **{exact.MOMENT}** is unbiased." in page
    assert "- **DPS** is biased." in page


def test_a_preconditioner_of_the_exact_spectrum_takes_one_iteration():
    """The measurement of docs/restore-cost.md, where what it finds is known."""
    problem = exact.gaussians()[4]
    plain, better = cost.iterations(
        problem.denoisers[0], problem.operator, problem.y, problem.noise, exact.spectrum(), normal((2, *exact.SHAPE), 1)
    )
    assert [solve.node for solve in plain] == [solve.node for solve in better]
    assert all((solve.iterations == 1).all() for solve in better)
    assert torch.stack([solve.iterations for solve in plain]).double().mean() > 5


def test_what_is_compared_makes_as_many_calls():
    called = []

    def denoiser(x, t):
        called.append(len(x))
        return x / 2

    for run in cost.runs(denoiser, EDM(), normal((3, *cost.SMALL), seed=1), 2).values():
        called.clear()
        run(3)
        assert called == [2, 2, 2]


def test_what_the_page_of_costs_says_is_in_its_tables():
    page = (DOCS / "restore-cost.md").read_text(encoding="utf-8")
    assert page.startswith(cost.PAGE.split("{")[0])
    for batch in cost.BATCHES:
        costs = {}
        for row in page.split(f"### Batch {batch}\n\n")[1].split("\n\n")[0].splitlines()[2:]:
            name, _, *numbers = row.strip("| ").split(" | ")
            seconds, of_seconds, most, of_most = map(float, numbers)
            kind = max((kind for kind in [*cost.KINDS, cost.PLAIN] if name.startswith(kind)), key=len)
            costs[kind, name.removeprefix(kind).lstrip(", ")] = cost.Cost(seconds, most, of_seconds, of_most)
        assert len(costs) == 1 + 3 * (len(cost.KINDS) - 1) + 1
        assert textwrap.fill(cost._verdict(batch, costs), 120, subsequent_indent="  ") in page
