"""What docs/dehaze.md is measured with, on Gaussians in closed form."""

import math
import re
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
    grey,
    methods,
    page,
    sdr,
    wiener,
    without_spread,
)
from benchmarks.restore.training import trained
from fewstep.bench.metrics import rmse
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


def test_of_gaussian_images_both_models_begin_with_wieners_estimate(monkeypatch):
    """At the noisiest level, which says next to nothing of the image, the answer is E[x | y]."""
    monkeypatch.setattr("benchmarks.restore.dehaze.TOGETHER", 100)
    variances = 0.02 + 3 * Fog(1.0).spectrum.variances.expand(3, -1, -1)
    spectrum = Spectrum(variances, torch.eye(3, dtype=torch.float64))
    covariance = spectrum.conditional(torch.eye(3072, dtype=torch.float64).reshape(-1, 3, 32, 32), fs.Node(0, 0, 1))
    image, haze = Moments(torch.zeros(3072, dtype=torch.float64), covariance.flatten(1)), Fog(2.0).haze()
    model = fs.as_denoiser(lambda x, t: spectrum.conditional(x, fs.Node(t, 1, t)) / t**2, "sample", fs.EDM())
    generator = torch.Generator().manual_seed(2)
    truth = spectrum._images(normal((2, 3, 32, 32), seed=3) * variances.sqrt())
    y = truth + haze.draw(2, generator) + NOISE * torch.randn(truth.shape, generator=generator)
    method, solves = methods(model, haze, image, y)["both, moment matching"], []
    x = 80 * fs.unit_noise(range(2), method.shape, dtype=torch.float64)
    found, want = method.images(method.make(solves.append)(x, 80.0)), wiener(y, image, haze.moments)
    # As much of it as conjugate residuals leave of the residual.
    assert (solves[0].residual <= 0.01).all()
    assert rmse(found, want) < 0.02 * float(want.std())


def test_the_mean_of_endless_draws_is_foretold_from_some():
    truth = normal((4, 3, 32, 32), seed=1)
    endless = truth + 0.5
    draws = endless + normal((3, *truth.shape), seed=2)
    assert sdr(draws.mean(0), truth) == pytest.approx(-10 * math.log10(0.25 + 1 / 3), abs=0.5)
    # Of 3,072 pixels an image: what is taken off is known to some percent.
    assert without_spread(draws, truth) == pytest.approx(-10 * math.log10(0.25), abs=0.5)


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


def test_the_page_is_what_the_command_writes_of_its_rows():
    text = PAGE.read_text(encoding="utf-8")
    tables = {}
    for part in text.split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| ")]
        tables[part.splitlines()[0].lower()] = rows[2:]
    assert list(tables) == ["fog", "clouds"]
    assert all(len(rows) == 2 + 5 for rows in tables.values())
    assert page(tables) == text


def test_the_pages_code_runs():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)

    class Model:
        schedule, shape = fs.EDM(), (3, 8, 8)

        def __call__(self, x, t):
            return x / (1 + t * t)

    model = Model()
    names = {"model": model, "haze": lambda x, t: 0 * x + 0.5, "y": normal((2, 3, 8, 8), seed=1)}
    exec(block, names)
    # What is known comes back, with the noise of the schedule's last level.
    assert (names["hazes"] - 0.5).abs().max() < 6 * Model.schedule.sigma_min
    assert names["images"].shape == (2, 3, 8, 8)
