"""The networks of Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), as
denoisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...guidance import Batched, guided
from ...prediction import Denoiser, each, spread
from ...schedule import EDM
from .folder import NETWORK, build, read_fields
from .model import Networked
from .networks.edm import EDMUNet, UNetConfig

__all__ = ["EDMCard", "EDMNetwork", "load"]


@dataclass(frozen=True)
class EDMCard:
    """What config.json says of a network of this family; the defaults are EDM's."""

    network: UNetConfig
    preconditioning: str = "edm"
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    beta_d: float = 19.9  # of "vp"
    beta_min: float = 0.1
    M: int = 1000
    source: str = ""

    CHOICES = {"preconditioning": ("edm", "vp", "ve")}  # noqa: RUF012, a constant of the class

    def coefficients(self, sigma: float) -> tuple[float, float, float, float]:
        """(c_skip, c_out, c_in, c_noise), Table 1."""
        if self.preconditioning == "vp":
            time = math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log1p(sigma**2)) - self.beta_min
            return 1.0, -sigma, 1 / math.hypot(sigma, 1), (self.M - 1) * time / self.beta_d
        if self.preconditioning == "ve":
            return 1.0, sigma, 1.0, math.log(sigma / 2)
        norm = math.hypot(sigma, self.sigma_data)
        return (self.sigma_data / norm) ** 2, sigma * self.sigma_data / norm, 1 / norm, math.log(sigma) / 4


@dataclass(frozen=True, eq=False)
class EDMNetwork(Networked):
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise, label), on the clock of EDM: sigma.

    Without labels a network of classes is told none, zeros for one-hot, as its authors' code does.
    """

    @property
    def family(self) -> str:
        """What was recognised."""
        kind = self.card.preconditioning
        name = f"{self.card.network.model_type} of EDM"
        return name if kind == "edm" else f"{name}, preconditioned as {kind.upper()}"

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._told(torch.zeros(1, len(self.classes)))(x, t)

    def _told(self, labels: Tensor) -> Batched:
        return Batched(self.denoised, labels, self.schedule, self.batch)

    def denoised(self, x: Tensor, t: float | Tensor, told: Tensor) -> Tensor:
        """told (B, classes), one-hot."""
        skip, out, scale, noise = spread(each(self.card.coefficients, t), x)
        denoised: Tensor = x * skip + self.asked(x * scale, self.level(x, noise), told) * out
        return denoised.to(x.dtype)

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the classes `labels`, one a sample or one for all; guidance, too, and 1 adds nothing.

        Guidance needs a network that was trained with labels left out (`label_dropout`); both answers are of one
        evaluation of twice as many images.
        """
        conditioned = self._told(one_hot(self.checked(labels), len(self.classes)).float())
        if not isinstance(guidance, Tensor) and guidance == 1:
            return conditioned
        if not self.card.network.label_dropout:
            raise ValueError("this model was never trained without labels, which guidance needs: use guidance=1")
        return guided(conditioned, self._told(torch.zeros(1, len(self.classes))), guidance)


def load(
    folder: Path, facts: dict[str, Any], *, device: str | torch.device, dtype: torch.dtype, batch: int | None
) -> EDMNetwork:
    card: EDMCard = read_fields(EDMCard, facts, str(folder / "config.json"))
    unet = card.network
    if unet.in_channels != unet.out_channels:
        raise ValueError(f"{folder}: the network must have as many channels out as in; got {unet}")
    schedule = EDM(card.sigma_min, card.sigma_max, data_std=card.sigma_data)
    network = build(EDMUNet, unet, folder / NETWORK, device, dtype)
    shape = (unet.in_channels, unet.img_resolution, unet.img_resolution)
    return EDMNetwork(network, card, shape, schedule, tuple(map(str, range(unet.label_dim))), batch)
