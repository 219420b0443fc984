"""docs/cheaper.md: its words are the benchmark's, its figures say what it is for, and it can be had of any model."""

import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
import tiny_pipelines
from benchmarks import cheaper
from benchmarks.cheaper import Point, Rule, front, seconds_for
from fewstep.adapters import load_model
from fewstep.cheaper import planning

DOCS = Path(__file__).parents[2] / "docs"
PRECISIONS = ("bfloat16", "float16", cheaper.FEWER, cheaper.FUSED, "int8", "int8-dynamic")
PAGE = (DOCS / "cheaper.md").read_text(encoding="utf-8")


def table(heading):
    """The rows of the first table below it, without the head."""
    lines = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(f"{heading}\n") :], re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def points(guidance):
    rows = table(f"### Guidance {guidance:g}")
    return [
        Point(solver, guidance, int(calls), caching, "" if precision == "float32" else precision, float(s), float(e))
        for solver, calls, caching, precision, s, e, _ in rows
    ]


def test_its_words_are_the_benchmark_s():
    seeds = {"planned": len(cheaper.SEEDS), "seeds": len(cheaper.HELD_OUT), "machine": "x86_64", "tuned": 32}
    for part in (
        "TOP",
        "PRECISION",
        "BY_LEVEL",
        "SLOWER",
        "WINOGRAD",
        "WINOGRAD_NOT",
        "CACHING",
        "PLANS",
        "DEEPCACHE",
        "ALL",
    ):
        text = getattr(cheaper, part)
        assert (text.format(**seeds) if part in ("TOP", "PLANS", "ALL") else text) in PAGE, part


def test_it_has_every_combination():
    for guidance in cheaper.GUIDANCES:
        found = {(each.solver, each.calls, each.precision) for each in points(guidance) if not each.caching}
        whole = {(solver, calls, "") for solver in cheaper.SOLVERS for calls in cheaper.WHOLE}
        small = {
            (solver, calls, name) for solver in cheaper.SOLVERS for calls in cheaper.CHEAP_CALLS for name in PRECISIONS
        }
        tuned = {(cheaper.TUNED, calls, name) for calls in cheaper.TUNED_CALLS for name in ("", *PRECISIONS)}
        assert found == whole | small | tuned
    planned = [(solver, float(guidance), int(calls)) for solver, guidance, calls, *_ in table("### What is planned")]
    assert sorted(planned) == sorted(
        (solver, guidance, calls)
        for solver in cheaper.SOLVERS
        for guidance in cheaper.GUIDANCES
        for calls in cheaper.CALLS
    )


def test_its_figures_are_within_what_was_asked_of_them():
    precision = {name: (float(memory), float(error)) for name, _, memory, error, _ in table("## Precision")}
    assert precision["bfloat16"] <= (0.55, 0.004)
    assert precision["int8"][1] <= 0.003
    assert precision[cheaper.FEWER][1] <= 1e-5
    for row in table("### What is planned"):
        assert (float(row[7]) > 0.75) == (row[0] == "EVODiff")
        assert float(row[7]) <= 1
    ratios: dict = {}
    for solver, guidance, depth, mean, cells in table("### Against every second and every third call"):
        assert depth != "all" or float(mean) <= 0.5
        for calls, ratio in re.findall(r"(\d+)/\d: ([\d.]+)", cells):
            ratios.setdefault((solver, guidance), []).append(float(ratio))
            assert float(ratio) <= 1 or (calls, depth) == ("8", "0")
    assert len(ratios) == len(cheaper.SOLVERS) * len(cheaper.GUIDANCES)
    for found in ratios.values():
        assert len(found) == 2 * len(cheaper.CALLS) * len(cheaper.INTERVALS)
        assert statistics.geometric_mean(found) <= 0.5


def test_the_best_of_all_reaches_the_error_of_ten_calls_in_less():
    """Without guidance, of the seconds of EVODiff in ten calls, and of those in which UniPC-2 has that error."""
    measured = points(1.0)
    base = cheaper._one(measured, cheaper.OURS, cheaper.TARGET)
    best = min(each.seconds for each in measured if each.error <= base.error)
    peer = [each for each in measured if each.solver == cheaper.PEER and not each.caching and not each.precision]
    assert best / base.seconds <= 0.6
    assert best / seconds_for(peer, base.error) <= 0.4


