"""What a bench found, as it is read: the best is marked, published figures stand beside ours, advice can be pasted."""

import csv
import math
import re

import pytest
import torch

from fewstep import EDM, Flow, grid, sample
from fewstep.bench.draw import Worker, draw
from fewstep.bench.measure import Judge, measure
from fewstep.bench.plan import Plan
from fewstep.bench.recommend import IN_COMFY, best, lines
from fewstep.bench.report import as_markdown, columns, write_report
from fewstep.bench.svg import chart
from fewstep.integrations import comfy
from fewstep.integrations.comfy import NODE_DISPLAY_NAME_MAPPINGS as NODES
from fewstep.schedule import Discrete
from fewstep.table import GRIDS, SOLVERS, call


def row(solver="ddim", calls=5, **figures):
    return {
        "model": "m", "solver": solver, "grid": "own", "guidance": 1.0, "calls": calls, "milliseconds": 10.0 * calls,
        "memory": 2**20, "measured by": {"scores": {}, "frechet is": None},
        "drawn under": {"python": call(SOLVERS[solver].solver), "nodes": "own"}, **figures,
    }  # fmt: skip


def test_the_best_of_each_budget_is_bold():
    text = as_markdown([row(rmse=0.2, gain=1.5), row("heun", rmse=0.1, gain=0.6), row("heun", 8, rmse=0.3, gain=1.0)])
    assert "| ddim | 5 | 0.2000 | 1.500 |" in text
    assert "| heun | 5 | **0.1000** | **0.600** |" in text  # the gain nearer to 1
    assert "| heun | 8 | 0.3000 | 1.000 |" in text  # alone, nothing is best


