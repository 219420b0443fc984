"""EVODiffScheduler in pipelines of diffusers: each of its runs is a run of fewstep on the same answers of the model."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.adapters import load_model
from fewstep.integrations.diffusers import EVODiffScheduler
from integrations.pipelines import pipeline, unconditional_unet
from integrations.runs import assert_is_push_run, record

GUIDED = {"Flux": "true_cfg_scale"}
UNGUIDED = ("DDPM", "DDIM", "Flux img2img")
TEXT_TO_IMAGE = ["DDPM", "DDIM", "DiT", "SD", "ControlNet", "SDXL", "SD3", "Flux", "Sana", "Wan", "PixArt", "CogView4"]


def run(name, steps=5, guidance=7.5, seed=0, **options):
    """The result of a pipeline, and the recorded steps of the scheduler that was put into it by the one line."""
    pipe, call = pipeline(name)
    original = pipe.scheduler
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, **options.pop("config", {}))
    try:
        recorded = record(pipe)
        if name not in UNGUIDED:
            options[GUIDED.get(name, "guidance_scale")] = guidance
        generator = torch.Generator().manual_seed(seed)
        out = pipe(**call, num_inference_steps=steps, generator=generator, return_dict=False, **options)[0]
        return torch.as_tensor(np.asarray(out)), recorded, pipe.scheduler
    finally:
        pipe.scheduler = original


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
@pytest.mark.parametrize(("steps", "guidance"), [(5, 7.5), (10, 1.0), (25, 7.5)])
def test_every_pipeline_runs_as_fewstep_does(name, steps, guidance):
    out, recorded, scheduler = run(name, steps, guidance)
    assert len(recorded) == steps
    assert_is_push_run(scheduler, recorded)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_the_same_seed_gives_the_same_image(name):
    assert torch.equal(run(name)[0], run(name)[0])


@pytest.mark.parametrize("name", ["SD", "Flux", "Wan"])
@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-2m", "ddim", "evodiff-paper"])
def test_other_solvers_run_too(name, solver):
    _, recorded, scheduler = run(name, 10, config={"solver": solver})
    assert_is_push_run(scheduler, recorded, atol=3e-5)


@pytest.mark.parametrize(("name", "options"), [
    ("CogView4", {}), ("SD3", {"sigmas": np.linspace(1, 1 / 6, 6)}), ("LTX with conditions", {"strength": 1.0}),
    ("LTX with conditions", {"strength": 0.6}),
])  # fmt: skip
def test_first_order_is_eulers_method_of_flow_match_euler(name, options):
    """The same latents, whatever the pipeline tells it: timesteps beside sigmas, a timestep for each token."""
    pipe, call = pipeline(name)
    generator = torch.Generator().manual_seed(0)
    expected = pipe(**call, num_inference_steps=6, guidance_scale=3.0, generator=generator, **options)[0]
    got, _, _ = run(name, 6, 3.0, config={"solver": "ddim"}, **options)
    torch.testing.assert_close(got, torch.as_tensor(np.asarray(expected)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["evodiff", "unipc-2", "dpmpp-2m"])
def test_clean_conditions_stay_and_the_rest_is_finite(solver):
    options = {"solver": solver, "use_focused_sigmas": True}
    got, recorded, scheduler = run("LTX with conditions", 8, 3.0, config=options, image_cond_noise_scale=0.0)
    assert got.isfinite().all()
    first, last = recorded[0][2], recorded[-1][3]
    kept = (first == last).all(dim=-1)
    assert kept.any()
    assert not kept.all()
    assert len(scheduler.timesteps) == 8


@pytest.mark.parametrize("name", ["SD img2img", "SDXL img2img", "SD3 img2img", "Flux img2img"])
@pytest.mark.parametrize(("strength", "steps", "made"), [(0.01, 100, 1), (0.3, 10, 3), (0.8, 25, 20), (1.0, 5, 5)])
def test_every_strength_of_image_to_image(name, strength, steps, made):
    out, recorded, scheduler = run(name, steps, strength=strength)
    assert len(recorded) == made
    assert_is_push_run(scheduler, recorded)
    assert out.isfinite().all()


@pytest.mark.parametrize(("strength", "steps", "made"), [(0.01, 100, 1), (0.5, 10, 5), (1.0, 5, 5)])
def test_inpainting_keeps_what_is_not_masked(strength, steps, made):
    out, recorded, _ = run("SD inpaint", steps, strength=strength)
    again = run("SD inpaint", steps, strength=strength, seed=1)[0]
    assert len(recorded) == made
    assert out.isfinite().all()
    # The mask leaves the left half of the image, and so of the latents; noise of the autoencoder apart.
    known, other = (out - again)[..., :4].abs().mean(), (out - again)[..., 4:].abs().mean()
    assert known < other
    for (_, _, _, after), (_, _, sample, _) in pairwise(recorded):
        assert torch.equal(after[..., 4:], sample[..., 4:])
        assert not torch.equal(after[..., :4], sample[..., :4])


@pytest.mark.parametrize("split", [0.3, 0.8])
def test_sdxl_in_two_stages_makes_every_step_once(split):
    options = {"output_type": "latent"}
    _, whole, _ = run("SDXL", 10)
    latents, first, scheduler = run("SDXL", 10, denoising_end=split)
    assert_is_push_run(scheduler, first)
    pipe, call = pipeline("SDXL img2img")
    original, pipe.scheduler = pipe.scheduler, EVODiffScheduler.from_config(pipe.scheduler.config)
    try:
        second = record(pipe)
        call = {**call, **options, "image": latents}
        pipe(**call, num_inference_steps=10, denoising_start=split, generator=torch.Generator().manual_seed(0))
        assert_is_push_run(pipe.scheduler, second)
    finally:
        pipe.scheduler = original
    assert [t for _, t, *_ in first + second] == [t for _, t, *_ in whole]


def test_a_callback_that_edits_latents_is_heard():
    def callback(pipe, index, t, tensors):
        return {"latents": tensors["latents"] + 1.0} if index == 2 else {}

    plain, edited = run("SD", 10)[0], run("SD", 10, callback_on_step_end=callback)[0]
    recorded = run("SD", 10, callback_on_step_end=callback)[1]
    assert torch.allclose(recorded[3][2], recorded[2][3] + 1)
    assert not torch.allclose(plain, edited)


@pytest.mark.parametrize("sigmas", [[14.0, 6.0, 3.0, 1.0, 0.2], np.array([14.0, 6.0, 3.0, 1.0, 0.2, 0.0])])
def test_a_pipeline_passes_sigmas_on(sigmas):
    _, recorded, scheduler = run("SD", None, sigmas=sigmas)
    assert len(recorded) == 5
    assert_is_push_run(scheduler, recorded)


def test_a_pipeline_passes_timesteps_on():
    _, recorded, scheduler = run("SD", None, timesteps=[999, 850, 545, 233, 24])
    assert [t for _, t, *_ in recorded] == [999, 850, 545, 233, 24]
    assert_is_push_run(scheduler, recorded)


def test_flux_keeps_its_dynamic_shift_and_half_precision_runs():
    _, recorded, scheduler = run("Flux", 5)
    base = torch.linspace(1, 1 / 5, 5)
    # mu of 16 tokens on the line through (256, 0.5) and (4096, 1.15)
    mu = (
        0.5 + (4 - 256) * (1.15 - 0.5) / (4096 - 256)
        if recorded[0][2].shape[1] == 4
        else 0.5 + (16 - 256) * 0.65 / 3840
    )
    ratio = float(np.exp(mu))
    torch.testing.assert_close(scheduler.sigmas[:-1], ratio * base / (1 + (ratio - 1) * base), rtol=1e-4, atol=1e-4)
    pipe, call = pipeline("Flux")
    original, pipe.scheduler = pipe.scheduler, EVODiffScheduler.from_config(pipe.scheduler.config)
    try:
        pipe.to(torch.bfloat16)
        half = {key: v.to(torch.bfloat16) if isinstance(v, torch.Tensor) else v for key, v in call.items()}
        out = pipe(**half, num_inference_steps=5, generator=torch.Generator().manual_seed(0)).images
        assert out.dtype == torch.bfloat16
        assert out.isfinite().all()
    finally:
        pipe.to(torch.float32)
        pipe.scheduler = original


def test_a_saved_pipeline_reloads_with_its_scheduler(tmp_path):
    pipe = diffusers.DDPMPipeline(unconditional_unet(), EVODiffScheduler(solver="unipc-3", beta_end=0.03))
    pipe.save_pretrained(tmp_path)
    code = (
        "import sys, diffusers, fewstep.integrations.diffusers\n"
        "pipe = diffusers.DDPMPipeline.from_pretrained(sys.argv[1])\n"
        "print(type(pipe.scheduler).__name__, pipe.scheduler.config.solver, pipe.scheduler.config.beta_end)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["EVODiffScheduler", "unipc-3", "0.03"]


def test_the_scheduler_is_no_dependency_of_fewstep():
    code = "import sys, fewstep, fewstep.integrations; print('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    assert fs.EVODiff().calls_per_step == 1


class Denoiser(torch.nn.Module):
    """The packaged model as a network that a pipeline calls, which predicts the image at the timesteps of a table."""

    def __init__(self, schedule):
        super().__init__()
        self.model, self.schedule = load_model(), schedule
        self.network = self.model.network
        self.config = SimpleNamespace(sample_size=32, in_channels=3)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x, t):
        node = self.schedule.node(float(t))
        return SimpleNamespace(sample=self.model(x / node.alpha, node.nsr))


@pytest.mark.parametrize("steps", [5, 10, 25])
def test_on_the_packaged_model_a_pipeline_is_as_far_from_the_solution_as_fewstep(steps):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
    scheduler = EVODiffScheduler(**config)
    schedule = scheduler._schedule
    network = Denoiser(schedule)
    pipe = diffusers.DDPMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    recorded = record(pipe)
    pipe(batch_size=2, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="np")
    start, image = recorded[0][2], recorded[-1][3]

    def denoiser(x, t):
        return network(x, t).sample

    def far(x):
        return float((x - solution).square().mean().sqrt())

    def solved(count, solver):
        nodes = fs.grid.linspace(schedule, count, drop_last=True, to_zero=True)
        return fs.integrate(denoiser, start, nodes, solver=solver, schedule=schedule)

    solution = solved(100, fs.UniPC())
    pushed = solved(steps, fs.EVODiff())
    torch.testing.assert_close(image, pushed, rtol=0, atol=1e-5)
    assert far(image) == pytest.approx(far(pushed), abs=1e-6)
    assert far(image) < far(solved(steps, fs.DDIM()))
