"""The nodes, in a stand-in for the modules of ComfyUI that they meet, which calls them as ComfyUI does."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import uuid
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import fewstep as fs
from fewstep.integrations import comfy as nodes
from fewstep.integrations import kdiffusion
from fewstep.solvers.evodiff.family import Family
from fewstep.solvers.tuned import Measured
from fewstep.solvers.tuned.measured import asked
from fewstep.statistics import describe
from fewstep.table import SOLVERS

SIGMA_MIN, SIGMA_MAX = 0.03, 14.6
ROOT = Path(__file__).parents[2]


class CONST:
    """ComfyUI's name of a flow."""


class KSAMPLER:
    """Scales the noise, runs the function, and turns its dictionary into the callback of a preview."""

    def __init__(self, sampler_function, extra_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options

    def sample(self, guider, noise, sigmas, seed, callback=None, latent=0.0):
        law = guider.model_patcher.get_model_object("model_sampling")
        share = 1 - sigmas[0] if isinstance(law, CONST) else 1

        def model(x, sigma, *, model_options, seed, denoise_mask):
            return guider(x, sigma, model_options=model_options, seed=seed)

        model.inner_model = guider
        extra = {"model_options": {"a": 1}, "seed": seed, "denoise_mask": None}
        heard = None if callback is None else lambda told: callback(told["i"], told["denoised"], told["x"])
        x = share * latent + sigmas[0] * noise
        return self.sampler_function(
            model, x, sigmas, extra_args=extra, callback=heard, disable=True, **self.extra_options
        )


class Guider:
    """ComfyUI's guided model; it denoises N(0, 1/4) exactly."""

    def __init__(self, law):
        self.law, self.calls = law, 0
        self.model_patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": law}[name])

    def __call__(self, x, sigma, model_options, seed):
        assert model_options == {"a": 1}
        self.calls += 1
        s = sigma.view(-1, 1, 1, 1)
        alpha = 1 - s if isinstance(self.law, CONST) else 1.0
        return 0.25 * alpha * x / (0.25 * alpha**2 + s**2)


class SchedulerHandler(NamedTuple):
    handler: object
    use_ms: bool = True


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    names = ("comfy", "comfy.samplers", "comfy.model_sampling", "comfy.k_diffusion", "comfy.k_diffusion.sampling")
    package, samplers, model_sampling, k_diffusion, sampling = modules = [ModuleType(name) for name in names]
    package.samplers, package.model_sampling, package.k_diffusion = samplers, model_sampling, k_diffusion
    k_diffusion.sampling = sampling
    model_sampling.CONST = CONST
    samplers.KSAMPLER, samplers.SchedulerHandler = KSAMPLER, SchedulerHandler
    samplers.KSAMPLER_NAMES = ["euler"]
    samplers.SAMPLER_NAMES = ["euler", "uni_pc"]
    samplers.SCHEDULER_HANDLERS = {"simple": SchedulerHandler(print)}
    samplers.SCHEDULER_NAMES = ["simple"]
    samplers.KSampler = type(
        "KSampler", (), {"SAMPLERS": samplers.SAMPLER_NAMES, "SCHEDULERS": samplers.SCHEDULER_NAMES}
    )
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(nodes, "HISTORY", kdiffusion.History())
    return samplers


class EPS:
    """Stable Diffusion's range; its clock as if even in log sigma."""

    sigma_min, sigma_max = torch.tensor(SIGMA_MIN), torch.tensor(SIGMA_MAX)

    def percent_to_sigma(self, percent):
        return SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX) ** percent


class Wide(EPS):
    sigma_max = torch.tensor(80.0)


class FlowLaw(CONST):
    """Flux."""

    sigma_min, sigma_max = torch.tensor(0.003), torch.tensor(1.0)

    def percent_to_sigma(self, percent):
        return math.exp(1.15) / (math.exp(1.15) + 1 / (1 - percent) - 1)


LAWS = pytest.mark.parametrize("law", [EPS(), FlowLaw()], ids=["VE", "flow"])


def patcher(law):
    return Guider(law).model_patcher


