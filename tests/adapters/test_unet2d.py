"""The adapter: EDM's formula around somebody's network, and the loading of folders."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import fewstep as fs
from fewstep.adapters import EDMModel, load_model, packaged_models
from fewstep.adapters.unet2d_network import UNet2D
from fewstep.models import MODELS
from fewstep.runs import versions
from tiny import CLASSES, DAMAGES, SIDE, WEIGHTS, save_model

DIFFUSERS = {"dropout": 0.1}  # in training alone, and not of our network
LEVELS = (0.002, 0.3, 1.0, 7.7, 80.0)


class Network(torch.nn.Module):
    """F(x, time, label) = 2 x + label, remembering what it was given."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype), requires_grad=False)

    def forward(self, x, time, class_labels=None):
        self.time, self.labels, self.count = time, class_labels, len(x)
        shift = 0 if class_labels is None else class_labels.reshape(-1, 1, 1, 1).to(x)
        return SimpleNamespace(sample=self.weight * x + shift)


def model(network=None, **changes):
    facts = {"sigma_data": 0.4, "noise_scale": 250.0, "classes": ("a", "b", "c"), "null_label": 3, **changes}
    return EDMModel(network or Network(), (3, 4, 4), fs.EDM(), **facts)


def images(count=5, dtype=torch.float64, shape=(3, 4, 4)):
    return torch.randn(count, *shape, dtype=torch.float64).to(dtype)


# The formula


@pytest.mark.parametrize("t", LEVELS)
def test_preconditioning_is_that_of_table_1(t):
    x, s, label = images() * t, 0.4, 1
    got = model().conditioned(label)(x, t)
    c_skip, c_out, c_in = s**2 / (t**2 + s**2), t * s / (t**2 + s**2) ** 0.5, (t**2 + s**2) ** -0.5
    # A dozen roundings in float64, the sum being no larger than its terms.
    torch.testing.assert_close(got, c_skip * x + c_out * (2 * c_in * x + label), rtol=0, atol=12 * 2**-53 * 6 * t)


@pytest.mark.parametrize("t", LEVELS)
def test_network_is_told_the_whole_noise_level(t):
    """In float32; diffusers truncates Python numbers to integers, hence a tensor."""
    network = Network()
    model(network)(images(), t)
    assert isinstance(network.time, torch.Tensor)
    assert network.time.item() == pytest.approx(250 * math.log(t), rel=2**-24)


def test_the_packaged_network_is_called_as_its_card_says():
    cifar, t, label = load_model(), 0.7, torch.tensor([5, 6])
    x = torch.randn(2, *cifar.shape) * t
    norm = (t**2 + 0.5**2) ** 0.5

    def reference(time):
        output = cifar.network(pixel_unshuffle(x / norm, 2), time, class_labels=label)
        return (0.5 / norm) ** 2 * x + t * 0.5 / norm * pixel_shuffle(output, 2)

    got = cifar.conditioned(label)(x, t)
    # Convolutions sum up to 9 * 288 numbers of size 1 in float32.
    rounding = 9 * 288 * 2**-24
    assert (got - reference(torch.tensor(4 * math.log(t)))).abs().max() <= rounding
    assert (got - reference(torch.tensor(int(4 * math.log(t))))).abs().max() > rounding


def test_with_a_patch_the_network_sees_every_square_of_pixels_as_channels():
    """An affine network commutes with folding; what it is given does not."""

    class Folded(Network):
        def forward(self, x, time, class_labels=None):
            self.given = x
            return super().forward(x, time, class_labels)

    network, x = Folded(), images()
    got = model(network, patch=2)(x, 1.0)
    assert torch.equal(got, model()(x, 1.0))
    assert network.given.shape == (5, 12, 2, 2)
    # Channel c p^2 + i p + j is pixel (i, j) of the square in colour c.
    scale = (1 + 0.4**2) ** -0.5
    torch.testing.assert_close(network.given[:, 3], x[:, 0, 1::2, 1::2] * scale, rtol=0, atol=2**-50)


@pytest.mark.parametrize(("labels", "given"), [(2, [2] * 5), ([0, 1, 2, 1, 0], [0, 1, 2, 1, 0])])
def test_labels_reach_the_network(labels, given):
    network = Network()
    model(network).conditioned(labels)(images(), 1.0)
    assert network.labels.tolist() == given


def test_unconditional_is_the_null_label():
    network = Network()
    model(network)(images(), 1.0)
    assert network.labels.tolist() == [3] * 5


