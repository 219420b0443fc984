"""The page docs/dehaze.md: images with structured haze on them, and what takes it off."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor, nn

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

__all__ = ["Clouds", "Fog", "Haze", "grey", "methods", "results", "sdr", "wiener", "without_spread"]

SIDE = 32
FOG, CLOUDS = 2.0, 4.0  # pixels over which they are correlated
STD = 0.4  # of fog, and of what clouds are cut from
NOISE = 0.05
IMAGES, DRAWS = 16, 4
NFE = 10
ALONE, TOGETHER = 10, 20  # iterations of a call at the most: white noise needs fewer
KNOWN = 20_000  # images, by whose moments Wiener's filter is made
LEVELS = -0.4, 1.4  # mean and standard deviation of ln sigma in training, the packaged model's
PATCH, WIDTHS = 2, (16, 32)
STEPS = 2000
SHOWN = 5  # images of each haze in the picture
DIVERGES = "both, PiGDM"  # and is not shown
FOLDER = Path("samples/dehaze")


@dataclass(frozen=True)
class Haze:
    """What is on the images, grey: exact draws (B, 1, 32, 32), the moments of its pixels, its denoiser."""

    draw: Callable[[int, torch.Generator], Tensor]
    moments: Moments
    denoiser: fs.Denoiser


@dataclass(frozen=True)
class Fog:
    """A Gaussian process of mean 0, correlated over `reach` pixels: cosines whose variances are its kernel's."""

    reach: float

    @cached_property
    def spectrum(self) -> restore.Spectrum:
        omega = math.pi / SIDE * torch.arange(SIDE, dtype=torch.float64)
        kernel = torch.exp(-(omega[:, None] ** 2 + omega**2) * self.reach**2 / 2)
        return restore.Spectrum(STD**2 * kernel[None] / kernel.mean(), torch.ones(1, 1, dtype=torch.float64))

    @cached_property
    def covariance(self) -> Tensor:
        """Of its pixels, (1024, 1024)."""
        each = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
        return self.spectrum.conditional(each, fs.Node(0.0, 0.0, 1.0)).flatten(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        return self.spectrum._images(z * self.spectrum.variances.sqrt())

    def denoised(self, x: Tensor, t: float) -> Tensor:
        """E[h | x = h + t e]."""
        return self.spectrum.conditional(x, fs.Node(t, 1.0, t)) / t**2

    def haze(self) -> Haze:
        return Haze(self.draw, Moments(torch.zeros(SIDE**2, dtype=torch.float64), self.covariance), self.denoised)


@dataclass(frozen=True)
class Clouds:
    """Twice the positive part of fog: clear sky between, and bright where there are some."""

    fog: Fog

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return 2 * self.fog.draw(count, generator).relu()

    def moments(self) -> Moments:
        """In closed form: of Gaussian s, t with correlation cos a, E[s+ t+] = std_s std_t (sin a + (pi - a) cos a) /
        (2 pi); Cho & Saul, Kernel Methods for Deep Learning (2009), eq. (6)."""
        std = self.fog.covariance.diagonal().sqrt()
        scale = torch.outer(std, std)
        angle = (self.fog.covariance / scale).clamp(-1, 1).acos()
        second = scale * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
        mean = std / math.sqrt(2 * math.pi)
        return Moments(2 * mean, 4 * (second - torch.outer(mean, mean)))

    def haze(self, path: Path, steps: int = STEPS) -> Haze:
        """With a small network for a denoiser, trained on draws: `path` is of its checkpoints."""
        torch.manual_seed(0)
        rms, inner = 2 * STD / math.sqrt(2), network()
        model = EDMModel(inner, (1, SIDE, SIDE), fs.EDM(), sigma_data=rms, noise_scale=4.0, patch=PATCH)

        def loss(generator: torch.Generator) -> Tensor:
            clean = self.draw(BATCH, generator).float()
            sigma = torch.exp(LEVELS[0] + LEVELS[1] * torch.randn(BATCH, generator=generator))
            return denoising_loss(model, clean, sigma, generator)

        return Haze(self.draw, self.moments(), replace(model, network=trained(path, inner, loss, steps)))


def network() -> nn.Module:
    """Of clouds, one colour, folded."""
    return unet(PATCH**2, PATCH**2, WIDTHS, SIDE // PATCH)


def grey(denoiser: fs.Denoiser) -> fs.Denoiser:
    """Of three colours that are alike, from one of one: their mean has all that x says of it, with less noise."""
    return lambda x, t: denoiser(x.mean(1, keepdim=True), t / math.sqrt(3)).expand_as(x)


def sdr(images: Tensor, truth: Tensor) -> float:
    """10 log10(|truth|^2 / |images - truth|^2), the mean over the images, in dB; both (B, C, H, W) in [-1, 1]."""
    return _over(truth, (images - truth).double().square())


def wiener(y: Tensor, image: Moments, haze: Moments) -> Tensor:
    """The linear estimate of least error, by both covariances whole, of x in y = x + haze + noise."""
    colours = y.shape[1]
    mean = haze.mean.repeat(colours)
    on_it = torch.ones(colours, colours, dtype=torch.float64).kron(haze.covariance)
    seen = image.covariance + on_it + NOISE**2 * torch.eye(len(mean), dtype=torch.float64)
    away = y.double().flatten(1) - image.mean - mean
    found: Tensor = image.mean + torch.linalg.solve(seen, away.T).T @ image.covariance
    return found.reshape(y.shape).to(y.dtype)


Make = Callable[[Callable[[restore.Solve], object]], fs.Denoiser]


@dataclass(frozen=True)
class Method:
    """A denoiser, made with a callback, of noise of `shape`; and the images from what is drawn."""

    make: Make
    shape: tuple[int, ...]
    images: Callable[[Tensor], Tensor] = lambda drawn: drawn


class Drawn(NamedTuple):
    """One draw for each image, (B, C, H, W); gradients a call, and CPU seconds an image."""

    images: Tensor
    gradients: float
    seconds: float


def draw(method: Method, count: int, k: int) -> Drawn:
    """The `k`-th draw of `count` images."""
    solves: list[restore.Solve] = []
    noise = fs.unit_noise(range(k * count, (k + 1) * count), method.shape)
    begun = time.process_time()
    found = fs.sample(method.make(solves.append), noise, nfe=NFE, schedule=fs.EDM())
    gradients = sum(solve.gradients for solve in solves) / len(solves)
    return Drawn(method.images(found), gradients, (time.process_time() - begun) / count)


def kept(path: Path, make: Callable[[], Drawn]) -> Drawn:
    """Read from `path`, or made and written there."""
    if not path.exists():
        say(f"{path.stem} ...")
        content = io.BytesIO()
        torch.save(tuple(make()), content)
        write_atomically(path, content.getvalue())
    return Drawn(*torch.load(path, weights_only=True))


def methods(model: fs.Denoiser, haze: Haze, image: Moments, y: Tensor) -> Mapping[str, Method]:
    """What restores images from `y`, by name. `model` and the haze's denoiser are of EDM's clock."""
    shape = tuple(y.shape[1:])
    both = (model, grey(haze.denoiser))
    whole = restore.inpainting(torch.ones(1), shape)

    def alone(denoiser: fs.Denoiser, other: Moments, tell: Callable[[restore.Solve], object]) -> fs.Denoiser:
        """Of one part, the `other` one as white noise."""
        white = math.hypot(NOISE, float(other.covariance.diagonal().mean().sqrt()))
        seen = y - float(other.mean.mean())
        return restore.posterior(denoiser, whole, seen, noise=white, iterations=ALONE, schedule=fs.EDM(), callback=tell)

    def together(method: restore.Method, tell: Callable[[restore.Solve], object]) -> fs.Denoiser:
        return restore.joint(both, y, noise=NOISE, method=method, iterations=TOGETHER, schedule=fs.EDM(), callback=tell)

    def first(drawn: Tensor) -> Tensor:
        return drawn[:, 0]

    return {
        "the image's model alone": Method(partial(alone, model, haze.moments), shape),
        "the haze's model alone, subtracted": Method(partial(alone, both[1], image), shape, lambda drawn: y - drawn),
        "both, PiGDM": Method(partial(together, "pigdm"), (2, *shape), first),
        "both, proximal": Method(partial(together, "proximal"), (2, *shape), first),
        "both, moment matching": Method(partial(together, "moment"), (2, *shape), first),
    }


def without_spread(draws: Tensor, truth: Tensor) -> float:
    """The SDR of the mean of endless draws, from some, (K, B, C, H, W): their mean's error less its variance."""
    error = (draws.mean(0) - truth).double().square() - draws.double().var(0) / len(draws)
    return _over(truth, error)


def _over(truth: Tensor, squares: Tensor) -> float:
    """10 log10 of |truth|^2 over the sum of `squares`, the mean over the images."""
    signal, distortion = (each.flatten(1).sum(1) for each in (truth.double().square(), squares))
    return float(10 * (signal / distortion).log10().mean())


def results(
    name: str, haze: Haze, truth: Tensor, image: Moments, model: fs.Denoiser, folder: Path
) -> tuple[list[list[str]], Tensor]:
    """Of one haze: the rows of the table, and the rows of the picture, (R, B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    y = truth + haze.draw(len(truth), generator).float() + NOISE * torch.randn(truth.shape, generator=generator)
    linear = wiener(y, image, haze.moments)
    rows = [
        ["as they are", "", "", decibel(sdr(y, truth)), "", ""],
        ["Wiener's filter", "", "", "", "", decibel(sdr(linear, truth))],
    ]
    pictures = [truth, y, linear]
    for k, (method, each) in enumerate(methods(model, haze, image, y).items()):
        drawn = [kept(folder / f"{name}-{k}-{i}.pt", partial(draw, each, len(truth), i)) for i in range(DRAWS)]
        draws = torch.stack([one.images for one in drawn])
        one = sum(sdr(images, truth) for images in draws) / DRAWS
        dbs = [decibel(value) for value in (one, sdr(draws.mean(0), truth), without_spread(draws, truth))]
        costs = [sum(one.gradients for one in drawn) / DRAWS, sum(one.seconds for one in drawn) / DRAWS]
        rows.append([method, f"{costs[0]:.1f}", f"{costs[1]:.2f}", *dbs])
        if method != DIVERGES:
            pictures.append(draws[0])
    return rows, torch.stack([*pictures, draws.mean(0)])


def decibel(value: float) -> str:
    """Without a sign of zero; a mean whose error is lost in its spread has none."""
    return f"{round(value, 1) + 0.0:.1f}" if math.isfinite(value) else "–"


def page(tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    head = ["", "gradients a call", "CPU seconds a draw", "one draw", f"mean of {DRAWS}", "mean of endless draws"]
    parts = [f"## {name.capitalize()}\n\n{table(head, rows)}\n" for name, rows in tables.items()]
    weights = sum(parameter.numel() for parameter in network().parameters())
    facts = {"images": IMAGES, "draws": DRAWS, "nfe": NFE, "iterations": TOGETHER, "weights": weights}
    return INTRODUCTION.format(seen=STEPS * BATCH, **facts) + "".join(parts) + READING.format(draws=DRAWS, nfe=NFE)


INTRODUCTION = """# Taking haze off

For those whose images have something on them with a structure of its own (haze, clutter, clouds, another image), and
who have a denoiser of that as well as one of the images. `restore.joint` finds both parts of y = x + h + noise at once.
Not for what hides the image behind it, nor for haze of which nothing is known.

```python
import fewstep as fs
from fewstep import restore

both = restore.joint([model, haze], y, noise=0.05)
drawn = fs.sample(both, fs.unit_noise(range(len(y)), (2, *model.shape)), schedule=model.schedule, nfe=10)
images, hazes = drawn.unbind(1)
```

`haze(x, t)` is on the model's clock: of a Gaussian process in closed form, of a `restore.Spectrum` of its cosines, or a
network trained on draws of haze.

`python -m benchmarks.restore.dehaze --data DATA --out docs/dehaze.md` measures the tables and draws the picture; if it
is stopped, it goes on from what is drawn already. {images} CIFAR-10 images are held out, from the half of their class
that is least typical (the packaged model has seen the most typical fifth). They have grey haze on them and noise of
0.05; pixels are in [-1, 1]. Numbers are signal over distortion, 10 log10(|x|^2 / |found - x|^2), in dB, the mean over
the images: of one draw, of the mean of {draws}, and, from their spread, of the mean of endless draws, which is what a
Wiener filter answers with. That one has both covariances whole, of 20,000 images and the haze's exact one: no linear
estimate is better. One model alone takes the other part for white noise of its size. All are EVODiff in {nfe} calls,
those of both models with {iterations} iterations a call at the most.

- **Fog** is a Gaussian process that is correlated over 2 pixels, of standard deviation 0.4; its denoiser is exact.
- **Clouds** are bright on one side: twice the positive part of such a process of 4 pixels. Their denoiser is a network
  of {weights:,} weights, trained by the command on {seen:,} draws, in four minutes on one core.

"""
READING = """**Two models are better than one**, in each draw and in their mean, with moment matching. **Wiener's filter
is hard to beat for one estimate**: slow waves of haze and of images are alike, and only what is sharp tells them apart.
The mean of endless draws is half a decibel above it; the mean of {draws} is below. If one estimate is wanted, and both
covariances are known, take the filter: it costs nothing. A draw is for what looks like an image without haze, and draws
for how sure one can be.

PiGDM, the guidance that the papers on joint posteriors use, takes the covariance of each part for a multiple of the
identity. The slowest cosines of haze vary by far more than that, and it diverges in {nfe} calls. Proximal steps have
the same covariance, and stay: at a twentieth of the time, with the mean further off. Half the iterations change moment
matching on fog by less than 0.1 dB.

![Images with fog and with clouds, and what was made of them](dehaze.png)

The picture has images with fog at the left and with clouds at the right, and from above: the images; what is seen;
Wiener's filter; the image's model alone; the haze's model alone; both, proximal; both, moment matching, one draw; the
mean of {draws}. Seen by eye: Wiener's filter leaves shadows of the haze in skies and lawns, where both models leave
smoother ones; where a light place could be either, as on the dog's back, a draw decides, and may be wrong. The image's
model alone makes the haze a part of the scene. The haze's model alone takes what is slow in the image with it; that of
clouds leaves a grid of dots, as images are nothing that it was trained on.
"""


def main(
    data: Data = CIFAR10,
    out: Out = None,
    folder: Annotated[Path, typer.Option(help="Of the network, and of what is drawn already.")] = FOLDER,
) -> None:
    """Train the model of clouds, restore images with it and the packaged network, and write docs/dehaze.md and .png."""
    out = out or Path("dehaze.md")
    check_file(out)
    folder.mkdir(parents=True, exist_ok=True)
    truth, _, others = held_out(data, load_classifier(), IMAGES)
    image = Moments.of(to_unit_range(others[:KNOWN]).flatten(1))
    hazes = {"fog": Fog(FOG).haze(), "clouds": Clouds(Fog(CLOUDS)).haze(folder / "clouds.pt")}
    tables, pictures = {}, []
    for name, haze in hazes.items():
        tables[name], rows = results(name, haze, truth, image, packaged(), folder)
        pictures.append(rows[:, :SHOWN])
    both = torch.cat(pictures, 1)
    write_atomically(out.with_suffix(".png"), png(sheet(pixels(both.flatten(0, 1)), columns=both.shape[1])))
    write_atomically(out, page(tables).encode())


if __name__ == "__main__":
    typer.run(main)
