"""The extension for Forge and its kin, in a stand-in for the modules that it meets, which call it as they do."""

import inspect
import runpy
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep.integrations import webui
from fewstep.integrations.kdiffusion import get_sigmas, sampler
from fewstep.table import SOLVERS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "fewstep_samplers.py"
SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])
LEVELS = {False: torch.logspace(-1.5, 1.165, 50), True: torch.linspace(0.003, 1 + 2**-23, 50)}
FLOW = pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])


class KDiffusionSampler:
    """Gives a function what its signature asks for, eta and noise levels among them."""

    def __init__(self, function, sd_model):
        self.func, self.model = function, sd_model

    def sample(self, x, sigmas):
        asked = inspect.signature(self.func).parameters
        given = {"sigmas": sigmas} | ({"eta": 1.0} if "eta" in asked else {}) | ({"n": 1} if "n" in asked else {})
        return self.func(self.model, x, extra_args={"cond": 1}, disable=True, callback=self.heard.append, **given)


class Scheduler:
    def __init__(self, name, label, function, need_inner_model=False):
        self.name, self.label, self.function, self.need_inner_model = name, label, function, need_inner_model


@pytest.fixture
def modules(monkeypatch):
    names = ["modules", *(f"modules.sd_{name}" for name in ("samplers", "samplers_common", "samplers_kdiffusion"))]
    package, samplers, common, kdiffusion, schedulers = made = [
        ModuleType(name) for name in (*names, "modules.sd_schedulers")
    ]
    package.sd_samplers, package.sd_samplers_common = samplers, common
    package.sd_samplers_kdiffusion, package.sd_schedulers = kdiffusion, schedulers
    euler = SamplerData("Euler", print, [], {})
    samplers.all_samplers, samplers.all_samplers_map, samplers.shown = [euler], {"Euler": euler}, []
    samplers.set_samplers = lambda: setattr(samplers, "shown", [each.name for each in samplers.all_samplers])
    common.SamplerData, kdiffusion.KDiffusionSampler, schedulers.Scheduler = SamplerData, KDiffusionSampler, Scheduler
    karras = Scheduler("karras", "Karras", print)
    schedulers.schedulers, schedulers.schedulers_map = [karras], {"karras": karras, "Karras": karras}
    for module in made:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return package


def guided(flow):
    """Denoises N(0, 1/4)."""

    def model(x, sigma, cond):
        s = sigma.view(-1, 1, 1, 1)
        alpha = 1 - s if flow else 1.0
        return 0.25 * alpha * x / (0.25 * alpha**2 + s**2)

    model.inner_model = SimpleNamespace(sigmas=LEVELS[flow])
    return model


def test_it_adds_to_the_lists_in_place_and_once(modules):
    lists = modules.sd_samplers.all_samplers, modules.sd_samplers.all_samplers_map, modules.sd_schedulers.schedulers
    for _ in range(2):
        runpy.run_path(str(SCRIPT))
        assert modules.sd_samplers.shown == ["Euler", *webui.SAMPLERS]
        assert [each.name for each in modules.sd_schedulers.schedulers] == ["karras", *webui.SCHEDULERS]
        assert set(modules.sd_schedulers.schedulers_map) >= {*webui.SCHEDULERS, *webui.SCHEDULERS.values()}
    assert lists[0] is modules.sd_samplers.all_samplers
    assert lists[1] is modules.sd_samplers.all_samplers_map
    assert lists[2] is modules.sd_schedulers.schedulers


def test_a_clone_holds_nothing_else_that_a_web_ui_runs():
    """They take these of every extension, whatever else is in its folder."""
    assert list((ROOT / "scripts").glob("*.py")) == [SCRIPT]
    taken = ("install.py", "preload.py", "metadata.ini", "style.css", "javascript", "localizations")
    assert not [name for name in taken if (ROOT / name).exists()]


def test_a_web_ui_of_before_schedules_is_told_what_is_needed(modules, monkeypatch):
    monkeypatch.delattr(modules, "sd_schedulers")
    monkeypatch.delitem(sys.modules, "modules.sd_schedulers")
    with pytest.raises(ImportError, match=r"Automatic1111 1\.9 or newer"):
        webui.register()


@FLOW
@pytest.mark.parametrize("label", webui.SAMPLERS)
def test_its_samplers_know_a_flow_and_draw_no_noise(modules, flow, label):
    webui.register()
    data = modules.sd_samplers.all_samplers_map[label]
    schedule = modules.sd_schedulers.schedulers_map[data.options["scheduler"]]
    low, high = LEVELS[flow][0], LEVELS[flow][-1]
    inner = {"inner_model": guided(flow).inner_model} if schedule.need_inner_model else {}
    sigmas = schedule.function(n=8, sigma_min=low, sigma_max=high, device="cpu", **inner)
    grid = fs.focused if flow else fs.karras
    assert torch.equal(sigmas, get_sigmas(grid, 8, float(low), float(high), flow=flow))
    x = fs.unit_noise([0, 1], (4, 8, 8)) * sigmas[0]
    running = data.constructor(guided(flow))
    running.heard = []
    got = running.sample(x, sigmas)
    assert [each["i"] for each in running.heard] == list(range(8))
    entry = SOLVERS[webui.SAMPLERS[label]]
    solver = sampler(entry.on_flow if flow else entry.solver, flow=flow, sigma_min=float(low))
    assert torch.equal(got, solver(guided(flow), x, sigmas, {"cond": 1}, disable=True))


@FLOW
def test_focused_levels_are_those_of_any_model(flow):
    low, high = (float(LEVELS[flow][i]) for i in (0, -1))
    got = webui.sigmas_for(7, low, high, guided(flow).inner_model, name="fewstep_focused")
    assert torch.equal(got, get_sigmas(fs.focused, 7, low, high, flow=flow))


@FLOW
@pytest.mark.parametrize("label", webui.SAMPLERS)
def test_no_step_leaves_an_image_as_it_is(modules, flow, label):
    """A denoising strength of 0 asks for n = 0, in a second pass always."""
    webui.register()
    x = fs.unit_noise([0], (4, 8, 8))
    sigmas = webui.sigmas_for(0, 0.03, 1.0, guided(flow).inner_model)
    running = modules.sd_samplers.all_samplers_map[label].constructor(guided(flow))
    running.heard = []
    assert torch.equal(sigmas, torch.zeros(1))
    assert torch.equal(running.sample(x, sigmas), x)
    assert running.heard == []


def test_settings_that_no_flow_can_have_are_named():
    with pytest.raises(ValueError, match=r"sigma_max=10 .* 'Use old karras scheduler sigmas' off"):
        webui.sigmas_for(8, 0.1, 10, guided(True).inner_model)