def test_a_model_without_classes_is_given_no_label():
    network = Network()
    model(network, classes=(), null_label=None)(images(), 1.0)
    assert network.labels is None


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_from_the_unconditional(scale):
    x, t, m = images(), 0.7, model()
    plain, conditioned = m(x, t), m.conditioned([0, 1, 2, 1, 0])(x, t)
    got = m.conditioned([0, 1, 2, 1, 0], scale)(x, t)
    # Three roundings in float64 of numbers below 10 (1 + scale).
    torch.testing.assert_close(got, plain + scale * (conditioned - plain), rtol=0, atol=3 * 2**-53 * 10 * (1 + scale))
    assert not torch.equal(plain, conditioned)


@pytest.mark.parametrize("labels", [3, -1, [0, 7], 1.0, torch.tensor([0.5]), "horse", ["horse"], [[0, 1]], None])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\); got"):
        model().conditioned(labels)


@pytest.mark.parametrize("batch", [0, 2.5])
def test_a_wrong_batch_is_refused_at_the_door(batch):
    with pytest.raises(ValueError, match=f"batch must be an integer of at least 1, .*; got {batch}"):
        load_model(batch=batch)


def test_a_wrong_number_of_labels_is_refused():
    with pytest.raises(ValueError, match=r"one for all or one a sample, shape \(5,\); got shape \(2,\)"):
        model().conditioned([0, 1])(images(5), 1.0)


def test_classes_and_guidance_need_a_model_that_has_them():
    with pytest.raises(ValueError, match="has no classes"):
        model(classes=()).conditioned(0)
    with pytest.raises(ValueError, match="use guidance=1"):
        model(null_label=None).conditioned(0, 2.0)
    with pytest.raises(ValueError, match="scale must be finite"):
        model().conditioned(0, math.nan)


# Types and batches


@pytest.mark.parametrize("inner", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_answer_has_the_type_of_x(dtype, inner):
    t = 0.7
    x = images(dtype=dtype)
    got = model(Network(inner))(x, t)
    assert got.dtype == dtype
    # D is c_skip x + c_out (2 c_in x + 3): some ten roundings in the coarser type, of numbers below 6.
    eps = max(torch.finfo(dtype).eps, torch.finfo(inner).eps)
    torch.testing.assert_close(got.double(), model()(x.double(), t), rtol=0, atol=5 * eps * 6)


@pytest.fixture(scope="module")
def cifar():
    return load_model(batch=4)


def test_with_batch_an_image_is_the_same_whatever_it_is_batched_with(cifar):
    x = torch.randn(11, *cifar.shape, generator=torch.Generator().manual_seed(1)) * 2
    labels = [i % 10 for i in range(11)]
    whole = cifar.conditioned(labels, 1.5)(x, 2.0)
    for size in (1, 3, 4, 7):
        parts = [cifar.conditioned(labels[i : i + size], 1.5)(x[i : i + size], 2.0) for i in range(0, 11, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_batch_changes_rounding_only(cifar):
    x = torch.randn(11, *cifar.shape, generator=torch.Generator().manual_seed(1)) * 2
    labels = [i % 10 for i in range(11)]
    free = dataclasses.replace(cifar, batch=None)
    difference = free.conditioned(labels)(x, 2.0) - cifar.conditioned(labels)(x, 2.0)
    # Convolutions sum up to 9 * 192 numbers of size 1 in float32, in another order.
    assert difference.abs().max() <= 9 * 192 * 2**-24


def test_the_network_sees_exactly_batch_images():
    network = Network()
    got = model(network, batch=4)(images(5), 1.0)
    assert network.count == 4
    assert got.shape == (5, 3, 4, 4)


# Loading


def test_the_packaged_model_is_loaded_in_float32_with_the_weights_of_its_file():
    cifar = load_model()
    stored = load_file(MODELS / "cifar32" / WEIGHTS)
    loaded = cifar.network.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(loaded[name].dtype == torch.float32 for name in loaded)
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)
    assert not cifar.network.training
    assert not any(p.requires_grad for p in cifar.network.parameters())


def test_the_packaged_model_is_described_by_its_files():
    assert list(packaged_models()) == ["cifar32"]
    cifar = load_model("cifar32")
    assert cifar.shape == (3, 32, 32)
    assert cifar.schedule == fs.EDM(0.002, 80.0, data_std=0.5)
    assert (cifar.sigma_data, cifar.noise_scale, cifar.null_label) == (0.5, 4, 10)
    assert cifar.classes[0] == "airplane"
    assert len(cifar.classes) == 10


def test_the_packaged_model_denoises():
    """Closer to a smooth image than the noise is, by far more than shrinking it towards 0 would be."""
    cifar = load_model()
    ramp = torch.linspace(-0.8, 0.8, 32).expand(8, 3, 32, 32)
    t = 0.5
    noisy = ramp + t * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    error = (cifar(noisy, t) - ramp).square().mean()
    shrunk = noisy * (0.5**2 / (0.5**2 + t**2)) - ramp
    assert error < shrunk.square().mean() / 2


def test_the_packaged_model_is_below_15_megabytes():
    assert (MODELS / "cifar32" / WEIGHTS).stat().st_size < 15e6


def test_a_folder_is_loaded_like_a_packaged_model(tmp_path):
    folder = save_model(tmp_path / "tiny")
    tiny = load_model(folder, dtype=torch.float64)
    assert tiny.shape == (3, SIDE, SIDE)
    assert tiny.classes == tuple(CLASSES)
    assert tiny.schedule.sigma_max == 20.0
    assert next(tiny.network.parameters()).dtype == torch.float64


def test_a_folder_without_a_card_is_taken_for_edm_without_classes(tmp_path):
    folder = save_model(tmp_path / "tiny")
    (folder / "fewstep.json").unlink()
    tiny = load_model(folder)
    assert (tiny.schedule, tiny.sigma_data, tiny.noise_scale) == (fs.EDM(0.002, 80.0, data_std=0.5), 0.5, 250.0)
    assert tiny.classes == ()
    assert tiny.null_label is None


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, kind):
    folder = save_model(tmp_path / "tiny")
    damage, message = DAMAGES[kind]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(folder)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["another width", "a tensor missing", "too many layers", "layers without end"])
