"""The page docs/dehaze.md: images with structured haze on them, and what takes it off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import fewstep as fs
from benchmarks.command import Data, Out, packaged, say
from fewstep import restore
from fewstep.adapters import EDMModel
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import to_unit_range
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments
from fewstep.files import check_file, write_atomically
from fewstep.models import CIFAR10
from fewstep.pictures import pixels, png, sheet

from .photos import held_out
from .training import BATCH, denoising_loss, trained, unet

__all__ = ["Fog", "Haze", "clouds", "fog", "grey", "sdr", "wiener"]

SIDE = 32
REACH, STD = 4.0, 0.4  # pixels over which haze is correlated, and its standard deviation where it is Gaussian
NOISE = 0.05
IMAGES, DRAWS = 32, 4
NFE = 10
KNOWN = 20_000  # images, by whose moments Wiener's filter is made
LEVELS = -0.4, 1.4  # mean and standard deviation of ln sigma in training, the packaged model's
PATCH, WIDTHS = 2, (16, 32)
STEPS = 2000
SHOWN = 10


@dataclass(frozen=True)
class Fog:
    """A Gaussian process (1, 32, 32), of mean 0: cosines whose variances fall as those of its smooth kernel do."""

    spectrum: restore.Spectrum

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        return self.spectrum._images(z * self.spectrum.variances.sqrt())

    def covariance(self) -> Tensor:
        """(1024, 1024), of its pixels."""
        each = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
        return self.spectrum._images(self.spectrum.variances * self.spectrum._coefficients(each)).flatten(1)

    def denoised(self, x: Tensor, t: float) -> Tensor:
        """E[h | x = h + t e]."""
        return self.spectrum.conditional(x, fs.Node(t, 1.0, t)) / t**2


def fog() -> Fog:
    omega = math.pi / SIDE * torch.arange(SIDE, dtype=torch.float64)
    kernel = torch.exp(-(omega[:, None] ** 2 + omega**2) * REACH**2 / 2)
    return Fog(restore.Spectrum(STD**2 * kernel[None] / kernel.mean(), torch.ones(1, 1, dtype=torch.float64)))


@dataclass(frozen=True)
class Haze:
    """What is on the images, grey (1, 32, 32): exact draws, its moments as (1024,) and (1024, 1024), a denoiser."""

    draw: Callable[[int, torch.Generator], Tensor]
    moments: Moments
    denoiser: fs.Denoiser


def clouds(below: Fog) -> tuple[Callable[[int, torch.Generator], Tensor], Moments]:
    """Twice the positive part of fog: with edges, bright on one side; its moments in closed form.

    Of (s, t) Gaussian with correlation r = cos a, E[s+ t+] = std_s std_t (sin a + (pi - a) cos a) / (2 pi): Cho & Saul
    (2009), eq. (6).
    """

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return 2 * below.draw(count, generator).relu()

    covariance = below.covariance()
    std = covariance.diagonal().sqrt()
    angle = (covariance / torch.outer(std, std)).clamp(-1, 1).acos()
    second = torch.outer(std, std) * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    mean = std / math.sqrt(2 * math.pi)
    return draw, Moments(2 * mean, 4 * (second - torch.outer(mean, mean)))


def grey(denoiser: fs.Denoiser) -> fs.Denoiser:
    """Of three colours that are alike, from one of one: their mean has all that x says of it, with less noise."""
    return lambda x, t: denoiser(x.mean(1, keepdim=True), t / math.sqrt(3)).expand_as(x)


def network() -> EDMModel:
    channels = PATCH**2
    net = unet(channels, channels, WIDTHS, SIDE // PATCH)
    return EDMModel(net, (1, SIDE, SIDE), fs.EDM(), sigma_data=2 * STD / math.sqrt(2), noise_scale=4.0, patch=PATCH)


def learned(path: Path, draw: Callable[[int, torch.Generator], Tensor], steps: int = STEPS) -> EDMModel:
    """A small network trained on exact draws of haze."""
    torch.manual_seed(0)
    model = network()

    def loss(generator: torch.Generator) -> Tensor:
        clean = draw(BATCH, generator).float()
        sigma = torch.exp(LEVELS[0] + LEVELS[1] * torch.randn(BATCH, generator=generator))
        return denoising_loss(model, clean, sigma, generator)

    net = trained(path, model.network, loss, steps)
    return EDMModel(net, model.shape, model.schedule, model.sigma_data, model.noise_scale, patch=PATCH)


def sdr(images: Tensor, truth: Tensor) -> float:
    """10 log10(|truth|^2 / |images - truth|^2), the mean over the images, in dB; both (B, C, H, W) in [-1, 1]."""
    signal, distortion = (each.double().square().flatten(1).sum(1) for each in (truth, images - truth))
    return float(10 * (signal / distortion).log10().mean())


def wiener(y: Tensor, image: Moments, haze: Moments) -> Tensor:
    """The linear estimate of least error, by both covariances whole, of x in y = x + haze + noise."""
    colours = y.shape[1]
    mean = haze.mean.repeat(colours)
    on_it = torch.ones(colours, colours, dtype=torch.float64).kron(haze.covariance)
    seen = image.covariance + on_it + NOISE**2 * torch.eye(len(mean), dtype=torch.float64)
    away = y.double().flatten(1) - image.mean - mean
    return (image.mean + torch.linalg.solve(seen, away.T).T @ image.covariance).reshape(y.shape).to(y.dtype)


@dataclass(frozen=True)
class Identity:
    """The measurement of one part."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


