"""A real Forge or Automatic1111 on the CPU, without its page: what test_webui_real.py asks for images.

As a program, run by the web UI's Python in its folder, it starts all but the page, with our extension linked into
`extensions`, puts a model in place that is known exactly, and answers each line of JSON by the name of a file of torch.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).parents[2]
MEAN, STD = 0.6, 0.2  # of the data: a mixture of N(MEAN, STD^2) and N(-MEAN, STD^2) for each element of a latent
SHARES = (0.5, 0.8)  # of the first, without a prompt and with one
KIN = {"backend": "forge", "ldm_patched": "reforge"}
PIXELS = 8  # a side of what one element of a latent shows
NOTHING = b'{"__metadata__":{}}'  # of a checkpoint: they want to see one
PREVIEWS = {"live_previews_enable": True, "show_progress_every_n_steps": 1, "show_progress_type": "Approx cheap"}


def denoised(x, sigma, share, flow=False):
    """The posterior mean; `sigma` and `share` are numbers, or (B,)."""
    sigma, share = (torch.as_tensor(each, dtype=x.dtype).reshape(-1, 1, 1, 1) for each in (sigma, share))
    alpha = 1 - sigma if flow else torch.ones_like(sigma)
    variance = (alpha * STD) ** 2 + sigma**2
    first = torch.sigmoid(share.logit() + 2 * alpha * MEAN * x / variance)
    return ((2 * first - 1) * MEAN * sigma**2 + alpha * STD**2 * x) / variance


class Refused(Exception):
    """What the web UI says of images that it cannot make."""


class WebUI:
    """`sources` is a checkout, `python` one with what it requires, `base` an empty folder for its data."""

    def __init__(self, sources, python, base):
        extensions = base / "extensions"
        checkpoints = base / "models" / "Stable-diffusion"
        extensions.mkdir(parents=True)
        checkpoints.mkdir(parents=True)
        (extensions / "fewstep").symlink_to(ROOT)
        (checkpoints / "exact.safetensors").write_bytes(len(NOTHING).to_bytes(8, "little") + NOTHING)
        self.log = base / "log.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # the extension finds the clone by itself
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, __file__, str(base)],
                cwd=sources,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        path = self.process.stdout.readline().strip()
        if not path:
            raise RuntimeError(f"the web UI ended:\n{self.log.read_text()[-1500:]}")
        answer = torch.load(path)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def close(self):
        self.process.communicate(timeout=30)


def kin(sources):
    """Which of them a checkout is of, by a folder that only it has."""
    return next((name for folder, name in KIN.items() if (sources / folder).is_dir()), "a1111")


def python():
    return os.environ.get("WEBUI_PYTHON", sys.executable)


def start(base):
    """As webui.py and launch.py do, but for the page and for what they download."""
    sys.path.insert(0, os.getcwd())
    options = ["--skip-torch-cuda-test", "--skip-version-check", "--data-dir", str(base), "--no-download-sd-model"]
    forge = kin(Path()) != "a1111"
    sys.argv = ["webui", *options, *(["--always-cpu"] if forge else ["--use-cpu", "all", "--no-half"])]
    from modules import launch_utils  # noqa: F401 - it reads the options

    if forge:
        from modules_forge.initialization import initialize_forge

        initialize_forge()
    from modules import initialize

    initialize.imports()
    from modules import sd_models

    sd_models.model_data.was_loaded_at_least_once = True  # or Automatic1111's loads one meanwhile
    initialize.initialize()


class Parts:
    """What all of them ask of a model besides its denoiser."""

    sd_model_hash, device = "exact", torch.device("cpu")
    first_stage_model = torch.nn.Linear(1, 1)
    first_stage_model.dtype = torch.float32
    model_config = SimpleNamespace(latent_format=SimpleNamespace(latent_rgb_factors=torch.eye(4, 3).tolist()))
    is_sdxl = is_sd1 = is_sd2 = is_sd3 = is_inpaint = is_sdxl_inpaint = lowvram = tiling_enabled = False

    @property
    def sd_checkpoint_info(self):
        from modules import sd_models

        return next(iter(sd_models.checkpoints_list.values()))

    def get_learned_conditioning(self, prompts):
        return torch.tensor([SHARES[bool(prompt)] for prompt in prompts]).reshape(-1, 1, 1)

    def encode_first_stage(self, x):
        x = torch.nn.functional.avg_pool2d(x, PIXELS)
        return torch.cat([x, x[:, :1]], dim=1)

    def decode_first_stage(self, x):
        return torch.nn.functional.interpolate(x[:, :3], scale_factor=PIXELS)

    def get_first_stage_encoding(self, x):
        return x


def forge_model(kind):
    from backend.diffusion_engine.base import ForgeDiffusionEngine, ForgeObjects
    from backend.modules import k_prediction
    from backend.modules.k_model import KModel
    from backend.patcher.unet import UnetPatcher
    from modules import sd_models

    class Exact(KModel):
        def apply_model(self, x, t, c_crossattn=None, **kwargs):
            return denoised(x, t, c_crossattn, self.predictor.prediction_type == "const")

    class Engine(Parts, ForgeDiffusionEngine):
        def __init__(self, unet):
            self.fix_for_webui_backward_compatibility()
            vae = SimpleNamespace(latent_channels=4, first_stage_model=torch.nn.Module())
            self.forge_objects = ForgeObjects(unet, None, vae, None)
            self.forge_objects_original = self.forge_objects.shallow_copy()
            self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    laws = {
        "SD": lambda: k_prediction.Prediction(prediction_type="epsilon"),
        "Flux": k_prediction.PredictionFlux,
        "SD3": lambda: k_prediction.PredictionDiscreteFlow(shift=3.0),
    }
    network = torch.nn.Module()
    network.storage_dtype = network.computation_dtype = torch.float32
    model = Exact(network, None, laws[kind]())
    cpu = torch.device("cpu")
    sd_models.model_data.set_sd_model(Engine(UnetPatcher(model, cpu, cpu, current_device=cpu)))
    sd_models.model_data.forge_hash = str(sd_models.model_data.forge_loading_parameters)


class Discrete(Parts, torch.nn.Module):
    """What is asked of a network of latent-diffusion besides: Stable Diffusion's table, for one."""

    cond_stage_key, parameterization = "txt", "eps"

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.sd_model_checkpoint = self.filename = self.sd_checkpoint_info.filename
        self.model.conditioning_key = "crossattn"
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = self.alphas_cumprod_original = (1 - betas).cumprod(0).float()

    def ema_scope(self):
        return contextlib.nullcontext()


