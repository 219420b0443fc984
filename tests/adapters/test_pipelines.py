"""Pipelines of diffusers as denoisers: what they draw is what the pipeline draws under EVODiffScheduler."""

import functools
import json
import pickle
import shutil

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra pipelines")

import diffusers
from safetensors.torch import load_file, save_file

import fewstep as fs
from fewstep.adapters import load_model
from tiny_pipelines import NFE, PIPELINES, SIZES, TEXT, reference, save_pipeline

UNET, CLIP = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    kept = {}

    def saved(name):
        if name not in kept:
            kept[name] = save_pipeline(name, tmp_path_factory.mktemp("pipelines") / name)
        return kept[name]

    return saved


@pytest.fixture(scope="module")
def model(folder):
    kept = {}

    def loaded(name):
        if name not in kept:
            kept[name] = load_model(folder(name), **({"size": SIZES[name]} if name in SIZES else {}))
        return kept[name]

    return loaded


def pushed(model, denoiser, **options):
    """As pipelines begin: with the noise itself, whatever sigma is at the first level."""
    options = {"nfe": NFE, "grid": model.grid, **options}
    return fs.sample(denoiser, x=fs.unit_noise([0, 1], model.shape), **options)


def images(model, x):
    return ((model.decode(x) + 1) / 2).permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_model_draws_what_its_pipeline_draws(folder, model, name):
    """With a negative prompt; without one tests/cli has them, with guidance and without."""
    guidance, negative = 4.0, "dog"
    loaded = model(name)
    noise = fs.unit_noise([0, 1], loaded.shape)
    expected = reference(folder(name), name, guidance, negative, latents=noise, output_type="latent")
    got = pushed(loaded, loaded.prompted(["a cat", "two"], guidance, negative))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    shown = reference(folder(name), name, guidance, negative, latents=noise)
    torch.testing.assert_close(images(loaded, got), shown, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "guidance"), [("dit", 1.0), ("dit", 4.0), ("ldm", 1.0), ("ddpm", 1.0)])
def test_a_model_of_classes_or_of_nothing_draws_what_its_pipeline_draws(folder, model, name, guidance):
    loaded = model(name)
    x = pushed(loaded, loaded.conditioned([1, 7], guidance) if name == "dit" else loaded)
    torch.testing.assert_close(images(loaded, x), reference(folder(name), name, guidance), rtol=0, atol=1e-5)


def test_every_tiny_pipeline_is_recognised_and_says_what_it_is(folder, model):
    for name in PIPELINES:
        index = json.loads((folder(name) / "model_index.json").read_text())
        assert model(name).family.startswith(f"{index['_class_name']} of diffusers, ")
    assert model("sd2").family.endswith("v_prediction")
    assert isinstance(model("flux").schedule, fs.Flow)
    assert model("flux").shape == (16, 16)


def seen(network):
    """The number of rows of each evaluation from here on."""
    rows = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    return rows, hook


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "sana", "pixart", "dit"])
def test_guidance_is_one_batched_evaluation_a_call(model, name):
    loaded = model(name)
    rows, hook = seen(loaded.network)
    for guidance in (1.0, 3.0):
        denoiser = loaded.conditioned(1, guidance) if name == "dit" else loaded.prompted("a cat", guidance)
        pushed(loaded, denoiser)
    hook.remove()
    assert rows == [2] * NFE + [4] * NFE


def test_a_text_is_encoded_once(model):
    loaded = model("sd1")
    calls = []
    hook = loaded.pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    pushed(loaded, loaded.prompted(["a cat", "two"], 3.0))
    hook.remove()
    assert len(calls) == 2  # the prompts, and what they are not


def test_with_batch_an_image_is_the_same_whatever_it_is_batched_with(folder):
    for name in ("sd1", "dit"):
        loaded = load_model(folder(name), batch=2)
        x = torch.randn(3, *loaded.shape)

        def denoiser(*which, loaded=loaded, name=name):
            texts = [("a cat", "two", "three")[i] for i in which]
            return loaded.conditioned(which, 2.0) if name == "dit" else loaded.prompted(texts, 2.0)

        whole = denoiser(0, 1, 2)(x, 500.0)
        for i in range(3):
            assert torch.equal(denoiser(i)(x[i : i + 1], 500.0), whole[i : i + 1])