Restored = tuple[Tensor, float, float]  # draws (DRAWS, B, C, H, W), gradients a call, seconds a draw of one image


def drawn(
    make: Callable[[Callable[[restore.Solve], object]], fs.Denoiser], shape: tuple[int, ...], count: int
) -> Restored:
    """`DRAWS` draws for each of `count` measurements, from the denoiser that `make` makes of a callback."""
    solves: list[restore.Solve] = []
    denoiser = make(solves.append)
    begun = time.perf_counter()
    draws = []
    for k in range(DRAWS):
        say(f"draw {k + 1} of {DRAWS} ...")
        noise = fs.unit_noise(range(k * count, (k + 1) * count), shape)
        draws.append(fs.sample(denoiser, noise, nfe=NFE, schedule=fs.EDM()))
    seconds = (time.perf_counter() - begun) / (DRAWS * count)
    return torch.stack(draws), sum(solve.gradients for solve in solves) / len(solves), seconds


def methods(model: EDMModel, haze: Haze, image: Moments, y: Tensor) -> Mapping[str, Callable[[], Restored]]:
    """What restores images from `y`, by name."""
    count, shape = len(y), tuple(y.shape[1:])
    of_haze, of_image = haze.moments, image
    haze_std, image_std = (float(each.covariance.diagonal().mean().sqrt()) for each in (of_haze, of_image))
    haze_mean, image_mean = (float(each.mean.mean()) for each in (of_haze, of_image))
    both = (model, grey(haze.denoiser))
    options = {"schedule": model.schedule}

    def alone() -> Restored:
        white = math.hypot(NOISE, haze_std)
        return drawn(
            lambda tell: restore.posterior(model, Identity(), y - haze_mean, noise=white, callback=tell, **options),
            shape, count,
        )  # fmt: skip

    def subtracted() -> Restored:
        white = math.hypot(NOISE, image_std)
        found, *cost = drawn(
            lambda tell: restore.posterior(both[1], Identity(), y - image_mean, noise=white, callback=tell, **options),
            shape, count,
        )  # fmt: skip
        return y - found, *cost

    def together(method: restore.Method) -> Restored:
        found, *cost = drawn(
            lambda tell: restore.joint(both, y, noise=NOISE, method=method, callback=tell, **options),
            (2, *shape), count,
        )  # fmt: skip
        return found[:, :, 0], *cost

    return {
        "the image's model alone, haze as white noise": alone,
        "the haze's model alone, subtracted": subtracted,
        "both, proximal": partial(together, "proximal"),
        "both, PiGDM": partial(together, "pigdm"),
        "both, moment matching": partial(together, "moment"),
    }


def main(
    data: Data = CIFAR10,
    out: Out = None,
    folder: Annotated[Path, typer.Option(help="Of the network, and of what is restored already.")] = Path(
        "samples/dehaze"
    ),
) -> None:
    folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    typer.run(main)