@pytest.mark.parametrize("whose", ["ours", "diffusers"])
def test_sizes_are_compared_before_anything_is_built(tmp_path, monkeypatch, kind, whose):
    network = UNet2D if whose == "ours" else pytest.importorskip("diffusers").UNet2DModel
    folder = save_model(tmp_path / "tiny", **({} if whose == "ours" else DIFFUSERS))
    damage, _ = DAMAGES[kind]
    damage(folder)
    build = network.__init__

    def built(self, *args, **kwargs):
        assert torch.empty(0).device.type == "meta"
        build(self, *args, **kwargs)

    monkeypatch.setattr(network, "__init__", built)
    with pytest.raises(ValueError, match="does not hold a whole UNet2DModel") as caught:
        load_model(folder)
    assert "AssertionError" not in str(caught.value)


def test_weights_that_are_no_real_numbers_are_refused(tmp_path):
    folder = save_model(tmp_path / "tiny")
    tensors = load_file(folder / WEIGHTS)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(torch.int32)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"{name} is of I32 in the weights, and must be of F16, BF16, F32, F64"):
        load_model(folder)


def test_what_the_small_network_does_not_cover_is_loaded_by_diffusers(tmp_path):
    """With the same weights: its answers are the same, to the bit."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    ours, theirs = load_model(save_model(tmp_path / "a")), load_model(save_model(tmp_path / "b", **DIFFUSERS))
    assert [type(each.network).__name__ for each in (ours, theirs)] == ["UNet2D", "UNet2DModel"]
    assert ours.fingerprint == theirs.fingerprint
    assert ["diffusers" in versions(each.network) for each in (ours, theirs)] == [False, True]
    x = images(3, torch.float32, (3, SIDE, SIDE))
    assert torch.equal(ours.conditioned([0, 1, 2])(x, 2.0), theirs.conditioned([0, 1, 2])(x, 2.0))


def test_the_packaged_model_draws_what_it_draws_with_the_network_of_diffusers(monkeypatch):
    """To the bit, with its layout in memory and its batches."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    ours = load_model(batch=2)
    monkeypatch.setattr("fewstep.adapters.unet2d.covers", lambda config: False)
    theirs = load_model(batch=2)
    noise = fs.unit_noise(range(3), ours.shape)
    drawn = [fs.sample(each.conditioned([0, 4, 9], 2.0), noise, nfe=3) for each in (ours, theirs)]
    assert type(ours.network) is not type(theirs.network)
    assert torch.equal(*drawn)