def test_the_distance_is_called_fid_if_it_is():
    assert columns([row(frechet=1.0, **{"measured by": {"scores": {}, "frechet is": "FID"}})])["frechet"].title == "FID"
    assert columns([row(frechet=1.0)])["frechet"].title == "Fréchet"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    plan = Plan.of(
        {
            "models": ["fakes:gaussian"], "solvers": ["ddim", "heun"], "calls": [2, 3], "n": 8, "batch": 4,
            "converged": 4, "metrics": ["rmse"], "scores": {"brightness": "fakes:brightness"},
            "published": {"brightness": {"ddim": {"3": 0.5}, "others": {"7": 0.25}}},
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bench")
    draw(plan, folder, Worker())
    rows = measure(plan, folder, Judge(plan, "cpu"))
    write_report(plan, rows, folder, folder / "..", "A title & more")
    return plan, rows, (folder / "..").resolve()


def test_published_figures_stand_beside_ours(bench):
    _, rows, out = bench
    text = (out / "results.md").read_text()
    assert "| brightness | published brightness |" in text
    assert re.search(r"\| ddim \| 3 \| .* \| 0\.5 \|\n", text)
    assert "Published besides (brightness): others, 0.25 at 7 calls." in text
    # Pixels of mean 0.3 in [-1, 1], 8 images of 192 pixels of deviation 0.5 at the most.
    assert rows[2]["brightness"] == pytest.approx(127.5 * 1.3, abs=4 * 127.5 * 0.5 / (8 * 192) ** 0.5)


def test_the_csv_has_what_reproduces_a_row(bench):
    _, rows, out = bench
    with (out / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [each["solver"] for each in found] == ["converged", "ddim", "ddim", "heun", "heun"]
    for text, row in zip(found, rows, strict=True):
        assert text["rmse"] == str(row.get("rmse", ""))
        assert text["images"] == row["images"]
        assert text["python"] == row["drawn under"]["python"]
        assert (text["seed"], text["n"], text["torch"]) == ("0", "8", row["drawn under"]["versions"]["torch"])


def test_the_page_names_are_escaped(bench):
    assert "<title>A title &amp; more</title>" in (bench[2] / "index.html").read_text()


def test_a_chart_has_a_line_a_name_and_a_point_a_value():
    text = chart("t", "calls", {"a": [(5, 1.0), (10, 0.1)], "b<": [(5, 2.0), (10, -1.0)]})
    assert text.count("<circle") == 3  # what is not positive has no logarithm
    assert "b&lt;: 2 at 5" in text
    assert chart("t", "calls", {"a": [(5, 0.0)]}) == ""
    assert chart("t", "calls", {"a": [(5, 1.0)]}).count("<circle") == 1


def test_the_best_row_within_a_budget():
    rows = [row(calls=5, rmse=0.3), row("heun", 8, rmse=0.1), row("heun", 12, rmse=0.1), row("ddim", 20, rmse=0.05)]
    assert best(rows, "rmse", calls=12)["calls"] == 8  # as good, in fewer calls
    assert best(rows, "rmse", milliseconds=60)["calls"] == 5
    assert best(rows, "rmse")["calls"] == 20
    with pytest.raises(ValueError, match="nothing that was measured takes 4 calls or fewer; the least is 5"):
        best(rows, "rmse", calls=4)
    with pytest.raises(ValueError, match="has not measured 'frechet'; choose from rmse"):
        best(rows, "frechet")
    with pytest.raises(ValueError, match="'rmse'; run it with --metrics rmse"):
        best([row()], "rmse")
    scored = [row(rmse=0.3, brightness=0.5)]
    told = "measured 'brightness', but not whether more or less of it is better; choose from rmse"
    with pytest.raises(ValueError, match=told):
        best(scored, "brightness")


def under(name, nodes="own", schedule="EDM()"):
    return {"drawn under": {"python": call(SOLVERS[name].solver), "nodes": nodes, "schedule": schedule}}


@pytest.mark.parametrize("nodes", ["own", "karras(rho=3.0)", "time_quadratic"])
@pytest.mark.parametrize("name", SOLVERS)
def test_advice_in_python_is_what_was_measured(name, nodes):
    solver, noise, schedule = SOLVERS[name].solver, torch.ones(2, 3, 1, 1), EDM()

    def denoiser(x, t):
        return x / (1 + t * t)

    names = {"denoiser": denoiser, "noise": noise, "schedule": schedule}
    if hasattr(solver, "statistics"):
        names["statistics"] = solver.statistics
    exec(lines(row(name, 8, **under(name, nodes)))["Python"], names)
    made = {"own": None, "karras(rho=3.0)": grid.karras(rho=3.0), "time_quadratic": grid.time_quadratic}[nodes]
    expected = sample(denoiser, noise, nfe=8, solver=solver, schedule=schedule, grid=made, seeds=range(2))
    assert torch.equal(names["images"], expected)


def test_advice_with_options_of_its_own_is_for_python_alone():
    given = {"python": "DPMSolverPP(final_order=1)", "nodes": "karras(rho=5.0)"}
    assert set(lines(row("dpmpp-2m", **{"drawn under": given}))) == {"Python"}


@pytest.mark.parametrize("name", ["evodiff", "unipc-3", "ipndm-4", "dpmpp-2m", "ddim", "sde-dpmpp-2m"])
def test_advice_in_comfyui_names_what_exists(name):
    node, sigmas, _ = lines(row(name, **under(name, "karras")))["ComfyUI"].splitlines()
    known = {"fewstep sampler (EVODiff)": comfy.SHORT, "fewstep sampler (all solvers)": comfy.LABELS}
    title, solver = node.split(": solver ")
    assert title in NODES.values()
    assert solver in known[title]
    assert sigmas == "fewstep sigmas: grid karras, steps 5"
    assert "fewstep sigmas" in NODES.values()
    assert {text.split()[-1] for text in IN_COMFY.values() if text.startswith("fewstep")} == set(comfy.GRIDS)


@pytest.mark.parametrize("nodes", ["simple", "sgm_uniform", "normal", "kl_optimal"])
def test_advice_on_comfyuis_own_levels(nodes):
    assert f"BasicScheduler: scheduler {nodes}, steps 5" in lines(row(**under("ddim", nodes)))["ComfyUI"]


@pytest.mark.parametrize("nodes", ["trailing", "time_quadratic", "karras(rho=3.0)", "ays(model='sd15')", "beta"])
def test_levels_that_a_front_end_has_not_are_not_left_out(nodes):
    assert set(lines(row(**under("ddim", nodes)))) == {"Python"}


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("nodes", ["own", *map(repr, GRIDS.values())])
@pytest.mark.parametrize("name", ["ddim", "evodiff", "unipc-3"])
def test_advice_in_diffusers_has_the_levels_that_were_measured(name, nodes, flow):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler(**levels)
    schedule = Flow() if flow else Discrete(scheduler.alphas_cumprod.double().tolist())
    text = lines(row(name, 6, **under(name, nodes, repr(schedule)))).get("diffusers")
    if nodes == "focused":
        assert text is not None
    if text is None:
        return

    class Pipe:
        def __call__(self, *args, **kwargs):
            self.called = kwargs

    pipe = Pipe()
    pipe.scheduler = scheduler
    exec(text, {"pipe": pipe})
    assert pipe.called == {"num_inference_steps": 6, "guidance_scale": 1}
    pipe.scheduler.set_timesteps(6)
    made = SOLVERS[name].solver.grid if nodes == "own" else eval(nodes, vars(grid))
    found = [node.sigma / node.alpha if node.alpha else math.inf for node in pipe.scheduler._nodes]
    expected = [node.sigma / node.alpha if node.alpha else math.inf for node in made(schedule, 6)]
    assert found == pytest.approx(expected, rel=2e-3)  # betas in float32
