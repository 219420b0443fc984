"""The bench of image quality: what is measured once is kept, and the page says what was measured."""

import dataclasses
import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fewstep as fs
from benchmarks.problems import ClassGaussians, Empirical, Entry, Problem, gaussian, suite
from benchmarks.problems.base import pooled
from benchmarks.quality import run as quality
from benchmarks.quality.__main__ import app
from benchmarks.quality.page import _best_grids, page
from benchmarks.quality.ratios import (
    NEGLIGIBLE,
    OURS,
    PUBLISHED,
    Cell,
    against,
    apart,
    by_frechet,
    by_rmse,
    geometric_mean,
)
from benchmarks.quality.results import Distance, Measurement, Results
from benchmarks.quality.run import FULL, QUICK, cells, fill, trial
from fewstep.bench.metrics import Moments
from fewstep.sampling import plan
from smooth import smooth_pictures

SHAPE = (3, 8, 8)
PLAN = dataclasses.replace(
    FULL,
    problems=("smooth", "sharp"),
    schedules=("VE", "flow"),
    budgets=(5, 7),
    peers=("dpmpp-2m", "heun", quality.INFORMED),
    grids=2,
)
CALLS = []


@dataclasses.dataclass(frozen=True)
class Watched:
    """A law that counts its calls."""

    law: object

    def denoised(self, x, node):
        CALLS.append(node)
        return self.law.denoised(x, node)

    def solution(self, x, s, t):
        return self.law.solution(x, s, t)


def smooth(name, source):
    mixture = gaussian(SHAPE)
    return Problem(
        name,
        SHAPE,
        0,
        lambda seeds: Watched(ClassGaussians(mixture, (0,) * len(seeds))),
        steps=None,
        samples=4,
        many=80,
        targets={"exact": lambda: mixture.moments().through(lambda flat: pooled(flat.reshape(-1, *SHAPE)))},
    )


