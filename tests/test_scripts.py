"""The training scripts, on a network and a data set small enough for seconds."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra train")
import typer
from typer.testing import CliRunner

import fewstep as fs
from fewstep.adapters import EDMModel, load_model
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import CLASSES, load_images, to_unit_range
from fewstep.bench.metrics import Moments, frechet_distance
from fewstep.pictures import pixels, read
from tiny import save_model

SCRIPTS = Path(__file__).parents[1] / "training"
MODEL = """
name = "tiny"
seed = 3
[network]
patch = 4
block_out_channels = [8, 8]
layers_per_block = 1
attention = [false, false]
attention_head_dim = 8
norm_num_groups = 4
resnet_time_scale_shift = "scale_shift"
[noise]
mean = -1.2
std = 1.2
sigma_data = 0.5
scale = 250
[training]
images = 48
batch = 8
learning_rate = 1e-3
matrix_rate = 0
weight_decay = 0.01
warmup = 16
decay = 16
label_dropout = 0.1
typical = 1
ema = [0.05, 0.2]
precision = "float32"
checkpoint_every = 16
"""
CLASSIFIER = """
seed = 1
widths = [4, 8, 8]
held_out = 500
epochs = 1
batch = 50
learning_rate = 0.1
momentum = 0.9
weight_decay = 5e-4
label_smoothing = 0.1
shift = 2
precision = "float32"
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_model():
    return script("train_model")


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    images = generator.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, 10, 600))
    return path


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(MODEL)
    return path


@pytest.fixture
def classifier(data, tmp_path):
    """The folder of a tiny one."""
    config = tmp_path / "classifier.toml"
    config.write_text(CLASSIFIER)
    app = typer.Typer()
    app.command()(script("train_classifier").main)
    run(app, config, "--to", tmp_path / "classifier", "--data", data)
    return tmp_path / "classifier"