@LAWS
@pytest.mark.parametrize("solver", nodes.LABELS)
def test_every_solver_on_offer_runs(law, solver):
    """As many calls as it says, and what it draws has the spread of the data, however coarsely."""
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(law), 20, 1.0)
    (sampler,) = nodes.FewstepAnySampler().get_sampler(solver)
    noise = fs.unit_noise(range(4), (4, 8, 8))
    guider = Guider(law)
    heard = []
    out = sampler.sample(guider, noise, sigmas, seed=3, callback=lambda i, denoised, x: heard.append(i))
    assert heard == list(range(20))
    assert 20 <= guider.calls <= 20 * SOLVERS[nodes.LABELS[solver]].calls + 10  # PNDM's first steps cost more
    assert out.shape == noise.shape
    assert 0.25 < out.std() < 1.0


@LAWS
def test_the_default_draws_the_data(law):
    """The slope of the solution of N(0, 1/4) from x = sigma_max noise is 1/2, to 2 % after 10 calls."""
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(law), 10, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler("evodiff")
    noise = fs.unit_noise(range(4), (4, 8, 8))
    out = sampler.sample(Guider(law), noise, sigmas, seed=0)
    assert torch.allclose(out, noise / 2, rtol=0.02, atol=1e-6)


@LAWS
@pytest.mark.parametrize("solver", nodes.SHORT)
def test_the_short_list_makes_one_call_a_step(law, solver):
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(law), 7, 1.0)
    guider = Guider(law)
    nodes.FewstepSampler().get_sampler(solver)[0].sample(guider, fs.unit_noise([0], (4, 8, 8)), sigmas, seed=3)
    assert guider.calls == 7


@LAWS
@pytest.mark.parametrize("denoise", [0.01, 0.3, 0.6, 0.9])
def test_denoise_is_a_share_of_the_models_clock(law, denoise):
    """As "simple" has it; on Flux, 0.3 begins at 0.575. All steps are spread below."""
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(law), 7, denoise)
    assert sigmas[0] == pytest.approx(law.percent_to_sigma(1 - denoise), rel=1e-6)
    # The last call is spent where it shows: a flow ends at the noise of its lowest level.
    assert sigmas[-1] == pytest.approx(float(law.sigma_min) if isinstance(law, CONST) else 0, rel=1e-6)
    assert len(sigmas) == 8
    assert (sigmas.diff() < 0).all()
    if denoise == 0.3 and isinstance(law, CONST):
        assert sigmas[0] == pytest.approx(0.575, abs=1e-3)


def test_no_denoising_is_no_sigmas():
    none, said = nodes.FewstepSigmas().get_sigmas(patcher(EPS()), 8, 0.0)
    assert none.shape == (0,)
    assert "denoise is 0" in said


@pytest.mark.parametrize(("law", "grid"), [(EPS(), fs.karras), (Wide(), fs.focused), (FlowLaw(), fs.focused)])
def test_the_levels_follow_the_models_range_and_it_is_told(law, grid):
    """Ends and inner levels are the grid's; a flow's begins at 1 : 999."""
    node = nodes.FewstepSigmas()
    sigmas, said = node.get_sigmas(patcher(law), 9, 1.0)
    low, high = float(law.sigma_min), float(law.sigma_max)
    if isinstance(law, CONST):
        low, high = low / (1 - low), 999.0
    ratios = torch.tensor([each.sigma for each in grid(fs.EDM(low, high), 9)])
    wanted = ratios / (1 + ratios) if isinstance(law, CONST) else ratios
    torch.testing.assert_close(sigmas, wanted, rtol=1e-5, atol=0)
    assert said.startswith(f"{grid.__name__}: 9 steps from sigma")
    assert said.endswith("of a flow") == isinstance(law, CONST)
    for name, other in nodes.GRIDS.items():
        told, said = node.get_sigmas(patcher(law), 9, 1.0, name)
        assert torch.equal(told, sigmas) == (other == grid)
        assert said.startswith(f"{name}:")


