"""The page docs/shifting.md: 4x super-resolution by residual shifting, with a small network trained here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_unshuffle

import fewstep as fs
from benchmarks.command import Data
from fewstep import restore
from fewstep.adapters import EDMModel
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import to_unit_range
from fewstep.models import CIFAR10

from .photos import held_out
from .training import BATCH, denoising_loss, trained, unet

__all__ = ["Network", "enlarged"]

SHAPE = (3, 32, 32)
FACTOR, NOISE = 4, 0.05
IMAGES = 32
OPERATOR = restore.superresolution(FACTOR, SHAPE)
# Trained on the levels of ResShift's chain at uniform times, down to cleaner ones than its authors' and for noise of
# half of theirs: a residual of images is smaller than one of latents.
LEVELS = restore.ResShift(kappa=1.0, eta_min=0.0001)
RESIDUAL_STD = 0.19  # of image less enlarged measurement, measured on 2,000 images
PATCH, WIDTHS = 2, (32, 48)
STEPS = 4000


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

    def denoiser(self, centre: Tensor, schedule: restore.ResShift | restore.Resfusion) -> fs.Denoiser:
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


def share(schedule: restore.ResShift | restore.Resfusion) -> float:
    """Of y in the centre of the chain."""
    return 0.5 if isinstance(schedule, restore.Resfusion) else 1.0


def main(
    data: Data = CIFAR10,
    folder: Annotated[Path, typer.Option(help="Of the network and its checkpoints.")] = Path("samples/shifting"),
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, _, others = held_out(data, load_classifier(), IMAGES)
    fresh = Network.new()
    network = Network(trained(folder / "network.pt", fresh.network, lambda draw: fresh.loss(others, draw), STEPS))


if __name__ == "__main__":
    typer.run(main)
