"""The small classifier of CIFAR-10 whose features measure distances between sets of images.

It stands in for Inception, which is large, has to be downloaded, and expects 299 x 299 pixels: a distance in these
features orders samplers of this data set, and is comparable with nothing but itself.
"""

from __future__ import annotations

import json
import textwrap
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models import MODELS

__all__ = ["Classifier", "load_classifier"]

FOLDER = MODELS / "cifar32-classifier"
WEIGHTS = "model.safetensors"


class Classifier(nn.Module):
    """Residual stages at 16, 8 and 4 pixels over images (B, 3, 32, 32) in [-1, 1].

    Each halves the side by a maximum, widens by a convolution, and adds a second one to the first:
    y = f(conv(pool x)), then y + f(conv y), with f = GELU after batch normalisation.
    """

    def __init__(self, widths: tuple[int, ...], classes: int):
        super().__init__()
        self.stem = _layer(3, widths[0])
        pairs = list(pairwise(widths))
        self.wider = nn.ModuleList(_layer(a, b) for a, b in pairs)
        self.deeper = nn.ModuleList(_layer(b, b) for _, b in pairs)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, widths[-1]): the mean over the last stage."""
        x = self.stem(x)
        for wider, deeper in zip(self.wider, self.deeper, strict=True):
            x = wider(nn.functional.max_pool2d(x, 2))
            x = x + deeper(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _layer(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.GELU())


def load_classifier(folder: Path = FOLDER, device: str | torch.device = "cpu") -> Classifier:
    """The packaged classifier, or one that training/train_classifier.py made; in float32, for evaluation."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("loading a classifier needs safetensors: pip install 'fewstep[bench]'") from error
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(f"no classifier in {folder}: make one with training/train_classifier.py")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classifier = Classifier(tuple(config["widths"]), config["classes"])
        classifier.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # a corrupt header, missing or misshapen tensors, a configuration that is none
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(f"{folder} does not hold a whole classifier ({reason}): train or copy it again") from error
    return classifier.eval().requires_grad_(False).to(device)