@LAWS
@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("solver", ["evodiff", "unipc-2", "dpmpp-2m"])
def test_a_run_in_two_halves_goes_on(law, solver, eta):
    """As KSamplerAdvanced splits it: the latent goes through the model's units and back, and brings no noise.

    With noise on the way, which belongs to its level, the seed has to be the same.
    """
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(law), 12, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler(solver, eta)
    noise = fs.unit_noise(range(2), (4, 8, 8))
    whole = sampler.sample(Guider(law), noise, sigmas, seed=0)
    left = sampler.sample(Guider(law), noise, sigmas[:6], seed=0)
    share = 1 - sigmas[5] if isinstance(law, CONST) else 1
    latent = left / share / 0.18215 * 0.18215
    guider = Guider(law)
    got = sampler.sample(guider, torch.zeros_like(noise), sigmas[5:], seed=0 if eta else 7, latent=latent)
    assert guider.calls == 7
    tolerance = 2e-4 if solver == "evodiff" else 2e-6  # its weights look at the end of the list
    torch.testing.assert_close(got, whole, rtol=0, atol=tolerance)
    again = sampler.sample(Guider(law), torch.zeros_like(noise), sigmas[5:], seed=0 if eta else 7, latent=latent)
    assert torch.equal(again, got)  # ComfyUI keeps the first half, and runs the second again


@LAWS
def test_two_halves_with_one_seed_draw_other_noise(law):
    """DDPM's step from s to t adds sigma_t sqrt(1 - (n_t / n_s)^2) z; z of both halves, by difference to eta = 0."""
    sigmas = torch.tensor([0.9, 0.6, 0.3])
    noisy, still = (nodes.FewstepSampler().get_sampler("ddim", eta=eta)[0] for eta in (1.0, 0.0))
    x = fs.unit_noise([0], (4, 32, 32))

    def added(part):
        both = [each.sample(Guider(law), x, part, seed=11) for each in (noisy, still)]
        return (both[0] - both[1]).flatten()

    one, two = added(sigmas[:2]), added(sigmas[1:])
    # Of 4096 pairs that are independent, or share only x, the correlation has a standard deviation of 1/64.
    bent = torch.corrcoef(torch.stack([one - one @ x.flatten() / x.square().sum() * x.flatten(), two]))[0, 1]
    assert abs(bent) < 5 / 64


def test_the_last_seed_is_followed_by_the_first():
    """ComfyUI's seeds go to 2^64 - 1, and sample i has the seed + i."""
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(EPS()), 3, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler("evodiff", eta=0.3)
    noise = fs.unit_noise(range(2), (4, 8, 8))
    both = sampler.sample(Guider(EPS()), noise, sigmas, seed=2**64 - 1)
    assert torch.equal(both[1:], sampler.sample(Guider(EPS()), noise[1:], sigmas, seed=0))


def test_eta_goes_with_the_solvers_that_have_it():
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(EPS()), 5, 1.0)
    noise = fs.unit_noise([0], (4, 8, 8))
    for solver in nodes.SHORT:
        (sampler,) = nodes.FewstepSampler().get_sampler(solver, eta=0.5)
        if solver not in ("deis-3", "ipndm-4"):
            assert sampler.sample(Guider(EPS()), noise, sigmas, seed=0).isfinite().all()
        else:
            with pytest.raises(ValueError, match=r"eta=0\.5"):
                sampler.sample(Guider(EPS()), noise, sigmas, seed=0)


def test_registering_adds_in_place_and_once(comfy):
    """After a pack that has added its own to the list, and one that has made a list of its own of it."""
    comfy.SAMPLER_NAMES.append("theirs")
    comfy.KSampler.SAMPLERS = [*comfy.KSampler.SAMPLERS, "others"]
    lists = comfy.KSAMPLER_NAMES, comfy.SAMPLER_NAMES, comfy.KSampler.SAMPLERS, comfy.KSampler.SCHEDULERS
    before = [list(each) for each in lists]
    nodes.register()
    sampling = sys.modules["comfy.k_diffusion.sampling"]
    first = dict(vars(sampling)), dict(comfy.SCHEDULER_HANDLERS), [list(each) for each in lists]
    nodes.register()
    assert first == (dict(vars(sampling)), dict(comfy.SCHEDULER_HANDLERS), [list(each) for each in lists])
    after = comfy.KSAMPLER_NAMES, comfy.SAMPLER_NAMES, comfy.KSampler.SAMPLERS, comfy.KSampler.SCHEDULERS
    for names, old, now in zip(lists, before, after, strict=True):
        assert now is names
        added = ["fewstep", "fewstep_focused"] if names is comfy.KSampler.SCHEDULERS else list(nodes.DROPDOWN)
        assert now == [*old, *added]
    assert comfy.SCHEDULER_NAMES is comfy.KSampler.SCHEDULERS


