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

Map = Callable[[Tensor], Tensor]


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
        return cls(unit.basis(away)[0](away).square().sum(0).reshape(away.shape[1:]) / (len(images) - 1), colours)

    def conditional(self, v: Tensor, node: Node) -> Tensor:
        """V v for v (B, C, H, W), V = Cov(x_0 | x) of Gaussian data: s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
        return self.prepared(node, v)(v)

    def prepared(self, node: Node, like: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> `conditional(v, node)` for many v like `like`: what all share is made once."""
        (into, back), left = self.basis(like), self.left(node, like)
        return lambda v: back(into(v) * left)

    def _images(self, z: Tensor) -> Tensor:
        return self.basis(z)[1](z.flatten(2))

    def left(self, node: Node, like: Tensor) -> Tensor:
        """The variances of V, (C, H W)."""
        left = self.variances * (node.sigma**2 / (node.alpha**2 * self.variances + node.sigma**2))
        return left.to(like).flatten(1)

    def basis(self, like: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> tuple[Map, Map]:
        """x -> B^T x, the coefficients (B, C, H W), and z -> B z, for many x like `like`.

        With the `tables` of an A along rows and columns, u -> (A B)^T u and z -> A B z for as many operations.
        """
        if like.shape[1:] != self.variances.shape:
            raise ValueError(f"spectrum is of images {tuple(self.variances.shape)}; got x of {tuple(like.shape[1:])}")
        rows, columns = (_cosines(side).to(like).T for side in like.shape[-2:])
        if tables is not None:
            rows, columns = (table.to(like) @ side for table, side in zip(tables, (rows, columns), strict=True))
        along, across = separable(rows.T, columns.T, like), separable(rows, columns, like)
        colours = self.colours.to(like).expand(len(like), -1, -1)
        coefficients, images = (*like.shape[:2], -1), (*like.shape[:2], len(rows), len(columns))

        def into(x: Tensor) -> Tensor:
            return torch.bmm(colours.mT, along(x).reshape(coefficients))

        def back(z: Tensor) -> Tensor:
            return across(torch.bmm(colours, z)).reshape(images)

        return into, back


@cache
def _cosines(side: int) -> Tensor:
    """(side, side), orthonormal: frequency k at pixel i is cos(pi k (i + 1/2) / side)."""
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    table = torch.cos(math.pi / side * torch.arange(side, dtype=torch.float64)[:, None] * pixel) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table