def test_diffusers_and_the_compiler_of_torch_are_not_imported_for_the_packaged_model():
    code = (
        "import sys; sys.modules.update(diffusers=None, transformers=None); from fewstep.adapters import load_model; "
        "assert load_model().classes; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_that_a_type_cannot_hold_are_told(tmp_path):
    folder = save_model(tmp_path / "tiny")
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_out.bias"][0] = 1e5
    save_file(tensors, folder / WEIGHTS)
    assert load_model(folder).null_label == 3
    with pytest.raises(ValueError, match=r"conv_out\.bias holds NaN or inf as torch\.float16"):
        load_model(folder, dtype=torch.float16)


def test_classes_need_a_network_that_has_them(tmp_path):
    folder = save_model(tmp_path / "tiny")
    tensors = load_file(folder / WEIGHTS)
    save_file({name: each for name, each in tensors.items() if not name.startswith("class_")}, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_class_embeds": None}))
    with pytest.raises(ValueError, match="classes must be at most 0, which the network has"):
        load_model(folder)


def test_a_network_that_answers_in_other_channels_is_refused(tmp_path):
    folder = save_model(tmp_path / "tiny")
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {**tensors, **{f"conv_out.{k}": tensors[f"conv_out.{k}"][[0, 1, 2] * 2] for k in ("weight", "bias")}},
        folder / WEIGHTS,
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "out_channels": 6}))
    with pytest.raises(ValueError, match="as many channels out as in; got 3 in, 6 out"):
        load_model(folder)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model 'cifar61': give a folder, .*: cifar32"):
        load_model("cifar61")


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "tiny")
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(print))

    def fail(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail)
    load_model(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="safe_serialization=True"):
        load_model(folder)


def test_an_unusable_device_is_refused_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=r"^device 'cuda' cannot be used here \(.+\): use 'cpu'$"):
        load_model(device="cuda")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        load_model(device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_answers_as_on_the_cpu():
    x = torch.randn(3, 3, 32, 32)
    with torch.backends.cudnn.flags(allow_tf32=False):
        got = load_model(device="cuda").conditioned([0, 1, 2])(x.cuda(), 1.0)
    # As for batches, with room for other kernels.
    atol = 10 * 9 * 192 * 2**-24
    torch.testing.assert_close(got.cpu(), load_model().conditioned([0, 1, 2])(x, 1.0), rtol=0, atol=atol)


def test_the_fingerprint_is_of_the_weights_and_the_preconditioning():
    assert model().fingerprint == model(batch=3).fingerprint
    other = Network()
    other.weight.data += 1
    assert len({each.fingerprint for each in (model(), model(other), model(sigma_data=0.5), model(patch=2))}) == 4


def test_models_and_their_conditions_carry_their_schedule_and_can_be_pickled(tmp_path):
    small, x = load_model(save_model(tmp_path / "m")), images(3, torch.float32, (3, 8, 8))
    for denoiser in (small, small.conditioned(1), small.conditioned([0, 1, 2], torch.tensor([1.0, 2.0, 3.0]))):
        there = pickle.loads(pickle.dumps(denoiser))
        assert there.schedule == denoiser.schedule == small.schedule
        assert torch.equal(there(x, 2.0), denoiser(x, 2.0))
        got = fs.sample(denoiser, x, nfe=2)
        assert torch.equal(got, fs.sample(denoiser, x, nfe=2, schedule=small.schedule))


def test_guidance_may_be_one_a_sample(cifar):
    x, scales = images(3, torch.float32, (3, 32, 32)), [1.0, 2.0, 4.0]
    whole = cifar.conditioned([0, 1, 2], torch.tensor(scales))(x, 2.0)
    for i, scale in enumerate(scales):
        assert torch.equal(whole[i : i + 1], cifar.conditioned([i], scale)(x[i : i + 1], 2.0))


def test_one_call_with_times_of_each_image_is_as_many_calls_apart(cifar):
    """To the bit, as it evaluates by 8: images in different phases of their runs share the network's calls."""
    x = torch.randn(5, *cifar.shape)
    t = torch.tensor([80.0, 7.3, 1.0, 0.2, 0.002], dtype=torch.float64)
    for denoiser in (cifar, cifar.conditioned(7), cifar.conditioned(7, 2.0)):
        apart = [denoiser(x[i : i + 1], time) for i, time in enumerate(t.tolist())]
        assert torch.equal(denoiser(x, t), torch.cat(apart))


def test_the_network_is_told_each_images_own_level():
    network, t = Network(), torch.tensor([0.002, 0.3, 1.0, 7.7, 80.0], dtype=torch.float64)
    x = images()
    got = model(network)(x, t)
    assert network.time.tolist() == pytest.approx([250 * math.log(time) for time in t.tolist()], rel=2**-24)
    apart = [model()(x[i : i + 1], time) for i, time in enumerate(t.tolist())]
    assert torch.equal(got, torch.cat(apart))