def sharp(name, source):
    law = Empirical(torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return Problem(name, SHAPE, 0, lambda seeds: law, steps=32, samples=4, nearest=law.nearest)


@pytest.fixture
def problems(monkeypatch):
    monkeypatch.setattr(
        quality, "PROBLEMS", {name: Entry("exact", make) for name, make in (("smooth", smooth), ("sharp", sharp))}
    )
    monkeypatch.setattr(quality, "FRECHET_RESAMPLES", 3)
    monkeypatch.setattr(quality, "CONTENDS", math.inf)
    monkeypatch.setattr(quality, "CONTENDERS", None)
    monkeypatch.setattr(quality, "QUALIFIES", math.inf)
    CALLS.clear()


def fill_all(folder, again=()):
    fill(None, folder, PLAN, PLAN.problems, lambda text: None, again)
    return cells(folder, PLAN)


def everyone(schedule):
    """The peers on their grids; the informed one has no statistics here."""
    return [
        (name, grid) for name in (PUBLISHED, "dpmpp-2m", "heun") for grid in list(quality.SETTINGS[schedule].grids)[:2]
    ]


def others(schedule):
    """The grids of ours besides its own."""
    return [*list(quality.SETTINGS[schedule].grids)[:2], *quality.OURS_ELSEWHERE]


def ours(schedule):
    return [(OURS, grid) for grid in ("own", *others(schedule))]


def near(factor, values):
    """Those within `factor` of the least of peers, of published EVODiff, and of ours; ours on its own grid always."""
    peers = {key for key in values if key[0] != OURS}
    found = {(OURS, "own")}
    for among in (peers, {key for key in peers if key[0] == PUBLISHED}, set(values) - peers):
        least = max(min(values[key] for key in among), NEGLIGIBLE)
        found |= {key for key in among if values[key] <= factor * least}
    return found


def measurement(solver=OURS, grid="own", nfe=5, errors=(0.1, 0.2), frechet=None, frechets=()):
    distances = {} if frechet is None else {"exact": Distance(frechet, 9, list(frechets))}
    return Measurement("VE", nfe, solver, grid, list(errors), [1.0] * len(errors), [], distances)


def test_each_cell_has_ours_and_every_peer_on_every_grid_and_is_measured_once(problems, tmp_path):
    found = fill_all(tmp_path)
    assert [(c.problem, c.schedule, c.nfe) for c in found] == [
        (name, schedule, nfe) for name in PLAN.problems for schedule in PLAN.schedules for nfe in PLAN.budgets
    ]
    for cell in found:
        assert {(peer.solver, peer.grid) for peer in cell.peers} == set(everyone(cell.schedule))
        assert cell.ours.key[2:] == (OURS, "own")
        assert [each.key[2:] for each in cell.elsewhere] == [(OURS, grid) for grid in others(cell.schedule)]
        assert all(len(each.errors) == 4 for each in (cell.ours, *cell.elsewhere, *cell.peers))
        assert bool(cell.ours.agrees) == (cell.problem == "sharp")
        expected = {"exact": 80} if cell.problem == "smooth" and cell.nfe == 5 else {}
        for each in (cell.ours, *cell.elsewhere, *cell.peers):
            assert {to: distance.samples for to, distance in each.distances.items()} == expected
        assert (cell.floor is not None) == (cell.problem == "smooth")
    # 6 peers and ours on 4 grids on the first samples, in the heat where that has distances, too, and of a budget, in
    # two batches of 64 where 80 samples are drawn: calls are the budget's, odd or even.
    once = 2 * (10 * (2 * 5 + 7) + 10 * (2 * 5 + 7))
    assert len(CALLS) == once
    fill_all(tmp_path)
    assert len(CALLS) == once


def test_a_peer_runs_on_all_samples_where_it_is_near_the_best_of_a_heat_in_either_metric(
    problems, tmp_path, monkeypatch
):
    monkeypatch.setattr(quality, "CONTENDS", 1.2)
    found = fill_all(tmp_path)
    assert any(len(cell.peers) < len(everyone(cell.schedule)) for cell in found)
    for cell in found:
        heats = Results(tmp_path / cell.problem).heats
        ran = {each.key[2:]: each for each in heats if (each.schedule, each.nfe) == (cell.schedule, cell.nfe)}
        assert set(ran) == {*everyone(cell.schedule), *ours(cell.schedule)}
        assert all(len(each.errors) == 1 for each in ran.values())
        expected = set()
        metrics = [lambda measured: measured.rmse]
        if cell.ours.distances:
            metrics.append(lambda measured: measured.distances["exact"].value)
        for metric in metrics:
            expected |= near(1.2, {key: metric(each) for key, each in ran.items()})
            # Heun is of the former field, as published EVODiff is; the best of these run on all samples too.
            former = {key: metric(each) for key, each in ran.items() if key[0] in ("heun", PUBLISHED)}
            expected |= near(1.2, {**former, (OURS, "own"): 1.0})
        found = {each.key[2:] for each in (cell.ours, *cell.elsewhere, *cell.peers, *cell.former)}
        assert found == expected


def test_of_many_near_the_best_of_a_heat_the_best_run_on_all_samples():
    """Of the peers, of published EVODiff and of ours each."""
    values = {(name, str(i)): 1 + i / 100 for name in ("b", "c", OURS, PUBLISHED) for i in range(9)}
    values[OURS, "own"] = 9
    best = {("b", "0"), ("b", "1"), ("c", "0"), (PUBLISHED, "0"), (OURS, "own")}
    own = {(name, str(i)) for name in (OURS, PUBLISHED) for i in range(4)}
    assert quality._near(1.25, values, 4) == best | own


def test_who_is_far_behind_on_the_first_samples_runs_in_no_heat(problems, tmp_path, monkeypatch):
    """The better grids of ours and of published EVODiff do. Others run where one of the usual does well."""
    left_out = set()
    monkeypatch.setattr(quality, "QUALIFIES", 1.2)
    fill_all(tmp_path)
    for problem in PLAN.problems:
        for schedule, nfe in product(PLAN.schedules, PLAN.budgets):
            ran = {each.key[2:]: each for each in Results(tmp_path / problem).heats if each.key[:2] == (schedule, nfe)}
            errors = {key: max(each.rmse, NEGLIGIBLE) for key, each in ran.items()}  # the heat is one sample
            usual = {key: error for key, error in errors.items() if key[0] in quality.USUAL}
            suits = {grid for (_, grid), error in usual.items() if error <= 1.2 * min(usual.values())}
            far = {key for key in everyone(schedule) if key[0] == "heun" and key[1] not in suits}
            assert set(ran) == {*everyone(schedule), *ours(schedule)} - far
            left_out |= far
            former = {key: error for key, error in errors.items() if key[0] in ("heun", PUBLISHED)}
            qualified = near(1.2, errors) | near(1.2, {**former, (OURS, "own"): 1.0})
            if problem == "smooth" and nfe == 5:
                assert {key for key, each in ran.items() if each.distances} == qualified
            whole = {each.key[2:] for each in Results(tmp_path / problem) if each.key[:2] == (schedule, nfe)}
            assert set(ran) & whole <= qualified
    assert left_out


def test_a_measurement_is_that_of_sample_against_the_closed_form(problems, tmp_path):
    (cell,) = [c for c in fill_all(tmp_path) if (c.problem, c.schedule, c.nfe) == ("smooth", "VE", 7)]
    (peer,) = [m for m in cell.peers if (m.solver, m.grid) == ("dpmpp-2m", "ρ = 7")]
    mixture, schedule = gaussian(SHAPE), fs.EDM()
    noise = fs.unit_noise(range(4), SHAPE, dtype=torch.float64)
    images = fs.sample(
        mixture.denoiser(schedule), noise, nfe=7, solver=fs.DPMSolverPP(order=2), schedule=schedule, grid=fs.karras
    )
    exact = mixture.solution(noise * 80.0, schedule.node(80.0), schedule.node(0.002))
    # Seven digits are kept.
    assert peer.errors == pytest.approx((images - exact).square().mean((1, 2, 3)).sqrt().tolist(), rel=1e-6)


def test_an_interrupted_run_loses_one_line_at_most(problems, tmp_path):
    before = fill_all(tmp_path)
    path = tmp_path / "smooth" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    CALLS.clear()
    assert fill_all(tmp_path) == before
    assert len(CALLS) == json.loads(lines[-1])["nfe"]
    assert path.read_bytes().splitlines(keepends=True) == lines


def test_a_cell_that_lacks_a_peer_is_no_cell(problems, tmp_path):
    before = fill_all(tmp_path)
    Results(tmp_path / "smooth").forget("heun")
    assert cells(tmp_path, PLAN) == [cell for cell in before if cell.problem == "sharp"]
    with pytest.raises(ValueError, match="lacks peers of smooth, VE, 5 calls: fill it first"):
        next(trial(fs.DDIM(), None, tmp_path, PLAN, ["smooth"]))


def test_a_solver_is_measured_again_alone(problems, tmp_path):
    before = fill_all(tmp_path)
    CALLS.clear()
    assert fill_all(tmp_path, again=[OURS]) == before
    assert len(CALLS) == 2 * (4 * (2 * 5 + 7) + 4 * (2 * 5 + 7))


def test_a_trial_puts_a_solver_in_our_place_and_stores_nothing(problems, tmp_path):
    found = fill_all(tmp_path)
    stored = (tmp_path / "smooth" / "results.jsonl").read_bytes()
    tried = list(trial(fs.EVODiff(), None, tmp_path, PLAN, ["smooth"], frechet=True))
    assert tried == [cell for cell in found if cell.problem == "smooth"]
    other = list(trial(fs.DDIM(), None, tmp_path, PLAN, ["smooth"]))
    assert all(a.ours.errors != b.ours.errors and a.peers == b.peers for a, b in zip(other, tried, strict=True))
    assert (tmp_path / "smooth" / "results.jsonl").read_bytes() == stored


def test_a_ratio_is_to_the_best_peer_and_its_interval_is_paired():
    ours = measurement(errors=[0.1, 0.3, 0.2], frechet=3.0, frechets=[3.0, 4.0])
    twice = measurement("b", errors=[0.2, 0.6, 0.4], frechet=1.0, frechets=[1.5, 2.0])
    worse = measurement("c", errors=[2.0, 2.0, 2.0], frechet=9.0, frechets=[1.0, 1.0])
    cell = Cell("smooth", "exact", "VE", 5, ours, [], [worse, twice], None)
    by_errors, by_sets = by_rmse(cell), by_frechet(cell, "exact")
    assert (by_errors.peer, by_sets.peer) == (twice, twice)
    # Whatever is resampled, one half: pairs scatter together.
    assert (by_errors.value, *by_errors.interval) == pytest.approx((0.5, 0.5, 0.5), rel=1e-12)
    assert (by_sets.value, *by_sets.interval) == pytest.approx((3, 3, 3), rel=1e-12)
    mean, *_ = geometric_mean([by_errors, by_errors._replace(value=2.0)])
    assert mean == pytest.approx(1.0, rel=1e-12)


def test_a_peer_alone_stays_on_the_grid_of_each_schedule_that_is_best_for_it():
    def cell(schedule, nfe, ours, **peers):
        heat = [measurement(errors=[ours]), *(measurement("heun", grid, errors=[e]) for grid, e in peers.items())]
        return Cell("smooth", "exact", schedule, nfe, measurement(), [], [], None, heat)

    first, second = cell("VE", 5, 1.0, a=2.0, b=8.0), cell("VE", 7, 1.0, a=4.0, b=0.5)
    other = cell("flow", 5, 3.0, a=4.0, b=2.0)
    # a: 1/2 and 1/4; b: 1/8 and 2, the better mean for the peer.
    assert against([first, second, other], "heun", lambda each: each.rmse) == [1 / 8, 2, 3 / 2]
    assert against([first], "heun", lambda each: each.rmse) == [1 / 2]
    assert against([first], "ddim", lambda each: each.rmse) == []
    text = page([first._replace(peers=[measurement(PUBLISHED, "a")])], PLAN, "dev", "make quality")
    assert "| heun | 0.500: 1 of 1 |" in text
    assert "| dpmpp-2m | – |" in text


def test_a_ratio_of_exact_runs_is_one():
    exact = [measurement(name, errors=[0.0, 1e-16]) for name in (OURS, "b")]
    ratio = by_rmse(Cell("ideal", "exact", "VE", 5, exact[0], [], [exact[1]], None))
    assert (ratio.value, *ratio.interval) == (1, 1, 1)


def test_the_page_shows_every_cell_with_its_winner_in_bold_and_says_what_is_met(problems, tmp_path):
    found = fill_all(tmp_path)
    text = page(found, PLAN, "dev", "make quality")
    rows = [line for line in text.splitlines() if line.startswith(("| 5 |", "| 7 |"))]
    assert len(rows) == len(found) + sum(len(cell.ours.distances) for cell in found)
    for row in rows:
        _, _, ours, _, best, *_ = (each.strip() for each in row.split("|"))
        numbers = [float(each.strip("*")) for each in (ours, best)]
        assert ours.startswith("**") != best.startswith("**")
        assert ours.startswith("**") == (numbers[0] < numbers[1]) or numbers[0] == numbers[1]
    mean, *_ = geometric_mean([by_rmse(cell) for cell in found])
    (summary, *_) = (line for line in text.splitlines() if line.startswith("| exact problems"))
    assert f"{mean:.3f} (" in summary
    assert ("≤ 0.90: met" in summary) == (mean <= 0.90)
    assert ("≤ 0.90: **not met**" in summary) == (mean > 0.90)


@pytest.mark.parametrize("loss", [0.8, 1.1])
def test_targets_follow_from_the_numbers(loss):
    ours = measurement(errors=[loss, loss])
    found = [
        Cell("guided-4", "guided", "VE", 5, ours, [], [measurement(PUBLISHED, "log-SNR", errors=[1.0, 1.0])], None)
    ]
    text = page(found, PLAN, "dev", "make quality")
    mean, worst = (f"≤ {target}: {'met' if loss <= float(target) else '**not met**'}" for target in ("0.95", "1.15"))
    assert f"| trained model, guided | {loss:.3f} ({loss:.3f}–{loss:.3f}) | {mean} |" in text
    assert f"| {worst} | {int(loss < 1)} of 1 |" in text


def test_the_page_tells_what_the_grid_and_the_converged_solution_would_gain():
    peer = measurement(PUBLISHED, "log-SNR", errors=[1.0, 1.0], frechet=1.0, frechets=[1.0])
    ours = measurement(errors=[2.0, 2.0], frechet=3.0, frechets=[3.0])
    elsewhere = [
        measurement(grid=grid, errors=[error], frechet=frechet, frechets=[frechet])
        for grid, error, frechet in (("ρ = 7", 0.5, 2.0), ("log-SNR", 0.75, 1.5))
    ]
    floor = measurement("converged", frechet=0.25, frechets=[0.25])
    cell = Cell("ideal", "exact", "VE", 5, ours, elsewhere, [peer], floor)
    text = page([cell], PLAN, "dev", "make quality")
    lines = [line for line in text.splitlines() if line.startswith("| exact problems |")]
    for line, value in zip(lines, (2.0, 3.0, 0.5, 1.5, 0.25), strict=True):
        assert line.startswith(f"| exact problems | {value:.3f} (")
    assert "It is above 1 in 0 of the\n1 cells where EVODiff()'s is above 1.05." in text
    beyond = cell._replace(nfe=6, floor=measurement("converged", frechet=2.0, frechets=[2.0]))
    both = page([cell, beyond, cell._replace(nfe=8, ours=peer)], PLAN, "dev", "make quality")
    assert "above 1 in 1 of the\n2 cells" in both
    alone = page([cell._replace(elsewhere=[], floor=None)], PLAN, "dev", "make quality")
    assert sum(line.startswith("| exact problems |") for line in alone.splitlines()) == 2


def test_a_networks_distances_to_images_and_to_its_own_are_told_apart():
    def of(solver, grid, images, own):
        distances = {"images": Distance(images, 9, [images]), "network": Distance(own, 9, [own])}
        return dataclasses.replace(measurement(solver, grid, errors=[1.0, 1.0]), distances=distances)

    peers = [of(PUBLISHED, "log-SNR", 4.0, 8.0), of("heun", "log-SNR", 5.0, 4.0)]
    cell = Cell("model", "unguided", "VE", 5, of(OURS, "own", 6.0, 1.0), [], peers, of("converged", "own", 2.0, 0.5))
    text = page([cell], PLAN, "dev", "make quality")
    to_images, to_own, *floors = (line for line in text.splitlines() if line.startswith("| trained model, to "))
    assert to_images.startswith("| trained model, to training images | 1.500 (")
    assert to_own.startswith("| trained model, to its own distribution | 0.250 (")
    assert ["| 0.500 (" in floors[0], "| 0.125 (" in floors[1]] == [True, True]
    rows = [line for line in text.splitlines() if line.startswith("| 5 |")]
    assert rows[1] == f"| 5 | 6.000 | 4.000 | **4.000** | {PUBLISHED}, log-SNR | 1.500 (1.500–1.500) | 2.000 |"
    assert rows[2] == "| 5 | **1.000** | 8.000 | 4.000 | heun, log-SNR | 0.250 (0.250–0.250) | 0.500 |"


def test_samples_gone_astray_are_counted_and_left_out_of_the_ratio():
    ours = measurement(errors=[0.02, 0.02, 0.5, 0.02])
    peer = measurement(PUBLISHED, "log-SNR", errors=[0.04, 0.04, 0.04, 0.3])
    cell = Cell("ideal", "exact", "VE", 5, ours, [], [peer], None)
    assert apart(by_rmse(cell), 0.1) == (1, 1, pytest.approx(0.5, rel=1e-12))
    assert apart(by_rmse(cell), 0.03) == (1, 4, None)
    text = page([cell, cell._replace(nfe=7), cell._replace(group="guided")], PLAN, "dev", "make quality")
    (row,) = (line for line in text.splitlines() if line.startswith("| ideal, VE |"))
    assert row == "| ideal, VE | 1 / 1: 0.50 | 1 / 1: 0.50 |"


def test_the_page_names_what_is_above_the_target_and_what_was_not_measured(problems, tmp_path):
    found = fill_all(tmp_path)
    whole = page(found, PLAN, "dev", "make quality")
    assert "Not measured" not in whole
    assert f"Above 1.15 ({sum(by_rmse(cell).value > 1.15 for cell in found)} of {len(found)})." in whole
    some = [cell for cell in found if cell.schedule == "VE" and (cell.problem, cell.nfe) != ("sharp", 7)]
    assert "**Not measured yet:** smooth, flow; sharp, VE at 7 calls; sharp, flow." in page(some, PLAN, "dev", "")
    (five, *_) = found
    six = five._replace(nfe=6, ours=dataclasses.replace(five.ours, nfe=6, distances={}))
    assert "Fréchet distances of smooth, VE at 6 calls." in page([*found, six], PLAN, "dev", "")


def test_nothing_measured_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="nothing was measured"):
        page(cells(tmp_path, PLAN), PLAN, "dev", "make quality")