@pytest.mark.parametrize("name", ["sd1", "dit"])
def test_samples_may_have_times_of_their_own(folder, name):
    loaded = load_model(folder(name), batch=1)
    x, times = torch.randn(2, *loaded.shape), torch.tensor([800.0, 30.5], dtype=torch.float64)
    denoiser = loaded.conditioned([3, 4], 2.0) if name == "dit" else loaded.prompted(["a", "b"], 2.0)
    apart = [denoiser(x, float(t))[i] for i, t in enumerate(times)]
    assert torch.equal(denoiser(x, times), torch.stack(apart))


@pytest.mark.parametrize("name", ["sd1", "flux", "dit"])
def test_a_scale_each_is_that_scale_alone(model, name):
    loaded, scales = model(name), torch.tensor([1.0, 2.0, 5.0])
    x, t = torch.randn(3, *loaded.shape), loaded.schedule.t_max / 2

    def asked(scale, which=slice(None)):
        if name == "dit":
            return loaded.conditioned([3, 4, 5][which], scale)
        return loaded.prompted(["a", "b", "c"][which], scale, "dog")

    each = asked(scales)
    assert each.schedule == loaded.schedule
    got = pickle.loads(pickle.dumps(each))(x, t)
    for i, scale in enumerate(scales.tolist()):
        alone = loaded.prompted("a") if name != "dit" and scale == 1 else asked(scale, slice(i, i + 1))
        torch.testing.assert_close(got[i : i + 1], alone(x[i : i + 1], t), rtol=0, atol=1e-5)


def test_one_prompt_for_all_is_that_prompt_for_each(model):
    loaded = model("sd3")
    x = torch.randn(3, *loaded.shape)
    one, each = loaded.prompted("a cat", 2.0, "dog"), loaded.prompted(["a cat"] * 3, 2.0, ["dog"] * 3)
    torch.testing.assert_close(one(x, 0.5), each(x, 0.5), rtol=0, atol=1e-6)


def test_a_model_as_it_is_has_no_prompt_and_no_class(model):
    for name in ("sd1", "dit"):
        loaded = model(name)
        x = torch.randn(2, *loaded.shape)
        if name == "sd1":
            assert torch.equal(loaded(x, 500.0), loaded.prompted("")(x, 500.0))
        else:
            label = torch.full((2,), 1000)
            output = loaded.network(x, timestep=torch.tensor([500, 500]), class_labels=label).sample[:, :4]
            node = loaded.schedule.node(500)
            expected = ((x - node.sigma * output) / node.alpha).clamp(-1, 1)  # its scheduler's config clips
            torch.testing.assert_close(loaded(x, 500.0), expected, rtol=0, atol=1e-5)


def test_denoisers_can_be_pickled_and_let_gradients_through(model):
    for name in ("sd1", "dit"):
        loaded = model(name)
        denoiser = loaded.prompted(["a", "b"], 2.0) if name == "sd1" else loaded.conditioned([0, 1], 2.0)
        x = torch.randn(2, *loaded.shape)
        assert torch.equal(pickle.loads(pickle.dumps(denoiser))(x, 300.0), denoiser(x, 300.0))
        assert not denoiser(x, 300.0).requires_grad
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser(x, 300.0).sum(), x)
        assert gradient.abs().sum() > 0


def test_half_precision_is_of_the_network_alone(folder):
    loaded = load_model(folder("sd1"), dtype=torch.bfloat16)
    assert loaded.network.dtype == torch.bfloat16
    x = torch.randn(2, *loaded.shape)
    assert loaded.prompted("a cat")(x, 500.0).dtype == torch.float32
    assert pushed(loaded, loaded.prompted("a cat", 2.0)).isfinite().all()


