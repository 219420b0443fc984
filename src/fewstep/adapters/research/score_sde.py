"""The continuous networks of Song et al., Score-Based Generative Modeling through SDEs (2021), as denoisers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...guidance.base import in_batches
from ...prediction import each, spread, to_denoised
from ...schedule import DATA_STD, EDM, VPLinear
from .folder import NETWORK, build, read_fields
from .model import Networked
from .networks.score_sde import NCSNpp, NCSNppConfig

__all__ = ["ScoreSDECard", "ScoreSDENetwork", "load"]

TOLD_VP = 999.0  # times t


@dataclass(frozen=True)
class ScoreSDECard:
    """What config.json says of a network of this family; sigmas are of data in [0, 1] if that is not centred."""

    network: NCSNppConfig
    sde: str = "vpsde"
    beta_min: float = 0.1  # of "vpsde"
    beta_max: float = 20.0
    sigma_min: float = 0.01  # of "vesde"
    sigma_max: float = 50.0
    source: str = ""

    CHOICES = {"sde": ("vpsde", "vesde")}  # noqa: RUF012, a constant of the class


@dataclass(frozen=True, eq=False)
class ScoreSDENetwork(Networked):
    """VP: the network, told 999 t, predicts the noise; the clock is t, in (0, 1]. VE: told sigma, the score.

    Where the authors' data are in [0, 1], they are in [-1, 1] here, as everybody else's: noise levels are twice theirs.
    """

    @property
    def family(self) -> str:
        """What was recognised."""
        return f"network of ScoreSDE, {'VP' if self.card.sde == 'vpsde' else 'VE'}"

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return in_batches(self.denoised, self.batch, x, t)

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.card.sde == "vpsde":
            node = each(self.schedule.node, t)
            return to_denoised("epsilon", self.asked(x, self.level(x, TOLD_VP * t)), x, node)
        (square,) = spread(each(lambda time: (time**2,), t), x)
        if self.card.network.centered:
            denoised: Tensor = x + square * self.asked(x, self.level(x, t))
        else:
            # y = (x + 1) / 2 has the level t / 2, and 2 (y + (t / 2)^2 score) - 1 is
            denoised = x + square / 2 * self.asked((x + 1) / 2, self.level(x, t / 2))
        return denoised.to(x.dtype)


def load(
    folder: Path, facts: dict[str, Any], *, device: str | torch.device, dtype: torch.dtype, batch: int | None
) -> ScoreSDENetwork:
    card: ScoreSDECard = read_fields(ScoreSDECard, facts, str(folder / "config.json"))
    unet = card.network
    schedule: VPLinear | EDM
    if card.sde == "vpsde":
        if not unet.centered:
            raise ValueError(f"{folder}: centered must be true for vpsde, whose noise is of data in [-1, 1]")
        schedule = VPLinear(card.beta_min, card.beta_max, data_std=DATA_STD)
    else:
        factor = 1 if unet.centered else 2
        schedule = EDM(factor * card.sigma_min, factor * card.sigma_max, data_std=DATA_STD)
    network = build(NCSNpp, unet, folder / NETWORK, device, dtype)
    shape = (unet.num_channels, unet.image_size, unet.image_size)
    return ScoreSDENetwork(network, card, shape, schedule, (), batch)
