"""ADM's networks as denoisers: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis (2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...guidance import Batched, classifier_guided
from ...guidance.base import in_batches
from ...prediction import Denoiser, each, to_denoised
from ...schedule import Discrete
from .folder import CLASSIFIER, NETWORK, build, read_fields
from .model import Networked
from .networks.adm import ADMClassifier, ADMConfig, ADMUNet, ClassifierConfig

__all__ = ["ADMCard", "ADMNetwork", "load"]

LARGEST_BETA = 0.999  # of the cosine table, whose last would be 1
STEPS = 10_000  # at most


@dataclass(frozen=True)
class ADMCard:
    """What config.json says of a network of this family; without `classifier` there is no classifier."""

    network: ADMConfig
    classifier: ClassifierConfig | None = None
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    source: str = ""

    CHOICES = {"noise_schedule": ("linear", "cosine")}  # noqa: RUF012, a constant of the class

    def betas(self) -> list[float]:
        """Linear: 1e-4 to 0.02 for 1,000 steps. Cosine: of alpha-bar = cos^2(pi/2 (t + 0.008) / 1.008)."""
        n = self.diffusion_steps
        if not 2 <= n <= STEPS:
            raise ValueError(f"diffusion_steps must lie in [2, {STEPS:,}]; got {n}")
        if self.noise_schedule == "linear":
            low, high = 0.1 / n, 20.0 / n
            return [low + (high - low) * i / (n - 1) for i in range(n)]
        alpha_bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        return [min(1 - alpha_bar[i + 1] / alpha_bar[i], LARGEST_BETA) for i in range(n)]

    @property
    def classes(self) -> int:
        return self.network.num_classes or (self.classifier.num_classes if self.classifier else 0)


@dataclass(frozen=True, eq=False)
class ADMNetwork(Networked):
    """The U-Net's noise as the denoised x, on the clock of its table, 0 ... 999; what it learnt of a variance is left.

    The authors' sampler clips the denoised x to [-1, 1]: `clip` and `threshold` do that here.
    """

    classifier: ADMClassifier | None = None

    @property
    def family(self) -> str:
        """What was recognised."""
        return f"U-Net of guided diffusion (ADM), {'without' if self.classifier is None else 'with its'} classifier"

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.card.network.num_classes:
            raise ValueError("this network was trained with labels alone: give them one")
        return in_batches(self.denoised, self.batch, x, t)

    def denoised(self, x: Tensor, t: float | Tensor, *labels: Tensor) -> Tensor:
        """labels: (B,), if the network has classes."""
        epsilon = self.asked(x, self.level(x, t), *labels)[:, : x.shape[1]]
        return to_denoised("epsilon", epsilon, x, each(self.schedule.node, t))

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the classes `labels`, one a sample or one for all.

        With a classifier `guidance` is its scale, 1 the authors' for 256 x 256 pixels and 0 none; without one it must
        be 1, which adds nothing.
        """
        wanted = self.checked(labels)
        given: Denoiser = self
        if self.card.network.num_classes:
            given = Batched(self.denoised, wanted, self.schedule, self.batch)
        if self.classifier is not None and not isinstance(guidance, Tensor) and guidance == 0:
            return given
        if self.classifier is not None:
            return classifier_guided(given, Judged(self, wanted), guidance)
        if isinstance(guidance, Tensor) or guidance != 1:
            raise ValueError("this model has no classifier, which guidance needs: convert it with one, or use 1")
        return given


@dataclass(frozen=True, eq=False)
class Judged:
    """log p(label | x_t) by the classifier of a model."""

    model: ADMNetwork
    labels: Tensor

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return in_batches(self._log_prob, self.model.batch, x, t, self.labels.to(x.device).expand(len(x)))

    def _log_prob(self, x: Tensor, t: float | Tensor, labels: Tensor) -> Tensor:
        classifier = self.model.classifier
        if classifier is None:
            raise ValueError("the model has no classifier")
        inner = x.to(next(classifier.parameters()).dtype)
        return classifier.log_prob(inner, self.model.level(x, t), labels)


def load(
    folder: Path, facts: dict[str, Any], *, device: str | torch.device, dtype: torch.dtype, batch: int | None
) -> ADMNetwork:
    card: ADMCard = read_fields(ADMCard, facts, str(folder / "config.json"))
    unet, judge = card.network, card.classifier
    if judge is not None and (judge.image_size != unet.image_size or judge.num_classes != card.classes):
        raise ValueError(f"{folder}: the classifier is of other images or classes than the network: convert them again")
    schedule = Discrete(list(accumulate((1 - beta for beta in card.betas()), mul)))
    network = build(ADMUNet, unet, folder / NETWORK, device, dtype)
    classifier: Any = None if judge is None else build(ADMClassifier, judge, folder / CLASSIFIER, device, dtype)
    shape = (3, unet.image_size, unet.image_size)
    return ADMNetwork(network, card, shape, schedule, tuple(map(str, range(card.classes))), batch, classifier)