def test_results_survive_being_read_again(tmp_path):
    results = Results(tmp_path)
    results.add(measurement(errors=[math.pi, 1e-30], frechet=1.5, frechets=[1.25]))
    results.add(measurement("b"))
    again = Results(tmp_path)
    assert list(again) == list(results)
    made = again.solution("VE", lambda: torch.ones(2, 3))
    assert torch.equal(made, Results(tmp_path).solution("VE", None))
    moments = again.moments("exact", lambda: Moments.of(torch.tensor([[0.0, 1], [2, 5]])))
    kept = Results(tmp_path).moments("exact", None)
    assert torch.equal(kept.mean, moments.mean)
    assert torch.equal(kept.covariance, moments.covariance)
    again.forget("b")
    assert [each.solver for each in Results(tmp_path)] == [OURS]


def test_distances_of_fewer_samples_are_measured_again(problems, tmp_path, monkeypatch):
    before = fill_all(tmp_path)
    monkeypatch.setattr(
        quality,
        "PROBLEMS",
        {"smooth": Entry("exact", lambda *told: dataclasses.replace(smooth(*told), many=160))},
    )
    CALLS.clear()
    fill(None, tmp_path, PLAN, ["smooth"], lambda text: None)
    # With 5 calls 6 peers and ours on 4 grids run in a heat of 40 samples, and then in 3 batches of 64 at most.
    assert len(CALLS) == 2 * 5 * (10 + 3 * 10)
    monkeypatch.undo()
    after = Results(tmp_path / "smooth")
    ours = [after.get(cell.ours.key) for cell in before if cell.problem == "smooth"]
    assert [sum(each.samples for each in found.distances.values()) for found in ours] == [160, 0, 160, 0]


