"""A small latent diffusion model of photographs, trained here: an autoencoder, then a denoiser of its latents.

The images are crops of the photographs that scikit-image ships, none of CIFAR-10: the model is something to measure on
that nothing was tuned on, not something to look at. Some minutes on one core, on from where they were stopped.

Latents (4, 8, 8) are scaled to a standard deviation of 1, by one number for all channels, as those of Rombach et al.,
High-Resolution Image Synthesis with Latent Diffusion Models (2022).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.adapters import EDMModel
from fewstep.adapters.unet2d import BATCH
from fewstep.bench.images import to_unit_range
from fewstep.schedule import EDM

from .restore.training import BATCH as TRAINED
from .restore.training import denoising_loss, trained, unet

__all__ = ["CODING_STEPS", "DENOISING_STEPS", "SHAPE", "crops", "latent_model", "photographs"]

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
SIDE, SHAPE = 32, (4, 8, 8)
HALVED = 2  # photographs are reduced by this before crops are taken
CODING_STEPS, DENOISING_STEPS = 300, 750
KL = 1e-4  # weight of the latents' divergence from unit normals, beside squared errors of pixels
LATENTS = 2048  # crops whose latents give their scale
NOISE_MEAN, NOISE_STD, NOISE_SCALE = -0.4, 1.6, 4.0  # of ln sigma, about a deviation of 1; scale as packaged models'
SIGMAS = (0.01, 80.0)
WIDTHS = (64, 96)


def photographs() -> list[Tensor]:
    """Those of scikit-image, (3, H, W) in [-1, 1], at half their size."""
    from skimage import data

    read = (torch.from_numpy(np.ascontiguousarray(getattr(data, name)())) for name in PHOTOGRAPHS)
    return [nn.functional.avg_pool2d(to_unit_range(each.permute(2, 0, 1)), HALVED) for each in read]


def crops(images: list[Tensor], count: int, draw: torch.Generator) -> Tensor:
    """(count, 3, SIDE, SIDE), at random places of the photographs, flipped half the time."""
    found = []
    for which, down, right, flip in torch.rand(count, 4, generator=draw).tolist():
        image = images[int(which * len(images))]
        top, left = (int(u * (size - SIDE + 1)) for u, size in zip((down, right), image.shape[1:], strict=True))
        crop = image[:, top : top + SIDE, left : left + SIDE]
        found.append(crop.flip(-1) if flip < 0.5 else crop)
    return torch.stack(found)


def autoencoder() -> nn.Module:
    """Of SIDE x SIDE pixels in latents of SHAPE."""
    from diffusers import AutoencoderKL

    widths = (16, 32, 64)
    return AutoencoderKL(  # type: ignore[return-value]
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=SHAPE[0],
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def coding_loss(network: Any, images: list[Tensor], draw: torch.Generator) -> Tensor:
    """Squared error of the decoded crops, and a little of the latents' divergence from unit normals."""
    x = crops(images, TRAINED, draw)
    code = network.encode(x).latent_dist
    decoded = network.decode(code.sample(draw)).sample
    loss: Tensor = (decoded - x).square().mean() + KL / math.prod(SHAPE) * code.kl().mean()
    return loss


def latent_model(
    folder: Path, images: list[Tensor], coding: int = CODING_STEPS, denoising: int = DENOISING_STEPS
) -> EDMModel:
    """The denoiser of latents, trained, or read from `folder`, after so many steps of each network."""
    torch.manual_seed(0)  # of the weights at the start
    network = autoencoder()
    coder: Any = trained(folder / "coding.pt", network, partial(coding_loss, network, images), coding)

    @torch.no_grad()
    def encoded(count: int, draw: torch.Generator) -> Tensor:
        means = [coder.encode(part).latent_dist.mean for part in crops(images, count, draw).split(TRAINED)]
        return torch.cat(means)

    std = encoded(LATENTS, torch.Generator().manual_seed(0)).std()

    def wrapped(network: nn.Module) -> EDMModel:
        return EDMModel(network, SHAPE, EDM(*SIGMAS), sigma_data=1.0, noise_scale=NOISE_SCALE)

    inner = unet(SHAPE[0], SHAPE[0], WIDTHS, SHAPE[1])

    def loss(draw: torch.Generator) -> Tensor:
        clean = encoded(TRAINED, draw) / std
        sigma = torch.exp(torch.randn(TRAINED, generator=draw) * NOISE_STD + NOISE_MEAN)
        return denoising_loss(wrapped(inner), clean, sigma, draw)

    model = wrapped(trained(folder / "denoising.pt", inner, loss, denoising))
    return EDMModel(model.network, SHAPE, model.schedule, 1.0, NOISE_SCALE, batch=BATCH)