def test_a_name_that_somebody_else_has_stays_theirs(comfy):
    sampling = sys.modules["comfy.k_diffusion.sampling"]
    sampling.sample_evodiff = comfy.SCHEDULER_HANDLERS["fewstep"] = theirs = object()
    nodes.register()
    assert sampling.sample_evodiff is comfy.SCHEDULER_HANDLERS["fewstep"] is theirs


@LAWS
@pytest.mark.parametrize(("name", "options"), nodes.DROPDOWN.items())
def test_the_dropdown_runs_the_same_solvers(comfy, law, name, options):
    """As KSampler gets them: by name, with levels of a scheduler that is asked with the model's law."""
    nodes.register()
    sigmas = comfy.SCHEDULER_HANDLERS["fewstep"].handler(law, 6)
    assert torch.equal(sigmas, nodes.FewstepSigmas().get_sigmas(patcher(law), 6, 1.0)[0])
    focused = comfy.SCHEDULER_HANDLERS["fewstep_focused"].handler(law, 6)
    assert torch.equal(focused, nodes.FewstepSigmas().get_sigmas(patcher(law), 6, 1.0, "focused")[0])
    noise = fs.unit_noise(range(2), (4, 8, 8))
    function = getattr(sys.modules["comfy.k_diffusion.sampling"], f"sample_{name}")
    got = KSAMPLER(function, {}).sample(Guider(law), noise, sigmas, seed=0)
    (sampler,) = nodes.FewstepSampler().get_sampler(**options)
    assert torch.equal(got, sampler.sample(Guider(law), noise, sigmas, seed=0))


def test_a_stochastic_sampler_follows_the_seed_and_not_the_batch():
    sigmas, _ = nodes.FewstepSigmas().get_sigmas(patcher(EPS()), 6, 1.0)
    (sampler,) = nodes.FewstepAnySampler().get_sampler("sde-dpmpp-2m")
    noise = fs.unit_noise(range(3), (4, 8, 8))
    both = sampler.sample(Guider(EPS()), noise, sigmas, seed=5)
    assert torch.equal(both, sampler.sample(Guider(EPS()), noise, sigmas, seed=5))
    assert torch.equal(both[1:2], sampler.sample(Guider(EPS()), noise[1:2], sigmas, seed=6))
    assert not torch.allclose(both, sampler.sample(Guider(EPS()), noise, sigmas, seed=6))


def test_no_solver_on_offer_needs_statistics():
    labels = list(nodes.LABELS)
    assert labels[0] == nodes.SHORT[0] == "evodiff"
    missing = set(SOLVERS) - set(nodes.LABELS.values())
    assert missing == {name for name in SOLVERS if name.startswith(("dpm-solver-v3", "re-v3", "analytic"))}
    calls = [SOLVERS[nodes.LABELS[label]].calls for label in labels]
    assert calls == sorted(calls)
    for label, n in zip(labels, calls, strict=True):
        assert label == nodes.LABELS[label] + (f" ({n} calls a step)" if n > 1 else "")