def a1111_model(kind):
    import k_diffusion.external
    from modules import sd_models
    from modules.models.sd3.sd3_impls import ModelSamplingDiscreteFlow
    from modules.models.sd3.sd3_model import SD3Denoiser, SD3Inferencer

    class Noise(Discrete):
        def apply_model(self, x, t, cond):
            """What a network would say: the noise, of x scaled to unit variance, by the place in the table."""
            sigma = k_diffusion.external.CompVisDenoiser(self).t_to_sigma(t).reshape(-1, 1, 1, 1)
            x = x * (sigma**2 + 1).sqrt()
            return (x - denoised(x, sigma, cond["c_crossattn"][0])) / sigma

    class Flow(Discrete):
        add_noise_to_latent = SD3Inferencer.add_noise_to_latent

        def create_denoiser(self):
            return SD3Denoiser(self, ModelSamplingDiscreteFlow(shift=3.0).sigmas)

        def apply_model(self, x, t, cond):
            return denoised(x, t, cond["c_crossattn"][0], flow=True)

    sd_models.model_data.set_sd_model({"SD": Noise, "SD3": Flow}[kind]())


def reforge_model(kind):
    """Sigmas are Automatic1111's way, the guided model is ComfyUI's."""
    from ldm_patched.modules import latent_formats, model_base, supported_models_base
    from modules import sd_models
    from modules_forge.forge_loader import ForgeSD
    from modules_forge.unet_patcher import UnetPatcher

    class Exact(model_base.BaseModel):
        def __init__(self):
            config = type("Config", (supported_models_base.BASE,), {"latent_format": latent_formats.SD15})
            super().__init__(config({"disable_unet_model_creation": True}), model_base.ModelType.EPS)
            self.register_buffer("nothing", torch.zeros(1))  # it is asked for its size

        def _apply_model(self, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
            return denoised(x, t, c_crossattn)

        def get_dtype(self):
            return torch.float32

    assert kind == "SD"
    model, cpu = Discrete(), torch.device("cpu")
    sd_models.model_data.set_sd_model(model)
    sd_models.model_data.loaded_sd_models[:] = [model]
    vae = SimpleNamespace(first_stage_model=torch.nn.Module())
    model.forge_objects = ForgeSD(UnetPatcher(Exact(), load_device=cpu, offload_device=cpu), None, vae, None)
    model.forge_objects_original = model.forge_objects.shallow_copy()
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


MODELS = {"forge": forge_model, "reforge": reforge_model, "a1111": a1111_model}


def watched(sampler_class, interrupt_at, passes):
    """`launch_sampling`, which all samplers go through, writing down what comes and goes."""
    from modules import shared

    plain = sampler_class.launch_sampling

    def launch_sampling(self, steps, run):
        function, told = self.func, []

        def heard(model, x, *args, callback, **given):
            def tell(d):
                callback(d)
                shared.state.do_set_current_image()
                told.append([d["i"], float(d["sigma_hat"]), shared.state.sampling_step])
                if d["i"] == interrupt_at:
                    shared.state.interrupt()

            seen.update(x=x.clone(), sigmas=given.get("sigmas"))
            return function(model, x, *args, callback=tell, **given)

        seen = {"steps": steps, "told": told}
        self.func = heard
        seen["latents"] = plain(self, steps, run).clone()
        seen["calls"], seen["preview"] = self.model_wrap_cfg.step, shared.state.current_image is not None
        passes.append(seen)
        return seen["latents"]

    sampler_class.launch_sampling = launch_sampling
    return lambda: setattr(sampler_class, "launch_sampling", plain)


def images(kind="SD", options=None, init=None, interrupt_at=None, mask=None, **given):
    """Runs process_images: its passes, and the text that goes with the first image."""
    from modules import processing, scripts, sd_samplers_common, shared
    from PIL import Image

    shared.state.begin("test")
    settings = {"outpath_samples": "", "outpath_grids": "", "do_not_save_samples": True, "do_not_save_grid": True}
    settings |= {"width": 64, "height": 64, "prompt": "one", "cfg_scale": 1.0, "seed": 1, "batch_size": 2, **given}
    kept = dict(shared.opts.data)
    shared.opts.data.update({**PREVIEWS, **(options or {})})
    if init is None:
        if given.get("enable_hr") and hasattr(processing.StableDiffusionProcessingTxt2Img, "hr_additional_modules"):
            settings["hr_additional_modules"] = ["Use same choices"]
        p = processing.StableDiffusionProcessingTxt2Img(**settings)
    else:
        picture = Image.new("RGB", (64, 64), tuple(init))
        p = processing.StableDiffusionProcessingImg2Img(init_images=[picture], **settings)
        if mask:
            p.image_mask = Image.new("L", (64, 64))
            p.image_mask.paste(255, (0, 0, 32, 64))
    p.scripts, passes = scripts.ScriptRunner(), []
    restore = watched(sd_samplers_common.Sampler, interrupt_at, passes)
    try:
        done = processing.process_images(p)
    finally:
        restore()
        shared.opts.data = kept
        shared.state.end()
    pictures = [torch.asarray(list(image.getdata())) for image in done.images]
    return {"passes": passes, "text": done.infotexts[0], "images": pictures}


def names(again=False):
    from modules import initialize, script_callbacks, sd_samplers, sd_schedulers

    if again:  # as "Reload UI" does
        script_callbacks.script_unloaded_callback()
        initialize.initialize_rest(reload_script_modules=True)
    choices = sd_samplers.visible_sampler_names()
    return {"samplers": choices, "schedulers": [each.label for each in sd_schedulers.schedulers]}


def serve(base):
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        start(base)
        loaded = None
        for number, line in enumerate(sys.stdin):
            request = json.loads(line)
            what = request.pop("what", "images")
            if what == "images" and request.get("kind", "SD") != loaded:
                loaded = request.get("kind", "SD")
                MODELS[kin(Path())](loaded)
            path = base / f"{number}.pt"
            try:
                answer = {"images": images, "names": names}[what](**request)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            torch.save(answer, path)
            print(path, file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
