"""Linear maps of images that work along the rows and along the columns: two small matrices, not one large."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["separable"]


def separable(rows: Tensor, columns: Tensor, channels: int) -> Callable[[Tensor], Tensor]:
    """x -> rows x columns^T for many x (channels, H, W): rows (h, H), columns (w, W), and what it becomes (channels, h,
    w). Each product has a shape of its own, whatever the batch."""
    left, right = (table.expand(channels, -1, -1) for table in (rows, columns.T))
    return lambda x: torch.bmm(torch.bmm(left, x), right)