def test_what_is_given_to_a_model_must_be_its_own(model):
    sd, flux, dit, ddpm = model("sd1"), model("flux"), model("dit"), model("ddpm")
    x = torch.randn(3, *sd.shape)
    for wrong, message in (
        (lambda: sd.prompted(["a", "b"])(x, 5.0), r"one for all or one a sample, 3; got 2"),
        (lambda: sd.prompted("a", 0.5), "guidance must be 1, which is none, or larger, for all or each"),
        (lambda: sd.prompted("a", torch.tensor([2.0, 0.5])), "guidance must be 1"),
        (lambda: sd.prompted("a", torch.ones(2))(x, 5.0), "guidance must be one for all or one a sample, 3; got 2"),
        (lambda: sd.prompted(["a", "b"], torch.ones(3)), "prompts must be one for all or one a scale, 3; got 2"),
        (lambda: dit.conditioned(1, torch.ones(2))(x, 5.0), "guidance must be one for all or one a sample, 3; got 2"),
        (lambda: sd.prompted("a", 1.0, "b"), "has no effect, as guidance 1 is none"),
        (lambda: sd.prompted(["a", "b", "c"], 2.0, ["d", "e"]), "one for all or one a prompt, 3; got 2"),
        (lambda: sd.conditioned(1), "has no classes"),
        (lambda: ddpm.conditioned(1), "has no classes"),
        (lambda: dit.conditioned(1000), r"labels must be integers in \[0, 1000\); got 1000"),
        (lambda: dit.conditioned([0, 1])(x, 5.0), "one for all or one a sample"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="prompts must be a string"):
        sd.prompted([1])
    flux.network.register_to_config(guidance_embeds=True)
    try:
        assert flux.prompted("a", 3.5).options == {"guidance_scale": 3.5}
        with pytest.raises(ValueError, match="this model has its guidance built in"):
            flux.prompted("a", 3.5, "b")
    finally:
        flux.network.register_to_config(guidance_embeds=False)


def test_the_fingerprint_is_of_all_weights(folder, model, tmp_path):
    shutil.copytree(folder("sd1"), tmp_path / "other")
    tensors = load_file(tmp_path / "other" / CLIP)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / "other" / CLIP, {"format": "pt"})
    one, other = model("sd1"), load_model(tmp_path / "other")
    assert one.fingerprint == load_model(folder("sd1"), batch=3).fingerprint != other.fingerprint
    assert one.prompted("a").fingerprint != one.prompted("b").fingerprint


