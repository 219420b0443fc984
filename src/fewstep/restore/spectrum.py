"""The covariance of images, in closed form: what they vary by in each cosine of each colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..sampling import check_tensor
from ..schedule import Node
from .separable import separable

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Covariance B diag(variances) B^T of images (C, H, W): B the discrete cosines along both sides, times `colours`.

    Cosines (DCT-II) nearly diagonalise the covariance of natural images (Ahmed, Natarajan & Rao, 1974), without the
    periodic edges of a Fourier transform. variances (C, H, W), colours (C, C) orthogonal, float64.
    """

    variances: Tensor
    colours: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Spectrum:
        """Of images (N, C, H, W), N of 2 or more, as the model has them: data or its samples. A hundred will do."""
        check_tensor("images", images, True)
        if images.ndim != 4 or len(images) < 2:
            raise ValueError(f"images must be (N, C, H, W) with N of 2 or more; got shape {tuple(images.shape)}")
        if bool((images == images[:1]).all()):
            raise ValueError("images must differ, or there is nothing that they vary by; these are copies of one")
        away = images.double() - images.double().mean(0)
        colours = torch.linalg.eigh(torch.einsum("nchw,ndhw->cd", away, away)).eigenvectors
        unit = cls(torch.ones_like(away[0]), colours)
        return cls(unit._coefficients(away).square().sum(0) / (len(images) - 1), colours)

    def conditional(self, v: Tensor, node: Node) -> Tensor:
        """V v for v (B, C, H, W), V = Cov(x_0 | x) of Gaussian data: s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
        return self.prepared(node, v)(v)

    def prepared(
        self, node: Node, like: Tensor, tables: tuple[Tensor, Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """v -> `conditional(v, node)` for many v like `like`: what all share is made once.

        With the `tables` of an A along rows and columns, u -> A V A^T u for u like A `like`, at the same cost.
        """
        if like.shape[1:] != self.variances.shape:
            raise ValueError(f"spectrum is of images {tuple(self.variances.shape)}; got x of {tuple(like.shape[1:])}")
        left = (self.variances * (node.sigma**2 / (node.alpha**2 * self.variances + node.sigma**2))).to(like).flatten(1)
        into, back = self._basis(like, tables)
        return lambda v: back(into(v) * left).reshape(v.shape)

    def _coefficients(self, x: Tensor) -> Tensor:
        return self._basis(x)[0](x).reshape(x.shape)

    def _images(self, z: Tensor) -> Tensor:
        return self._basis(z)[1](z.flatten(2)).reshape(z.shape)

    def _basis(
        self, like: Tensor, tables: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """B^T and B, or (A B)^T and A B; of coefficients (B, C, H W)."""
        rows, columns = (_cosines(side).to(like).T for side in like.shape[-2:])
        if tables is not None:
            rows, columns = tables[0] @ rows, tables[1] @ columns
        along, across = separable(rows.T, columns.T, like), separable(rows, columns, like)
        colours = self.colours.to(like).expand(len(like), -1, -1)

        def into(x: Tensor) -> Tensor:
            return torch.bmm(colours.mT, along(x).reshape(*colours.shape[:2], -1))

        def back(z: Tensor) -> Tensor:
            return across(torch.bmm(colours, z))

        return into, back


@cache
def _cosines(side: int) -> Tensor:
    """(side, side), orthonormal: frequency k at pixel i is cos(pi k (i + 1/2) / side)."""
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    table = torch.cos(math.pi / side * torch.arange(side, dtype=torch.float64)[:, None] * pixel) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table