def test_its_picture_shows_its_table():
    """To a pixel, as the table has three figures."""
    drawn = cheaper._picture(points(cheaper.GUIDANCES[0]))
    lies = (DOCS / "figures" / "cheaper.svg").read_text(encoding="utf-8")
    assert re.sub(r"[\d.]+", "0", lies) == re.sub(r"[\d.]+", "0", drawn)
    numbers = ([float(each) for each in re.findall(r"-?\d+\.?\d*", text)] for text in (lies, drawn))
    assert next(numbers) == pytest.approx(next(numbers), abs=1)


def point(seconds, error):
    return Point("EVODiff", 1.0, 1, "", "", seconds, error)


def test_on_the_front_nothing_is_faster_and_better():
    some = [point(1, 0.1), point(2, 0.2), point(2, 0.05), point(3, 0.05), point(4, 0.01)]
    assert [(each.seconds, each.error) for each in front(some)] == [(1, 0.1), (2, 0.05), (4, 0.01)]
    assert seconds_for(some, 0.05) == pytest.approx(2)
    assert seconds_for([point(1, 0.1), point(4, 0.001)], 0.01) == pytest.approx(2)
    assert str(seconds_for(some, 0.001)) == "nan"


def test_the_ratio_to_a_rule_is_of_what_is_added():
    def rule(error, ours):
        return Rule("DDIM", 1.0, 8, 2, 0, 1.0, error, 0.1, ours)

    assert rule(0.3, 0.15).ratio == pytest.approx(0.25)
    assert rule(0.11, 0.05).ratio == pytest.approx(0.1)  # better than whole calls, counted as a hundredth of them
    assert rule(0.05, 0.1).ratio == pytest.approx(1)


@pytest.mark.parametrize(("seconds", "best"), [((0.5, 2.0), 0.3), ((3.0, 2.0), 0.1)])
def test_a_rule_is_held_against_what_is_as_quick_or_else_the_quickest(monkeypatch, seconds, best):
    for name, value in {"SOLVERS": {"EVODiff": fs.EVODiff()}, "CALLS": (4,), "INTERVALS": (2,)}.items():
        monkeypatch.setattr(cheaper, name, value)
    rule = Point("EVODiff", 1.0, 4, "every second", "", 1.0, 0.2)
    bench = SimpleNamespace(
        depths=(0,), guidance=1.0, plain=SimpleNamespace(schedule=fs.EDM()), cached=lambda *arguments: rule
    )
    whole, fewer = (Point("EVODiff", 1.0, n, "", "", s, e) for n, s, e in zip((3, 4), seconds, (0.3, 0.1), strict=True))
    (found,) = cheaper.rules(bench, [whole, fewer])
    assert found.ours == best


@pytest.mark.parametrize("kind", ["sd1", "dit"])
def test_it_can_be_had_of_a_pipeline(kind, tmp_path, monkeypatch):
    """Of Stable Diffusion with caches; a DiT of one block cannot be cut, which is said."""
    for name, value in {
        "SOLVERS": {"EVODiff": fs.EVODiff()}, "GUIDANCES": (1.0,), "CALLS": (4,),
        "WHOLE": range(3, 5), "CHEAP_CALLS": (4,), "TARGET": 4, "INTERVALS": (2,), "SEEDS": range(10, 12),
        "HELD_OUT": range(2), "REFERENCE": 8, "ROUNDS": 1, "SIDE": 8,
        "TUNED_CALLS": (4,) if kind == "dit" else (), "TUNED_SEEDS": range(20, 24),
    }.items():  # fmt: skip
        monkeypatch.setattr(cheaper, name, value)
    monkeypatch.setattr(planning, "REFERENCE", 8)
    for name, value in {"CALLS": (3,), "BROKEN": 2, "RULES": {"TaylorSeerCache": "an interval"}}.items():
        monkeypatch.setattr(cheaper.hooks, name, value)
    monkeypatch.setattr(
        cheaper, "precisions", lambda model: {"float32": model, "bfloat16": cheaper.cheaper.half(model)}
    )
    torch.manual_seed(0)
    getattr(tiny_pipelines, kind)().save_pretrained(tmp_path / "model")
    text, picture = cheaper.page(load_model(tmp_path / "model", batch=2), tmp_path / "results")
    assert text.count("| on the front |") >= 1
    assert "**In one line**: make few calls of EVODiff" in text
    assert ("### What is planned" in text) == (kind == "sd1")
    assert ("| TaylorSeerCache | an interval | 1.00 |" in text) == (kind == "sd1")
    assert picture.startswith("<svg")
    again, _ = cheaper.page(load_model(tmp_path / "model", batch=2), tmp_path / "results")
    assert again == text