@pytest.mark.parametrize("steps", [6, 9])
@LAWS
def test_a_tuned_plan_is_a_run_of_fewstep(law, steps, tmp_path):
    flow = isinstance(law, CONST)
    schedule = fs.Flow() if flow else fs.EDM(SIGMA_MIN, SIGMA_MAX)
    family = Family(center=0.4, rise=-0.3, surprise=0.5)
    levels = asked(schedule, family.nodes(schedule, 6), [0.03 * (i > 0) for i in range(6)])
    stages = family.stages(levels, schedule.data_scale, schedule.lam_range[1])
    plan = Measured.of(schedule, levels, stages, schedule.data_scale, family)
    fs.Tuned({6: plan}, describe(schedule)).save(tmp_path / "plan.json")
    sampler, sigmas = nodes.FewstepTuned().get_plan(patcher(law), str(tmp_path / "plan.json"), steps)
    noise = fs.unit_noise(range(2), (4, 8, 8))
    guider = Guider(law)
    out = sampler.sample(guider, noise, sigmas, seed=0)
    assert guider.calls == steps

    def denoiser(x, t):
        return guider(x, torch.full((len(x),), t), {"a": 1}, 0)

    # sigmas are float32
    wanted = fs.sample(denoiser, noise, nfe=steps, solver=fs.Tuned.load(tmp_path / "plan.json"), schedule=schedule)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_nodes_are_as_comfyui_reads_them_and_say_what_they_are():
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        assert name in nodes.NODE_DISPLAY_NAME_MAPPINGS
        assert callable(getattr(node(), node.FUNCTION))
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
        assert node.CATEGORY.startswith("sampling/custom_sampling/")
        assert node.DESCRIPTION
        inputs = node.INPUT_TYPES()
        for kind, options in [*inputs["required"].values(), *inputs.get("optional", {}).values()]:
            assert options["tooltip"].endswith(".")
            assert kind == "MODEL" or options["default"] in (kind if isinstance(kind, list) else [options["default"]])
        page = (ROOT / "comfyui" / "web" / "docs" / f"{name}.md").read_text()
        assert page.startswith(f"# {nodes.NODE_DISPLAY_NAME_MAPPINGS[name]}\n")
        for each in [*inputs["required"], *inputs.get("optional", {})]:
            assert f"**{each}**" in page


def loaded(folder, name):
    """As ComfyUI imports a folder in custom_nodes: by its path, under a name that is none of Python's."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        for each in [each for each in sys.modules if each.startswith(name)]:
            del sys.modules[each]
    return module


@pytest.mark.parametrize("folder", [ROOT, ROOT / "comfyui"], ids=["a clone", "a link to comfyui"])
def test_what_goes_into_custom_nodes_holds_them_and_registers(comfy, monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    module = loaded(folder, "/somewhere/custom_nodes/fewstep-main")
    assert module.NODE_CLASS_MAPPINGS is nodes.NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS is nodes.NODE_DISPLAY_NAME_MAPPINGS
    assert (folder / module.WEB_DIRECTORY / "docs").is_dir()
    assert "evodiff" in comfy.KSampler.SAMPLERS


@pytest.mark.parametrize(("missing", "source"), [("fewstep", "FOLDER_OF_A_CLONE"), ("numpy", "numpy")])
def test_a_copy_without_what_it_needs_says_what_to_type(tmp_path, missing, source):
    copy = tmp_path / "comfyui"
    copy.mkdir()
    (copy / "__init__.py").write_text((ROOT / "comfyui" / "__init__.py").read_text())
    code = f"""
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "{missing}":
            raise ModuleNotFoundError("No module named '{missing}'", name="{missing}")
sys.meta_path.insert(0, Missing())
runpy.run_path({str(copy / "__init__.py")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith(f"ImportError: ComfyUI's Python has no module {missing}: clone")
    assert last[1] == f'    "{sys.executable}" -m pip install {source}'


def test_a_python_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(ImportError, match=r"needs Python 3\.11 or newer"):
        loaded(ROOT / "comfyui", "old")


WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_hold_what_the_nodes_offer(path):
    """Names in dropdowns, and values of our nodes' widgets in their order; nodes that do not cover each other."""
    graph = json.loads(path.read_text())
    uuid.UUID(graph["id"])  # or the browser complains
    ids = {node["id"] for node in graph["nodes"]}
    assert len(ids) == len(graph["nodes"])
    for link in graph["links"]:
        assert {link[1], link[3]} <= ids
    title = 30  # above a node's own place
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    for (x, y, width, height), (left, top, wide, high) in itertools.combinations(boxes, 2):
        apart = x + width <= left or left + wide <= x
        assert apart or y + height + title <= top or top + high + title <= y
    ours = 0
    for node in graph["nodes"]:
        if node["type"] in nodes.NODE_CLASS_MAPPINGS:
            ours += 1
            inputs = nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
            given = {**inputs["required"], **inputs.get("optional", {})}
            widgets = [kind for kind, _ in given.values() if kind != "MODEL"]
            for kind, value in zip(widgets, node["widgets_values"], strict=True):
                assert value in kind if isinstance(kind, list) else isinstance(value, int | float)
        ours += bool({"evodiff", "fewstep"} & set(map(str, node.get("widgets_values", []))))
    assert ours
