"""The page docs/shifting.md: 4x super-resolution by residual shifting, with a small network trained here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_unshuffle

import fewstep as fs
from benchmarks.command import Data, Out, packaged, say
from fewstep import restore
from fewstep.adapters import EDMModel
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import to_unit_range
from fewstep.bench.markdown import table
from fewstep.bench.metrics import psnr
from fewstep.files import check_file, write_atomically
from fewstep.models import CIFAR10
from fewstep.pictures import pixels, png, sheet

from .photos import held_out
from .training import BATCH, denoising_loss, trained, unet

__all__ = ["RUNS", "Network", "Run", "enlarged", "measured", "on_gaussians", "on_images", "page", "restored"]

SHAPE = (3, 32, 32)
FACTOR, NOISE = 4, 0.05
IMAGES = 32
OPERATOR = restore.superresolution(FACTOR, SHAPE)
# Trained on the levels of ResShift's chain at uniform times, down to cleaner ones than its authors' and for noise of
# half of theirs: a residual of images is smaller than one of latents.
LEVELS = restore.ResShift(kappa=1.0, eta_min=0.0001)
RESIDUAL_STD = 0.19  # of image less enlarged measurement, measured on 2,000 images
BETAS = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)  # DDPM's, for Resfusion
PATCH, WIDTHS = 2, (32, 48)
STEPS = 4000
DRAWS, COLUMNS = 4, 10
ITERATIONS = 10  # of moment matching
FOLDER = Path("samples/shifting")

Schedule = restore.ResShift | restore.Resfusion
Folder = Annotated[Path, typer.Option(help="Of the network and its checkpoints.")]


def measured(images: Tensor, draw: torch.Generator) -> Tensor:
    """y (B, 3, 8, 8)."""
    y = OPERATOR.A(images)
    return y + NOISE * torch.randn(y.shape, generator=draw)


def enlarged(y: Tensor) -> Tensor:
    """By bicubic interpolation, where the chain begins."""
    return interpolate(y, scale_factor=FACTOR, mode="bicubic", align_corners=False)


class Beside(nn.Module):
    """A network that sees `image`, folded, beside its input."""

    def __init__(self, network: nn.Module, image: Tensor):
        super().__init__()
        self.network, self.image = network, pixel_unshuffle(image, PATCH)

    def forward(self, x: Tensor, time: Tensor, class_labels: None) -> Tensor:
        return self.network(torch.cat([x, self.image.expand(len(x), -1, -1, -1)], 1), time)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Network:
    """E[x_0 | x_t, y] for any chain: it is told the residual's noise level, sigma / alpha."""

    network: nn.Module

    @classmethod
    def new(cls) -> Network:
        channels = SHAPE[0] * PATCH**2
        return cls(unet(2 * channels, channels, WIDTHS, SHAPE[-1] // PATCH))

    def residual(self, centre: Tensor) -> EDMModel:
        """The denoiser of x_0 - centre, centre = enlarged(y) (B, 3, 32, 32), at sigma as its own level."""
        told = Beside(self.network, centre)
        return EDMModel(told, SHAPE, fs.EDM(), RESIDUAL_STD, noise_scale=4.0, patch=PATCH)

    def denoiser(self, centre: Tensor, schedule: Schedule) -> fs.Denoiser:
        """Of x_0, given x_t as the chain's paper has it."""
        residual, moved = self.residual(centre), centre * share(schedule)

        def denoised(x: Tensor, t: float) -> Tensor:
            _, alpha, sigma = schedule.node(t)
            return centre + residual((x - moved) / alpha + moved - centre, sigma / alpha)

        return denoised

    def loss(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Of a batch of `images`, uint8, flipped half the time."""
        clean = to_unit_range(images[torch.randint(len(images), (BATCH,), generator=draw)])
        flipped = torch.rand(BATCH, 1, 1, 1, generator=draw) < 0.5
        clean = torch.where(flipped, clean.flip(-1), clean)
        centre = enlarged(measured(clean, draw))
        nodes = [LEVELS.node(LEVELS.ramp(float(u))) for u in torch.rand(BATCH, generator=draw)]
        sigma = torch.tensor([node.sigma / node.alpha for node in nodes])
        return denoising_loss(self.residual(centre), clean - centre, sigma, draw)


def share(schedule: Schedule) -> float:
    """Of y in the centre of the chain."""
    return 0.5 if isinstance(schedule, restore.Resfusion) else 1.0


def chains() -> dict[str, Schedule]:
    """As published; both are told the residual's size."""
    return {
        "ResShift": restore.ResShift(data_std=RESIDUAL_STD),
        "Resfusion": restore.Resfusion((1 - BETAS).cumprod(0).tolist(), data_std=RESIDUAL_STD),
    }


@dataclass(frozen=True)
class Run:
    """A line of the table: what is sampled, by what, in how many calls."""

    chain: str
    name: str
    solver: fs.Solver
    nfe: int


RUNS = [
    Run("ResShift", "EVODiff", fs.EVODiff(), 1),
    *[
        Run(chain, name, solver, nfe)
        for chain in ("ResShift", "Resfusion")
        for name, solver in (("its own chain", restore.Chain()), ("DDIM", fs.DDIM()), ("EVODiff", fs.EVODiff()))
        for nfe in (4, 5)
    ],
    Run("ResShift", "its own chain", restore.Chain(), 15),
    Run("ResShift", "EVODiff", fs.EVODiff(), 10),
]
SHOWN = (RUNS[0], RUNS[2], RUNS[6], RUNS[12])  # in the picture: one call, then five of each


def restored(run: Run, denoiser: fs.Denoiser, centre: Tensor, schedule: Schedule, seeds: Iterable[int]) -> Tensor:
    """x_0 (B, *) of the chain that begins at `centre`, from its denoiser of x_0."""
    moved, seeds = centre * share(schedule), list(seeds)
    noise = fs.unit_noise(seeds, tuple(centre.shape[1:]), dtype=centre.dtype)
    inner = restore.centred(denoiser, moved)
    return moved + fs.sample(inner, noise, nfe=run.nfe, solver=run.solver, schedule=schedule, seeds=seeds)


def figures(draws: Tensor, truth: Tensor, y: Tensor) -> list[str]:
    """Of draws (K, B, C, H, W): PSNR of one and of their mean, how much detail there is, what they leave of y."""

    def detail(images: Tensor) -> Tensor:
        return (images - enlarged(OPERATOR.A(images))).std()

    more = float(detail(draws[0]) / detail(truth))
    left = float((OPERATOR.A(draws[0]) - y).square().mean().sqrt()) / NOISE
    return [
        f"{psnr(draws, truth).mean():.2f}",
        f"{psnr(draws.mean(0), truth).mean():.2f}",
        f"{more:.2f}",
        f"{left:.2f}",
    ]


def on_images(network: Network, model: EDMModel, truth: Tensor) -> tuple[list[list[str]], Tensor]:
    """The rows of the table, and the images of the picture, row by row."""
    y = measured(truth, torch.Generator().manual_seed(0))
    centre, count = enlarged(y), len(truth)
    rows = [["bicubic interpolation", "", "0", *figures(centre[None], truth, y), ""]]
    pictures = [truth, interpolate(y, scale_factor=FACTOR), centre]

    def line(name: str, solver: str, nfe: int, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        say(f"{name}, {solver}, {nfe} ...")
        begun = time.process_time()
        draws = torch.stack([draw(range(k * count, (k + 1) * count)) for k in range(DRAWS)])
        seconds = (time.process_time() - begun) / (DRAWS * count)
        rows.append([name, solver, str(nfe), *figures(draws, truth, y), f"{seconds:.3f}"])
        return draws[0]

    for run in RUNS:
        schedule = chains()[run.chain]
        draw = partial(restored, run, network.denoiser(centre, schedule), centre, schedule)
        images = line(run.chain, run.name, run.nfe, draw)
        if run in SHOWN:
            pictures.append(images)
    given = restore.posterior(model, OPERATOR, y, noise=NOISE, iterations=ITERATIONS)
    name = "packaged model, moment matching"
    pictures.append(line(name, "EVODiff", 10, lambda seeds: fs.sample(given, fs.unit_noise(seeds, SHAPE), nfe=10)))
    return rows, torch.cat([each[:COLUMNS] for each in pictures])


def on_gaussians() -> list[list[str]]:
    """The total variance of 4,000 samples over that of the last answer's law, of pixels that are Gaussian given y."""
    y = torch.tensor([-0.5, 0.0, 0.4, 0.8], dtype=torch.float64)
    centre = y.expand(1, 4000, -1)
    mean, variances = 0.9 * y + 0.1, RESIDUAL_STD**2 * torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64)

    def found(chain: str, solver: fs.Solver, nfe: int) -> str:
        schedule = chains()[chain]

        def denoiser(x: Tensor, t: float) -> Tensor:
            _, alpha, sigma = schedule.node(t)
            away = x - share(schedule) * (1 - alpha) * y - alpha * mean
            return mean + variances * alpha / (alpha**2 * variances + sigma**2) * away

        samples = restored(Run(chain, "", solver, nfe), denoiser, centre, schedule, [0])
        return f"{float(samples[0].var(0).sum() / variances.sum()):.2f}"

    return [
        [chain, name, *[found(chain, solver, nfe) for nfe in (4, 5, 10, 20)]]
        for chain in chains()
        for name, solver in (("its own chain", restore.Chain()), ("DDIM", fs.DDIM()), ("EVODiff", fs.EVODiff()))
    ]


def page(images: Sequence[Sequence[str]], gaussians: Sequence[Sequence[str]]) -> str:
    weights = sum(parameter.numel() for parameter in Network.new().network.parameters())
    five = next(row for row in images if row[:3] == ["ResShift", "EVODiff", "5"])
    ratio = float(images[-1][-1]) / float(five[-1])
    head = ["", "", "calls", "PSNR, one draw", f"mean of {DRAWS}", "detail", "left of y", "CPU seconds"]
    return (
        INTRODUCTION.format(images=IMAGES, draws=DRAWS, steps=STEPS, seen=STEPS * BATCH, weights=weights)
        + table(head, images)
        + BETWEEN.format(ratio=ratio)
        + table(["", "", "4 calls", "5", "10", "20"], gaussians)
        + READING
    )


INTRODUCTION = """# Restoring from the degraded image itself

For those who train, or have, a network for one kind of degradation: ResShift and Resfusion begin at the degraded image
and need four or five calls. `fewstep.restore` has their chains as schedules, so that every solver samples them. Not for
a model of images alone, nor where the degradation is only known when the image comes: that is
[restore.md](restore.md), which needs no training and a hundred times the computation.

```python
import fewstep as fs
from fewstep import restore

chain = restore.ResShift(data_std=0.19)  # of what is restored, x_0 - y; or restore.Resfusion(alphas_cumprod)
centre = y  # the degraded image, of x_0's shape; y / 2 for Resfusion
inner = restore.centred(denoiser, centre)  # denoiser(x_t, t): the network's x_0, y in it as its condition
images = centre + fs.sample(inner, fs.unit_noise(range(len(y)), y.shape[1:]), schedule=chain, nfe=5)
```

Without `solver=` it is EVODiff; `restore.Chain()` are the papers' own transitions. Tell the schedule `data_std`, the
size of what is missing: it is far less than an image's, and the levels go where it is decided.

## 4x super-resolution at 32 x 32

`python -m benchmarks.restore.shifting --data DATA --out docs/shifting.md` measures the tables and draws the picture. It
trains a network of {weights:,} weights on {seen:,} images in {steps:,} steps, eight minutes on one core, and
goes on from its last checkpoint if it is stopped. One network is for both chains, as it is told the ratio of noise to
residual. Its weights are not kept in the repository.

{images} CIFAR-10 images were held out. The packaged model was trained on the fifth of each class that is most typical;
these are from the half that is least. They are seen as means of 4 x 4 pixels with noise of 0.05 (pixels are in
[-1, 1]). PSNR is in dB, of one draw and of the mean of {draws}; detail is the size of what bicubic
interpolation cannot show, over the truth's; left of y, what a draw leaves of the measurement, over its noise: of the
truth both are 1. CPU seconds are of one image.

"""
BETWEEN = """
**One call has the best PSNR**: the mean of what is possible, which is blurred. Every draw pays for its detail in
PSNR, and a true one has 3 dB less than the mean. So PSNR does not order these rows; detail and what is left of y do,
beside it. In five calls EVODiff has most of the detail, where the chains' own transitions and DDIM are still halfway
between the mean and a sample. It is as near to the truth as moment matching with the packaged model, {ratio:.0f} times
as fast, for this one degradation.

## On Gaussians

Of pixels that are Gaussian given y, samples are known: their total variance over the true one, by the exact denoiser.

"""
READING = """
What lacks variance is nearer to the mean: that is the PSNR of the chains' rows above.

![Truth, measurement, and what was made of it](shifting.png)

The picture has, from above: the images; the measurement; bicubic interpolation; one call; five calls of ResShift's own
chain, of EVODiff on ResShift's schedule, of EVODiff on Resfusion's; the packaged model with moment matching. Seen by
eye: one call is smooth; the chain's row has outlines; both rows of EVODiff have edges, spots and grass, and some of it
is wrong, such as the ship's. The two are nearly the same images. The packaged model's row is the cleanest where it
knows what it sees (the dog's face, the car's wheels), and makes up as much elsewhere.
"""


def main(data: Data = CIFAR10, out: Out = None, folder: Folder = FOLDER) -> None:
    """Train the network, restore images with it and with the packaged one, and write docs/shifting.md and .png."""
    out = out or Path("shifting.md")
    check_file(out)
    folder.mkdir(parents=True, exist_ok=True)
    truth, _, others = held_out(data, load_classifier(), IMAGES)
    torch.manual_seed(0)
    fresh = Network.new()
    network = Network(trained(folder / "network.pt", fresh.network, partial(fresh.loss, others), STEPS))
    rows, pictures = on_images(network, packaged(), truth)
    write_atomically(out.with_suffix(".png"), png(sheet(pixels(pictures), columns=COLUMNS)))
    write_atomically(out, page(rows, on_gaussians()).encode())


if __name__ == "__main__":
    typer.run(main)