def run(app, *arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("matrix_rate", ["0", "2e-3"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(train_model, data, config, tmp_path, matrix_rate):
    model = MODEL.replace("matrix_rate = 0", f"matrix_rate = {matrix_rate}")
    config.write_text(model)
    run(train_model.app, "train", config, "--out", tmp_path / "whole", "--data", data)
    for images in ("16", "48"):
        config.write_text(model.replace("images = 48", f"images = {images}").replace("decay = 16", "decay = 1"))
        run(train_model.app, "train", config, "--out", tmp_path / "parts", "--data", data)
    config.write_text(model.replace("decay = 16", "decay = 1"))
    run(train_model.app, "train", config, "--out", tmp_path / "same", "--data", data)
    parts, same, whole = (weights(tmp_path / name) for name in ("parts", "same", "whole"))
    assert parts["step"] == same["step"] == whole["step"] == 6
    for key in ("0.05", "0.2"):
        assert all(torch.equal(a, b) for a, b in zip(parts["averages"][key], same["averages"][key], strict=True))
    # The decay of the learning rate does make a difference.
    assert not torch.equal(whole["averages"]["0.05"][0], same["averages"]["0.05"][0])


def test_an_exported_average_is_a_model(train_model, data, config, tmp_path):
    run(train_model.app, "train", config, "--out", tmp_path / "run", "--data", data)
    run(train_model.app, "export", tmp_path / "run", "--ema", "0.2", "--to", tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.shape == (3, 32, 32)
    assert model.classes == CLASSES
    average = weights(tmp_path / "run")["averages"]["0.2"]
    for (name, got), wanted in zip(model.network.named_parameters(), average, strict=True):
        if name != "time_embedding.linear_1.weight":
            assert torch.equal(got, wanted.half().float())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "6 steps (48 images)" in card
    assert f"{sum(p.numel() for p in model.network.parameters()):,}\nparameters" in card
    got = fs.sample(model.conditioned(3, 2.0), fs.unit_noise([0], model.shape), nfe=3, schedule=model.schedule)
    assert got.isfinite().all()


def test_muon_trains_the_matrices_inside_and_adamw_the_rest(train_model, config):
    """A first step changes a matrix (m, n) by its rate, times 0.2 sqrt(max(m, n)), times nearly orthogonal directions.

    Jordan et al. (2024): its polynomial leaves singular values in [0.7, 1.2], or less of the very smallest; a tenth
    more for its bfloat16.
    """
    config.write_text(MODEL.replace("matrix_rate = 0", "matrix_rate = 2e-3").replace("decay = 0.01", "decay = 0"))
    settings = train_model.Config.read(config)
    torch.manual_seed(0)
    network = settings.network.build().to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    train_model.Optimizers(network, settings.training).step(share=0.5)
    inside = 0
    for name, parameter in network.named_parameters():
        change = parameter.detach() - before[name]
        if parameter.ndim > 1 and not name.startswith(("conv_in", "conv_out", "class_embedding")):
            inside += 1
            matrix = change.permute(0, 2, 3, 1).flatten(1) if change.ndim == 4 else change
            values = torch.linalg.svdvals(matrix) / (0.5 * 2e-3 * 0.2 * math.sqrt(max(matrix.shape)))
            assert values.median() > 0.6, name
            assert values.max() < 1.3, name
        else:  # AdamW's first step is the sign of the gradient
            assert torch.allclose(change, -0.5e-3 * parameter.grad.sign(), atol=1e-6), name
    assert inside > 20


def test_attention_by_products_is_the_same_attention(train_model, config):
    torch.manual_seed(0)
    network = train_model.Config.read(config).network.build().eval()
    x, time, labels = torch.randn(3, 48, 8, 8), torch.tensor([-500.0, 0.0, 700.0]), torch.tensor([0, 4, 10])
    with torch.no_grad():
        fused = network(x, time, class_labels=labels).sample
        train_model.unfuse_attention(network)
        plain = network(x, time, class_labels=labels).sample
    processors = {type(module.processor).__name__ for module in network.modules() if hasattr(module, "processor")}
    assert processors == {"AttnProcessor"}
    assert torch.allclose(fused, plain, rtol=0, atol=1e-5 * fused.abs().max())


def test_a_run_begins_from_an_exported_model(train_model, data, config, tmp_path):
    """With no images to train on, what it exports is what it began from; its card says so."""
    run(train_model.app, "train", config, "--out", tmp_path / "first", "--data", data)
    run(train_model.app, "export", tmp_path / "first", "--to", tmp_path / "start")
    config.write_text(MODEL.replace("seed = 3", "seed = 4").replace("images = 48", "images = 0"))
    second = ("train", config, "--out", tmp_path / "second", "--data", data)
    run(train_model.app, *second, "--initial", tmp_path / "start")
    start = load_model(tmp_path / "start")
    for got, wanted in zip(weights(tmp_path / "second")["averages"]["0.2"], start.network.parameters(), strict=True):
        assert torch.equal(got, wanted)
    config.write_text(MODEL.replace("seed = 3", "seed = 4"))
    run(train_model.app, *second, "--initial", tmp_path / "start")
    run(train_model.app, "export", tmp_path / "second", "--to", tmp_path / "model")
    assert "6 steps (48 images), begun from start |" in (tmp_path / "model" / "README.md").read_text()
    result = CliRunner().invoke(train_model.app, [str(a) for a in second])
    assert result.exit_code == 2
    assert "begun with start" in result.output


def test_a_run_does_not_begin_from_another_network(train_model, data, config, tmp_path):
    run(train_model.app, "train", config, "--out", tmp_path / "first", "--data", data)
    run(train_model.app, "export", tmp_path / "first", "--to", tmp_path / "start")
    config.write_text(MODEL.replace("[8, 8]", "[8, 16]"))
    for initial in (tmp_path / "start", tmp_path / "first"):
        arguments = ["train", config, "--out", tmp_path / "second", "--data", data, "--initial", initial]
        result = CliRunner().invoke(train_model.app, [str(a) for a in arguments])
        assert result.exit_code == 2
        assert "is not of this network" in result.output


def test_typical_are_the_images_of_each_class_that_the_classifier_is_surest_of(train_model, data):
    """For logits that are sums over columns of pixels, with and without the flip, the surest are known."""

    def classifier(x):
        return torch.stack([x[:, 0, :, i].sum(1) for i in range(10)], dim=1)

    images, labels = load_images(data)
    chosen = train_model.typical(images, labels, 0.1, classifier)
    x = to_unit_range(images)[:, 0].sum(1)
    sure = ((x[:, :10] + x.flip(-1)[:, :10]) / 2).softmax(1)[torch.arange(len(labels)), labels]
    assert torch.equal(chosen, chosen.unique())
    for label in range(10):
        members = sure[labels == label]
        kept = sure[chosen[labels[chosen] == label]]
        assert len(kept) == math.ceil(0.1 * len(members))
        torch.testing.assert_close(kept.sort(descending=True).values, members.sort(descending=True).values[: len(kept)])


def test_a_run_on_typical_images_names_the_classifier_that_told_them(train_model, data, config, classifier, tmp_path):
    command = ["train", config, "--out", tmp_path / "run", "--data", data]
    config.write_text(MODEL.replace("typical = 1", "typical = 0.2"))
    run(train_model.app, *command, "--selector", classifier)
    run(train_model.app, "export", tmp_path / "run", "--to", tmp_path / "tiny")
    assert "of each class the 20% that classifier is surest of" in (tmp_path / "tiny" / "README.md").read_text()
    result = CliRunner().invoke(train_model.app, [str(a) for a in command])
    assert result.exit_code == 2
    assert "--selector" in result.output
    config.write_text(MODEL)
    result = CliRunner().invoke(train_model.app, [str(a) for a in (*command, "--selector", classifier)])
    assert result.exit_code == 2
    assert "100%" in result.output
    result = CliRunner().invoke(train_model.app, [str(a) for a in command])
    assert result.exit_code == 2
    assert "begun with classifier" in result.output


def test_the_loss_is_the_denoisers_error_under_the_weight_of_edm(train_model, data, config):
    """(sigma^2 + s^2) / (sigma s)^2 |D(x; sigma) - x_0|^2, Karras et al. (2022), Table 1, with the adapter's D."""
    settings = train_model.Config.read(config)
    images, labels = load_images(data)
    clean, wanted, sigma, noise = train_model.make_batch(images, labels, settings, step=5)
    network = settings.network.build()
    loss = train_model.edm_loss(network, settings, clean, wanted, sigma, noise)
    model = EDMModel(network, (3, 32, 32), fs.EDM(), 0.5, 250.0, CLASSES, 10, patch=4)
    unfold = torch.nn.functional.pixel_shuffle
    errors = []
    with torch.no_grad():
        for x0, label, level, n in zip(
            unfold(clean, 4), wanted.tolist(), sigma.tolist(), unfold(noise, 4), strict=True
        ):
            x = (x0 + level * n)[None]
            denoised = model(x, level) if label == 10 else model.conditioned(label)(x, level)
            errors.append((level**2 + 0.25) / (level * 0.5) ** 2 * (denoised[0] - x0).square().mean())
    # Float32 convolutions over up to 9 * 48 terms; the weight magnifies D's rounding by 1 / sigma where sigma is small.
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-3)


def test_batches_follow_the_seed_and_the_step(train_model, data, config):
    settings = train_model.Config.read(config)
    images, labels = load_images(data)
    a, b, c = (train_model.make_batch(images, labels, settings, step) for step in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_noise_levels_have_the_moments_of_their_distribution(train_model, data, config):
    count = 20_000
    config.write_text(MODEL.replace("batch = 8", f"batch = {count}"))
    settings = train_model.Config.read(config)
    images, labels = load_images(data)
    logs = train_model.make_batch(images, labels, settings, step=5)[2].double().log()
    # Five standard errors; that of a Gaussian's variance is sqrt(2 / N) of it.
    assert logs.mean().item() == pytest.approx(-1.2, abs=5 * 1.2 / count**0.5)
    assert logs.var().item() == pytest.approx(1.2**2, rel=5 * (2 / count) ** 0.5)


def test_averages_have_the_length_they_claim(train_model):
    """Averaging the step's number gives the mean age of the weights: that share of the run."""
    network = torch.nn.Linear(1, 1, bias=False)
    averages = train_model.Averages([0.05, 0.2], network)
    steps = 2000
    for step in range(1, steps + 1):
        torch.nn.init.constant_(network.weight, step)
        averages.update(network, step)
    for length in (0.05, 0.2):
        age = 1 - averages.weights[str(length)][0].item() / steps
        # Exact in the limit of many steps; one step of the run is 1 / 2000. Float32 sums of 2000 terms.
        assert age == pytest.approx(length, abs=2e-3)


@pytest.mark.parametrize("change", [("seed = 3", "seed = 4"), ("mean = -1.2", "mean = 1.2"), ("batch = 8", "batch = 4"),
                                    ("[0.05, 0.2]", "[0.2]"), ("matrix_rate = 0", "matrix_rate = 1e-3"),
                                    ("[8, 8]", "[8, 16]")])  # fmt: skip
def test_a_run_does_not_go_on_under_another_configuration(train_model, data, config, tmp_path, change):
    arguments = ["train", str(config), "--out", str(tmp_path / "run"), "--data", str(data)]
    run(train_model.app, *arguments)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert change[0] in MODEL
    config.write_text(MODEL.replace(*change))
    result = CliRunner().invoke(train_model.app, arguments)
    assert result.exit_code == 2
    assert "was begun with another" in result.output
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_card_says_how_many_images_its_loss_is_of(train_model, data, config, tmp_path):
    config.write_text(re.sub("checkpoint_every = [0-9]+", "checkpoint_every = 32", MODEL))
    run(train_model.app, "train", config, "--out", tmp_path / "run", "--data", data)
    run(train_model.app, "export", tmp_path / "run", "--to", tmp_path / "model")
    assert ", over the last 16 images" in (tmp_path / "model" / "README.md").read_text()  # 48 = 32 + 16


def test_a_run_without_a_loss_is_not_exported(train_model, data, config, tmp_path):
    run(train_model.app, "train", config, "--out", tmp_path / "run", "--data", data, "--minutes", "0")
    result = CliRunner().invoke(train_model.app, ["export", str(tmp_path / "run"), "--to", str(tmp_path / "model")])
    assert result.exit_code == 2
    assert "no log.jsonl yet" in result.output
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("wrong", ['seed = 3\nspeed = "fast"', "seed = 3\n[extra]\na = 1"])
def test_an_unknown_key_is_refused(train_model, config, data, tmp_path, wrong):
    config.write_text(MODEL.replace("seed = 3", wrong))
    result = CliRunner().invoke(
        train_model.app, ["train", str(config), "--out", str(tmp_path / "run"), "--data", str(data)]
    )
    assert result.exit_code == 2
    assert "unexpected keyword" in result.output


def test_a_classifier_is_trained_saved_and_loaded(data, classifier):
    network = load_classifier(classifier)
    images, _ = load_images(data)
    x = to_unit_range(images[:7])
    assert network.features(x).shape == (7, 8)
    assert torch.equal(network(x), network.head(network.features(x)))
    assert "Accuracy on 500 training images held out" in (classifier / "README.md").read_text()


@pytest.fixture
def evaluate_model(monkeypatch):
    module = script("evaluate_model")
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "SCALES", (1.0, 3.0))
    return module


@pytest.fixture
def trained(train_model, data, config, tmp_path):
    """A tiny model at 32 x 32."""
    run(train_model.app, "train", config, "--out", tmp_path / "run", "--data", data)
    run(train_model.app, "export", tmp_path / "run", "--to", tmp_path / "tiny")
    return tmp_path / "tiny"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npz")}


def test_a_measurement_goes_on_where_it_stopped(evaluate_model, trained, tmp_path):
    measured = ("measure", trained, "--nfe", 2)
    run(evaluate_model.app, *measured, "--n", 10, "--out", tmp_path / "parts")
    before = content(tmp_path / "parts")
    run(evaluate_model.app, *measured, "--n", 30, "--out", tmp_path / "parts")
    run(evaluate_model.app, *measured, "--n", 30, "--out", tmp_path / "whole")
    parts = content(tmp_path / "parts")
    assert len(before) == 1
    assert before.items() <= parts.items()
    for name in content(tmp_path / "whole"):
        with np.load(tmp_path / "parts" / name) as a, np.load(tmp_path / "whole" / name) as b:
            assert sorted(a) == ["features", "labels", "predicted"]
            assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_measurement_of_other_weights_is_refused(evaluate_model, train_model, trained, data, tmp_path):
    out, card = tmp_path / "out", trained / "README.md"
    run(evaluate_model.app, "measure", trained, "--nfe", 2, "--n", 10, "--out", out)
    run(train_model.app, "export", tmp_path / "run", "--ema", "0.2", "--to", trained)
    before, exported = content(out), card.read_bytes()
    for command in (["measure", trained, "--nfe", 2, "--n", 20], ["report", trained, "--data", data]):
        result = CliRunner().invoke(evaluate_model.app, [str(a) for a in (*command, "--out", out)])
        assert result.exit_code == 2
        assert "of other weights" in " ".join(result.output.replace("│", " ").split())
    assert content(out) == before
    assert card.read_bytes() == exported


def test_the_report_stands_in_the_card_once_with_the_figures_of_the_library(evaluate_model, trained, data, tmp_path):
    small = save_model(tmp_path / "small", CLASSES)
    card, out = trained / "README.md", tmp_path / "out"
    exported = card.read_text()
    run(evaluate_model.app, "guidance", trained, "--nfe", 2, "--n", 20, "--out", out)
    for model in (small, trained):
        run(evaluate_model.app, "measure", model, "--nfe", 2, "--n", 20, "--out", out)
    for _ in range(2):
        run(evaluate_model.app, "report", trained, "--data", data, "--out", out)
    told = card.read_text()
    assert told.startswith(exported)
    assert told.count("## Measured") == 1
    by_heun, by_dpm = re.findall(r"^20 images, 2 calls of ([\w+ -]+):\n\n((?:\|.*\n)+)", told, re.M)
    plain, guided = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for _, table in (by_heun, by_dpm)
    )
    assert (by_heun[0], by_dpm[0]) == ("Heun", "DPM-Solver++ 2M")
    assert [row[0] for row in plain] == ["small", "tiny", "training images", "training images at 8×8"]
    assert [row[:2] for row in guided] == [["tiny", "1"], ["tiny", "3"], ["training images", "–"]]
    assert guided[2] == plain[2] != plain[3]
    model, classifier = load_model(trained), load_classifier()
    seeds = range(20)
    drawn = fs.sample(
        model.conditioned([seed % 10 for seed in seeds], 3.0),
        fs.unit_noise(seeds, model.shape),
        nfe=2,
        solver=fs.DPMSolverPP(order=2),
        schedule=model.schedule,
    )
    images, _ = load_images(data)
    whole = Moments.of_images(to_unit_range(images), classifier)
    distance = frechet_distance(Moments.of_images(drawn.clamp(-1, 1), classifier), whole)
    # Two decimals; batches of other sizes differ in the last bits of float32.
    assert float(guided[1][2]) == pytest.approx(distance, abs=0.006, rel=1e-4)
    right = sum(classifier(drawn.clamp(-1, 1)).argmax(1) == torch.arange(20) % 10)
    assert guided[1][3] == f"{right / 20:.1%}"


def test_the_grid_has_a_row_for_each_class(evaluate_model, trained, tmp_path):
    run(evaluate_model.app, "grid", trained, "--to", tmp_path / "grid.png", "--nfe", 2)
    model = load_model(trained)
    got = read(tmp_path / "grid.png")
    # Pixels of 2 x 2, with gaps of 2 between images.
    assert got.shape == (10 * 66 - 2, 10 * 66 - 2, 3)
    wanted = fs.sample(
        model.conditioned(7, 2.0), fs.unit_noise([73], model.shape), nfe=2, solver=fs.Heun(), schedule=model.schedule
    )
    shown = got[7 * 66 :][:64:2, 3 * 66 :][:, :64:2]
    # Batches of other sizes differ in the last bits of float32, which may round to the next grey level.
    assert np.abs(shown.astype(int) - pixels(wanted)[0]).max() <= 1
