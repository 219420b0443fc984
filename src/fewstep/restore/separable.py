"""Linear maps of images that work along the rows and along the columns: two small matrices, not one large."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Map", "adjoint_pair", "same", "separable"]

Map = Callable[[Tensor], Tensor]


def separable(rows: Tensor, columns: Tensor, channels: int) -> Map:
    """x -> rows x columns^T, for many x (channels, H, W), which become (channels, h, w): rows (h, H), columns (w, W).

    One product of matrices a channel, of the same shape in every batch, so that they do not depend on it.
    """
    left, right = (table.expand(channels, -1, -1) for table in (rows, columns.T))
    return lambda x: torch.bmm(torch.bmm(left, x), right)


def adjoint_pair(rows: Tensor, columns: Tensor, channels: int) -> tuple[Map, Map]:
    """That map, and its adjoint."""
    return separable(rows, columns, channels), separable(rows.T, columns.T, channels)


def same(x: Tensor) -> Tensor:
    return x
