"""The stochastic similarity filter: the more a frame is like the last one that was taken, the likelier it is skipped.

    P(skip) = max(0, (S - threshold) / (1 - threshold)),    S = <frame, reference> / (|frame| |reference|)

Drawn, not decided: a scene that hardly moves is refreshed now and then, without a visible step in the rate. Kodaira et
al., StreamDiffusion (2023), section 3.4.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

__all__ = ["Similar"]


class Similar:
    """skip(frame, reference) for `Stream`: whether to show the last image again. One number is drawn for each frame.

    Takes a number from the frame's device. `threshold` is the cosine similarity up to which nothing is skipped.
    """

    def __init__(self, threshold: float = 0.98, *, seed: int = 0) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), a cosine similarity; got threshold={threshold!r}")
        self.threshold = threshold
        self._random = random.Random(seed)

    def __call__(self, frame: Tensor, reference: Tensor) -> bool:
        alike = torch.cosine_similarity(frame.flatten().float(), reference.flatten().float(), 0).item()
        return self._random.random() < (alike - self.threshold) / (1 - self.threshold)
