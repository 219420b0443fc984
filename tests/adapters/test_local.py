"""The denoiser made of images: exact where the exact one is known, and a model like others."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import Empirical
from fewstep.adapters import Local, local

SHAPE = (1, 2, 4)
LEVELS = (0.05, 0.4, 1.0, 7.0)
# All images of eight pixels that are -1 or 1: independent pixels, exactly.
SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64).reshape(-1, *SHAPE)


def free(images, **facts):
    """Of numbers of any size, where `local` takes images alone."""
    return Local(images, torch.cov(images.double().flatten(1).T), **facts)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", LEVELS)
def test_of_independent_pixels_it_is_the_denoiser_of_each(sigma):
    """Of -1 and 1: tanh(x / v); v = sigma^2 (1 + threshold^2), as a pixel counts itself 1 / (1 + threshold^2)."""
    model, x = local(SIGNS), randn(3, *SHAPE)
    variance = sigma**2 * (1 + model.threshold**2)
    torch.testing.assert_close(model(x, sigma), (x / variance).tanh(), rtol=0, atol=1e-12)


def test_of_gaussian_pixels_it_comes_to_the_linear_one():
    """x v / (v + sigma^2) of independent pixels of variance v, by 40,000 images; five standard errors."""
    v, sigma, n = 0.6, 0.8, 40_000
    model, x = free(randn(n, 1, 1, 2) * v**0.5, threshold=0.01), randn(4, 1, 1, 2, seed=1)
    # Of n images about n sigma / sqrt(v + sigma^2) count, in the middle of the prior; a third of that at x = 1.5.
    error = math.sqrt(v * sigma**2 / (v + sigma**2) / (n / 3 * sigma / math.sqrt(v + sigma**2)))
    assert (model(x.clamp(-1.5, 1.5), sigma) - x.clamp(-1.5, 1.5) * v / (v + sigma**2)).abs().max() < 5 * error


@pytest.mark.parametrize("sigma", LEVELS)
def test_with_threshold_0_it_is_the_exact_denoiser_of_the_images(sigma):
    images, x = randn(20, 3, 4, 4), randn(5, 3, 4, 4, seed=1)
    want = Empirical(images).denoised(x, fs.EDM().node(sigma))
    torch.testing.assert_close(free(images, threshold=0.0)(x, sigma), want, rtol=0, atol=1e-10)


def test_the_exact_one_repeats_its_images_and_the_local_one_does_not():
    """Pixels that are correlated with their neighbours, as those of images are."""
    images = torch.nn.functional.avg_pool2d(randn(300, 1, 10, 10), 3, stride=1)
    noise = fs.unit_noise(range(6), (1, 8, 8), dtype=torch.float64)

    def apart(model):
        drawn = fs.sample(model, noise, nfe=12)
        return torch.cdist(drawn.flatten(1), images.flatten(1)).amin(1) / 8

    # A run stops at sigma_min = 0.002; images are 0.27 from the nearest of the others.
    assert apart(free(images, threshold=0.0)).max() < 2 * 0.002
    assert apart(free(images)).min() > 0.27 / 2


@pytest.mark.parametrize("labelled", [False, True])
def test_many_images_are_summed_in_parts(monkeypatch, labelled):
    images, x = randn(50, 3, 4, 4), randn(3, 3, 4, 4, seed=1)
    model = free(images, labels=torch.arange(50) % 2)
    denoiser = model.conditioned([0, 1, 1]) if labelled else model
    whole = [denoiser(x, sigma) for sigma in LEVELS]
    monkeypatch.setattr("fewstep.adapters.locality.ELEMENTS", 16 * 7)
    for sigma, want in zip(LEVELS, whole, strict=True):
        torch.testing.assert_close(denoiser(x, sigma), want, rtol=0, atol=1e-13)


def test_a_sample_does_not_depend_on_its_batch():
    model, x = free(randn(30, 3, 4, 4)), randn(5, 3, 4, 4, seed=1)
    for sigma in LEVELS:
        assert torch.equal(model(x, sigma)[2:3], model(x[2:3], sigma))


def test_a_class_is_the_images_of_its_label():
    images, labels, x = randn(30, 1, 3, 3), torch.arange(30) % 3, randn(4, 1, 3, 3, seed=1)
    model = free(images, labels=labels, classes=("a", "b", "c"))
    one = Local(images[labels == 2], model.covariance, model.schedule)
    torch.testing.assert_close(model.conditioned(2)(x, 0.5), one(x, 0.5), rtol=0, atol=1e-13)
    guided = model.conditioned([2] * 4, guidance=3.0)(x, 0.5)
    torch.testing.assert_close(guided, one(x, 0.5) + 2 * (one(x, 0.5) - model(x, 0.5)), rtol=0, atol=1e-12)
    assert model.classes == ("a", "b", "c")


def test_pixels_that_never_change_stay_and_ends_are_finite():
    images = randn(30, 1, 3, 3)
    images[..., 0] = 0.25
    model, x = free(images), randn(2, 1, 3, 3, seed=1)
    for node in (fs.Node(1.0, 0.0, 1.0), fs.Node(0.5, 0.5, 0.5), fs.Node(0.0, 1.0, 0.0)):
        got = model.denoised(x, node)
        assert got.isfinite().all()
        torch.testing.assert_close(got[..., 0], torch.full_like(got[..., 0], 0.25), rtol=0, atol=1e-12)


def test_it_is_a_model_like_others():
    images = randn(20, 3, 4, 4) / 5
    model = local(images.float())
    assert model.shape == (3, 4, 4)
    assert model.schedule.data_std == pytest.approx(float(images.flatten(1).var(0).mean().sqrt()), rel=1e-6)
    drawn = fs.sample(model, fs.unit_noise(range(2), model.shape), nfe=5)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    assert model.fingerprint == local(images.float()).fingerprint
    assert len({model.fingerprint, local(images).fingerprint, local(images.float(), threshold=0.2).fingerprint}) == 3


def test_identical_images_are_the_answer_everywhere():
    image = randn(1, 1, 2, 2) / 5
    model = local(image.repeat(3, 1, 1, 1), schedule=fs.EDM())
    torch.testing.assert_close(model(randn(2, 1, 2, 2, seed=1), 0.5), image.expand(2, -1, -1, -1))


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_it_can_be_pickled_after_a_call_as_before(threshold):
    model, x = free(randn(20, 1, 2, 2), labels=torch.arange(20) % 2, threshold=threshold), randn(2, 1, 2, 2, seed=1)
    want = model.conditioned(1)(x, 0.5)
    there = pickle.loads(pickle.dumps(model.conditioned(1)))
    assert torch.equal(there(x, 0.5), want)
    assert there.model.fingerprint == model.fingerprint


def test_a_folder_of_pictures_will_do(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs the extra cli")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        image.fromarray(each).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("none")
    model = local(tmp_path)
    assert model.shape == (3, 4, 5)
    torch.testing.assert_close(model.images, torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1, rtol=0, atol=1e-6)
    image.fromarray(pixels[0, :2]).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"must hold images .* of one size; got 5 x 2, 5 x 4"):
        local(tmp_path)
    image.fromarray(np.full((4, 5), 21000, np.uint16)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png has more than 8 bits a colour"):
        local(tmp_path)


def test_wrong_input_is_refused():
    images = randn(6, 1, 2, 2) / 5
    with pytest.raises(ValueError, match="images must be finite"):
        local(images * math.nan)
    with pytest.raises(ValueError, match="images must be finite floating point"):
        local(images[0])
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\]; got 255: divide bytes by 127.5"):
        local(images / images.abs().max() * 255)
    with pytest.raises(ValueError, match=r"images must not all be the same, .* or schedule="):
        local(images[:1].repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match="threshold must lie in"):
        local(images, threshold=-1.0)
    with pytest.raises(ValueError, match="labels must be integers, one an image, 6; got"):
        local(images, labels=[0, 1])
    with pytest.raises(ValueError, match="these images have no classes"):
        local(images).conditioned(0)
    with pytest.raises(ValueError, match="labels must be those of some images"):
        local(images, labels=[0] * 6).conditioned([1])
    with pytest.raises(ValueError, match="labels must be one for all or one a sample, 2"):
        local(images, labels=[0] * 6).conditioned([0, 0, 0])(images[:2], 1.0)
    with pytest.raises(ValueError, match="x must be"):
        local(images)(randn(1, 1, 3, 3), 1.0)
