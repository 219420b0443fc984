"""The nodes, in a stand-in for the two modules of ComfyUI that they meet, which calls them as ComfyUI does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep.integrations import comfy as nodes
from fewstep.solvers.evodiff.family import Family
from fewstep.solvers.tuned import Measured
from fewstep.statistics import describe
from fewstep.table import SOLVERS

SIGMA_MIN, SIGMA_MAX = 0.03, 14.6


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


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    package, samplers, model_sampling = (
        ModuleType(name) for name in ("comfy", "comfy.samplers", "comfy.model_sampling")
    )
    samplers.KSAMPLER, model_sampling.CONST = KSAMPLER, CONST
    package.samplers, package.model_sampling = samplers, model_sampling
    for module in (package, samplers, model_sampling):
        monkeypatch.setitem(sys.modules, module.__name__, module)


class EPS:
    sigma_min, sigma_max = torch.tensor(SIGMA_MIN), torch.tensor(SIGMA_MAX)


class FlowLaw(CONST):
    sigma_min, sigma_max = torch.tensor(0.003), torch.tensor(1.0)


LAWS = pytest.mark.parametrize("law", [EPS(), FlowLaw()], ids=["VE", "flow"])


def patcher(law):
    return Guider(law).model_patcher


@LAWS
@pytest.mark.parametrize("solver", nodes.NAMES)
def test_every_solver_on_offer_runs(law, solver):
    """As many calls as it says, and what it draws has the spread of the data, however coarsely."""
    (sigmas,) = nodes.FewstepSigmas().get_sigmas(patcher(law), 20, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler(solver)
    noise = fs.unit_noise(range(4), (4, 8, 8))
    guider = Guider(law)
    heard = []
    out = sampler.sample(guider, noise, sigmas, seed=3, callback=lambda i, denoised, x: heard.append(i))
    assert heard == list(range(20))
    assert 20 <= guider.calls <= 20 * SOLVERS[solver].calls + 10  # PNDM's first steps cost more
    assert out.shape == noise.shape
    assert 0.25 < out.std() < 1.0


@LAWS
def test_the_default_draws_the_data(law):
    """The slope of the solution of N(0, 1/4) from x = sigma_max noise is 1/2, to 2 % after 10 calls."""
    (sigmas,) = nodes.FewstepSigmas().get_sigmas(patcher(law), 10, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler("evodiff")
    noise = fs.unit_noise(range(4), (4, 8, 8))
    out = sampler.sample(Guider(law), noise, sigmas, seed=0)
    assert torch.allclose(out, noise / 2, rtol=0.02, atol=1e-6)


@LAWS
def test_denoise_takes_the_last_steps_of_more(law):
    node = nodes.FewstepSigmas()
    (whole,) = node.get_sigmas(patcher(law), 20, 1.0)
    (part,) = node.get_sigmas(patcher(law), 8, 0.4)
    assert torch.equal(part, whole[-9:])
    assert whole[0] == pytest.approx(float(law.sigma_max), rel=2e-3)  # a flow's grid begins at 1 : 999
    assert (whole[-1], len(whole)) == (0, 21)
    (none,) = node.get_sigmas(patcher(law), 8, 0.0)
    assert none.shape == (0,)


def test_a_stochastic_sampler_follows_the_seed_and_not_the_batch():
    (sigmas,) = nodes.FewstepSigmas().get_sigmas(patcher(EPS()), 6, 1.0)
    (sampler,) = nodes.FewstepSampler().get_sampler("sde-dpmpp-2m")
    noise = fs.unit_noise(range(3), (4, 8, 8))
    both = sampler.sample(Guider(EPS()), noise, sigmas, seed=5)
    assert torch.equal(both, sampler.sample(Guider(EPS()), noise, sigmas, seed=5))
    assert torch.equal(both[1:2], sampler.sample(Guider(EPS()), noise[1:2], sigmas, seed=6))
    assert not torch.allclose(both, sampler.sample(Guider(EPS()), noise, sigmas, seed=6))


def test_no_solver_on_offer_needs_statistics():
    assert nodes.NAMES[0] == "evodiff"
    missing = set(SOLVERS) - set(nodes.NAMES)
    assert missing == {name for name in SOLVERS if name.startswith(("dpm-solver-v3", "re-v3", "analytic"))}


@pytest.mark.parametrize("steps", [6, 9])
@LAWS
def test_a_tuned_plan_is_a_run_of_fewstep(law, steps, tmp_path):
    flow = isinstance(law, CONST)
    schedule = fs.Flow() if flow else fs.EDM(SIGMA_MIN, SIGMA_MAX)
    family = Family(center=0.4, rise=-0.3, surprise=0.5)
    levels = family.nodes(schedule, 6)
    plan = Measured.of(levels, family.stages(levels, schedule.data_scale), schedule.data_scale, family)
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


def test_nodes_are_as_comfyui_reads_them():
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        assert name in nodes.NODE_DISPLAY_NAME_MAPPINGS
        assert callable(getattr(node(), node.FUNCTION))
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.CATEGORY.startswith("sampling/custom_sampling/")
        for kind, *options in node.INPUT_TYPES()["required"].values():
            if options:
                assert options[0]["default"] in kind if isinstance(kind, list) else "default" in options[0]


def test_the_folder_for_custom_nodes_holds_them():
    path = Path(__file__).parents[2] / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location("fewstep_nodes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is nodes.NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS is nodes.NODE_DISPLAY_NAME_MAPPINGS