def test_measurements_of_two_networks_do_not_mix(problems, tmp_path, monkeypatch):
    def of(network):
        def make(*told):
            return dataclasses.replace(smooth(*told), fingerprint=network)

        monkeypatch.setattr(quality, "PROBLEMS", {"smooth": Entry("exact", make)})

    def filled():
        fill(None, tmp_path, PLAN, ["smooth"], lambda text: None, again=[OURS])
        return (tmp_path / "smooth" / "results.jsonl").read_bytes()

    of("one")
    before = filled()
    of("another")
    with pytest.raises(ValueError, match="holds measurements of another network: remove it"):
        filled()
    with pytest.raises(ValueError, match="holds measurements of another network: remove it"):
        list(trial(fs.EVODiff(), None, tmp_path, PLAN, ["smooth"]))
    of("one")
    assert sorted(filled().splitlines()) == sorted(before.splitlines())


def test_solutions_of_two_networks_do_not_mix(tmp_path):
    """Though the measurements of the other, with its fingerprint, were put in the place of the one's."""
    Results(tmp_path, "one").solution("VE", lambda: torch.zeros(2))
    (tmp_path / "fingerprint.txt").write_text("another")
    assert torch.equal(Results(tmp_path, "another").solution("VE", lambda: torch.ones(2)), torch.ones(2))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    images, labels = smooth_pictures()
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    return path


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_writes_the_page_of_the_problems_that_it_is_given(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "IDEAL_IMAGES", 50)
    told = ("--quick", "--data", pictures, "--results", tmp_path / "results", "--out", tmp_path / "page.md")
    result = run(*told, "--problem", "ideal")
    assert result.exit_code == 0, result.output
    first = (tmp_path / "page.md").read_text()
    assert "### ideal, VE" in first
    assert "### mixture" not in first
    measured = tmp_path / "results" / "report-quick" / "ideal" / "results.jsonl"
    # Published EVODiff and the peers on two grids each, of which one may suit nobody else, and ours on its own.
    cells, everywhere, peers = len(QUICK.schedules) * len(QUICK.budgets), len(quality.ANYWHERE) - 1, len(QUICK.peers)
    runs = len(list(Results(measured.parent).heats))
    assert cells * (2 + everywhere + peers) <= runs <= cells * (1 + 2 * (1 + peers))
    assert run(*told, "--problem", "ideal", "--again", "evodiff").exit_code == 0
    assert (tmp_path / "page.md").read_text() == first


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [("--split", "test", "dev, report"), ("--problem", "local", "mixture, ideal"), ("--again", "euler", "evodiff")],
)
def test_a_wrong_choice_is_wrong_usage(pictures, tmp_path, option, value, choices):
    result = run("--quick", "--data", pictures, "--results", tmp_path / "results", option, value)
    assert result.exit_code == 2
    assert choices in " ".join(result.output.split())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", quality.SETTINGS)
