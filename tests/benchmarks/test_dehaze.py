"""What docs/dehaze.md is measured with, on Gaussians in closed form."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra diffusers")

import fewstep as fs
from benchmarks.restore.dehaze import (
    NOISE,
    Clouds,
    Fog,
    Moments,
    draw,
    grey,
    methods,
    sdr,
    wiener,
    without_spread,
)
from benchmarks.restore.training import trained
from fewstep.restore import Spectrum
from gaussians import Gaussian, normal

PAGE = Path(__file__).parents[2] / "docs" / "dehaze.md"
COUNT = 4000


@pytest.mark.parametrize("haze", [Fog(2.0), Clouds(Fog(3.0))])
def test_moments_of_haze_are_those_of_its_draws(haze):
    """Within six standard errors at every pixel, of the covariances of one with all."""
    moments = haze.moments() if isinstance(haze, Clouds) else haze.haze().moments
    drawn = haze.draw(COUNT, torch.Generator().manual_seed(1)).flatten(1)
    std = moments.covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - moments.mean).abs() < 6 * std / COUNT**0.5).all()
    away = drawn - moments.mean
    products = away[:, 500, None] * away
    assert ((products.mean(0) - moments.covariance[500]).abs() < 6 * products.std(0) / COUNT**0.5).all()


def test_the_denoiser_of_fog_is_exact_in_one_colour_and_in_three_alike():
    """To the rounding of t^2, which is float32 in the exact one."""
    haze = Fog(2.0).haze()
    exact = Gaussian(haze.moments.mean, haze.moments.covariance)
    x = normal((2, 1, 32, 32), seed=1)
    torch.testing.assert_close(haze.denoiser(x, 0.3).flatten(1), exact(x.flatten(1), 0.3), rtol=0, atol=1e-7)
    three = Gaussian(
        torch.zeros(12), torch.ones(3, 3, dtype=torch.float64).kron(torch.diag(torch.arange(1.0, 5)).double())
    )
    one = Gaussian(torch.zeros(4), torch.diag(torch.arange(1.0, 5)).double())
    x = normal((2, 3, 2, 2), seed=2)
    answer = grey(lambda x, t: one(x.flatten(1), t).reshape(x.shape))(x, 0.7)
    torch.testing.assert_close(answer.flatten(1), three(x.flatten(1), 0.7), rtol=0, atol=1e-7)


def test_of_gaussian_images_the_mean_of_endless_draws_is_wieners_estimate():
    variances = 0.02 + 3 * Fog(1.0).spectrum.variances.expand(3, -1, -1)
    spectrum = Spectrum(variances, torch.eye(3, dtype=torch.float64))
    covariance = spectrum.conditional(torch.eye(3072, dtype=torch.float64).reshape(-1, 3, 32, 32), fs.Node(0, 0, 1))
    image, haze = Moments(torch.zeros(3072, dtype=torch.float64), covariance.flatten(1)), Fog(3.0).haze()
    model = fs.as_denoiser(lambda x, t: spectrum.conditional(x, fs.Node(t, 1, t)) / t**2, "sample", fs.EDM())
    generator = torch.Generator().manual_seed(2)
    truth = spectrum._images(normal((2, 3, 32, 32), seed=3) * variances.sqrt()).float()
    y = truth + haze.draw(2, generator).float() + NOISE * torch.randn(truth.shape, generator=generator)
    method = methods(model, haze, image, y)["both, moment matching"]
    drawn = [draw(method, len(y), k) for k in range(3)]
    draws = torch.stack([each.images for each in drawn])
    best = sdr(wiener(y, image, haze.moments), truth)
    assert without_spread(draws, truth) == pytest.approx(best, abs=0.2)
    assert sdr(draws[0], truth) < best
    assert drawn[0].gradients > 1


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.restore.training.EVERY", 3)

    def run(path, stop=None):
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 4)
        asked = 0

        def loss(generator):
            nonlocal asked
            if (asked := asked + 1) == stop:
                raise KeyboardInterrupt
            return (network(torch.randn(8, 4, generator=generator)) - 1).square().mean()

        return trained(path, network, loss, 8), asked

    whole, _ = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts.pt", stop=6)
    again, asked = run(tmp_path / "parts.pt")
    assert asked == 8 - 3
    assert torch.equal(whole.weight, again.weight)
    assert run(tmp_path / "parts.pt")[1] == 0
    with pytest.raises(ValueError, match="is of 8 steps and not 9"):
        trained(tmp_path / "parts.pt", torch.nn.Linear(4, 4), lambda generator: None, 9)
