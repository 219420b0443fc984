"""What the families share: a network that is asked in batches of one size, with labels that are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...prediction import Denoiser
from ...schedule import Schedule
from ...statistics import fingerprint
from ..labels import class_labels

__all__ = ["Networked"]


@dataclass(frozen=True, eq=False)
class Networked(ABC):
    """A network as a denoiser; itself that of no class. `denoised` is a family's.

    `batch`, if given, evaluates the network in batches of exactly that many images, filling up the last: on CPU an
    image is then the same, bit for bit, whatever it is batched with. Otherwise it may differ in the last bits.
    """

    network: nn.Module
    card: Any  # what the folder's config.json says
    shape: tuple[int, int, int]
    schedule: Schedule
    classes: tuple[str, ...]
    batch: int | None

    @property
    @abstractmethod
    def family(self) -> str:
        """What was recognised."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and what the folder says of them, under which statistics of this model are recorded."""
        return fingerprint(self.network, card=repr(self.card))

    def asked(self, x: Tensor, *told: Tensor) -> Tensor:
        """The network's answer, (B, *), in x's type."""
        answer: Tensor = self.network(x.to(next(self.network.parameters()).dtype), *told)
        return answer.to(x.dtype)

    def level(self, x: Tensor, value: float | Tensor) -> Tensor:
        """What the network is told, (B,), of one value for all or one a sample."""
        return torch.as_tensor(value, dtype=torch.float32, device=x.device).flatten().expand(len(x))

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the classes `labels`, one a sample or one for all."""
        raise ValueError("this model has no classes: call it as it is")

    def checked(self, labels: Sequence[int] | Tensor | int) -> Tensor:
        """Labels as a tensor, (1,) or (B,)."""
        return class_labels(labels, self.classes).reshape(-1).long()