def test_every_peer_runs_on_every_grid_with_every_budget(name):
    everyone = [*quality.candidates(name, FULL, None), *quality.candidates(name, QUICK, None)]
    assert {each.name for each in everyone} == {OURS, PUBLISHED, *FULL.peers, *QUICK.peers} - {
        quality.INFORMED,
        f"{quality.INFORMED}{quality.HIGHER_END}",
    }
    for _, solver, grid_name, grid in everyone:
        for nfe in FULL.budgets if grid_name != "DMN" else ():  # which is searched for, some seconds for each count
            assert len(plan(quality.SETTINGS[name].schedule, solver, nfe=nfe, grid=grid)[1]) == nfe


def test_a_last_step_of_higher_order_is_a_peer_on_the_usual_grids():
    found = {each.name: each.solver for each in quality.candidates("VE", FULL, None)}
    assert found["unipc-3-higher-final"] == fs.UniPC(order=3, final_order=2)
    assert found["unipc-3"] == fs.UniPC(order=3)
    grids = [each.grid_name for each in quality.candidates("VE", FULL, None) if each.name == "deis-3-higher-final"]
    assert grids == ["log-SNR", "ρ = 7", "ρ = 3"]


def test_grids_are_compared_on_as_many_samples():
    """One that ran on the first four alone, or that did not run, is as far behind as is known of it."""
    ran = [measurement("unipc-3", "a", errors=[0.1]), measurement("unipc-3", "c", errors=[0.4])]
    ran += [measurement("ipndm-4", "c", errors=[0.3]), measurement("heun", "a", errors=[0.5] * 4 + [1.0] * 4)]
    ran += [measurement("heun", "b", errors=[1.0] * 4)]
    whole = math.sqrt((0.25 + 1) / 2)
    assert quality.on_grids(ran, "heun") == pytest.approx({"a": whole, "b": 2 * whole, "c": 3 * whole})
    assert quality.on_grids(ran, "ddim") == {}


def test_the_best_grid_of_a_solver_is_that_of_the_least_error_in_its_heats():
    def cell(nfe, **errors):
        heat = [measurement("heun", grid, nfe, errors=[e]) for grid, e in errors.items()]
        return Cell("model", "unguided", "VE", nfe, measurement(nfe=nfe), [], heat, None, heat)

    text = _best_grids([cell(5, a=1.0, b=8.0), cell(8, a=1.0, b=0.1), cell(10, a=0.2, b=0.1)], ("heun", "ddim"))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    # With few calls the geometric means are 1 and 0.89, with more 0.2 and 0.1.
    assert rows[0] == ["solver", "VE, few", "VE, more"]
    assert rows[2:] == [["heun", "b", "b"], ["ddim", "–", "–"]]
    assert _best_grids([cell(5, a=1.0, b=8.0)], ("heun",)).splitlines()[-1] == "| heun | a | – |"