def test_names_of_classes_are_those_of_the_index(folder, tmp_path):
    shutil.copytree(folder("dit"), tmp_path / "dit")
    path = tmp_path / "dit" / "model_index.json"
    labels = {"0": "tench, Tinca tinca", "1": "goldfish"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    assert load_model(tmp_path / "dit").classes[:3] == ("tench", "goldfish", "2")


# What is refused


def _json(name, **changes):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return damage


def _cut(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return damage


def _pickled(folder):
    (folder / UNET).unlink()
    (folder / UNET).with_suffix(".bin").write_bytes(pickle.dumps(print))


def _sharded(folder):
    (folder / UNET).rename(folder / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _drop(folder):
    tensors = load_file(folder / CLIP)
    dropped = sorted(tensors)[0]
    save_file({name: each for name, each in tensors.items() if name != dropped}, folder / CLIP, {"format": "pt"})


def _gone(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


REFUSED = {
    "cut off": (_cut(UNET), "does not hold a whole UNet2DConditionModel"),
    "text cut off": (_cut(CLIP), "does not hold a whole CLIPTextModel"),
    "pickled": (_pickled, "diffusion_pytorch_model.bin, a format that can run code when it is opened"),
    "no weights": (_gone(UNET), "unet has no weights: put"),
    "no part": (_gone("vae"), "vae is missing: it is the folder of a AutoencoderKL"),
    "no tokenizer": (_gone("tokenizer/tokenizer.json"), "must hold vocab.json and merges.txt, or tokenizer.json"),
    "no levels": (_gone("scheduler/scheduler_config.json"), "is not a model folder: it has no scheduler_config"),
    "a tensor missing": (_drop, "is not in the weights"),
    "a name that leaves the folder": (_sharded, "names '../elsewhere.safetensors', which is no"),
    "a part that leaves the folder": (
        _json("model_index.json", **{"../unet": ["diffusers", "UNet2DConditionModel"], "vae": ["..", "x"]}),
        "names ...x, which is no class",
    ),
    "code of its own": (_json("model_index.json", _class_name=["pipe", "Mine"]), "names diffusers.['pipe', 'Mine']"),
    "a part with code": (_json("model_index.json", unet=["my_unet", "Mine"]), "names my_unet.Mine, which is no class"),
    "a function for a class": (_json("model_index.json", unet=["diffusers", "logging"]), "names diffusers.logging"),
    "a class chosen by code": (_json("model_index.json", tokenizer=["os", "system"]), "names os.system"),
    "a part not named": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
        "has no 'feature_extractor', which StableDiffusionPipeline needs",
    ),
    "layers without end": (_json("unet/config.json", layers_per_block=10**9), "more layers than the weights"),
    "text without end": (_json("text_encoder/config.json", num_hidden_layers=10**9), "more layers than the weights"),
    "words without end": (_json("text_encoder/config.json", vocab_size=10**11), "the configuration is of 800,000,000,"),
    "too wide": (_json("unet/config.json", block_out_channels=[4 * 10**6] * 2), "the configuration is of"),
    "a pipeline in a pipeline": (
        _json("model_index.json", vae=["diffusers", "DDPMPipeline"]), "'vae' is a pipeline in a pipeline"
    ),
    "kernels of the hub": (
        _json("text_encoder/config.json", text_config={"_attn_implementation": "evil/kernel"}),
        "it asks for 'evil/kernel', code from the hub, which is not run",
    ),
    "an adapter": (
        lambda folder: (folder / "text_encoder/adapter_config.json").write_text("{}"), "weights of an adapter",
    ),
    "quantized": (_json("unet/config.json", quantization_config={"load_in_8bit": True}), "its weights are quantized"),
    "distilled": (
        _json("model_index.json", scheduler=["diffusers", "LCMScheduler"]), "LCMScheduler is for models that are"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_damaged_or_hostile_folder_is_one_error(folder, tmp_path, kind, monkeypatch):
    shutil.copytree(folder("sd1"), tmp_path / "m")
    damage, message = REFUSED[kind]
    damage(tmp_path / "m")

    def fail(*_, **__):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, fail)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(tmp_path / "m")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_sizes_are_compared_before_anything_is_built(folder, tmp_path, monkeypatch):
    shutil.copytree(folder("sd1"), tmp_path / "m")
    _json("unet/config.json", block_out_channels=[4 * 10**6] * 2)(tmp_path / "m")
    build = diffusers.UNet2DConditionModel.__init__

    @functools.wraps(build)
    def built(self, *args, **kwargs):
        assert torch.empty(0).device.type == "meta"
        build(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "__init__", built)
    with pytest.raises(ValueError, match="the configuration is of"):
        load_model(tmp_path / "m")


def test_tables_that_a_network_computes_are_bounded_too(folder, tmp_path):
    shutil.copytree(folder("dit"), tmp_path / "m")
    _json("transformer/config.json", sample_size=10**6)(tmp_path / "m")
    with pytest.raises(ValueError, match="the configuration asks for tables of"):
        load_model(tmp_path / "m")


def test_only_half_precision_there_is_taken(folder, tmp_path, model):
    shutil.copytree(folder("sd1"), tmp_path / "m")
    for path in (tmp_path / "m" / UNET, tmp_path / "m" / CLIP, tmp_path / "m/vae/diffusion_pytorch_model.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert load_model(tmp_path / "m").fingerprint == model("sd1").fingerprint


def test_a_pipeline_that_cannot_be_asked_is_refused(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4,), layers_per_block=1, norm_num_groups=1, add_attention=False,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.LDMSuperResolutionPipeline(
        diffusers.VQModel(norm_num_groups=1, block_out_channels=(4,)), unet, diffusers.DDIMScheduler()
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LDMSuperResolutionPipeline cannot be asked from outside"):
        load_model(tmp_path)


def test_without_the_hub_it_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("Cannot reach the hub\nand more")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"no folder 'some/model' here, no whole copy of it in .* did not give it \(Cannot reach the hub\): .* "
        r"`hf download some/model --local-dir FOLDER`, and give that folder, which has model_index.json at the top",
    ):
        load_model("some/model")


def test_one_size_is_one_size(folder):
    with pytest.raises(ValueError, match="DDPMPipeline makes images of one size"):
        load_model(folder("ddpm"), size=(16, 16))
    assert load_model(folder("sd1"), size=(16, 8)).shape == (4, 16, 8)
