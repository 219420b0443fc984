"""The covariance of images, in closed form: what they vary by in each cosine of each colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ..sampling import check_tensor
from ..schedule import Node
from .measurement import Linearised
from .separable import Map, adjoint_pair, same

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
        self._check(v)
        return self._images(self._coefficients(v) * self._left(node).to(v))

    def system(self, node: Node, like: Tensor, at: Linearised) -> tuple[Map, Map, Map]:
        """For many u like A `like`: u -> u', its coordinates; u' -> (A V A^T u)'; and u' -> V A^T u.

        What A does to each channel alike it does to each colour alike: u' is of colours, which are mixed no more. Where
        it works along rows and columns, it and the cosines are one pair of tables.
        """
        self._check(like)
        left = self._left(node).to(like).expand(like.shape).flatten(0, 1)  # of each channel
        cosines, colours = _cosines_of(like), self.colours.to(like)
        back, into = adjoint_pair(*cosines, len(left))
        turned, mixed = partial(_mixed, colours.T), partial(_mixed, colours)
        begin, before, after = (turned, same, same) if at.alike else (same, turned, mixed)

        def images(z: Tensor) -> Tensor:
            return back(z).reshape(like.shape)

        if at.alike and at.tables is not None:
            rows, columns = (table.to(like) @ side for table, side in zip(at.tables, cosines, strict=True))
            measured, pulled = adjoint_pair(rows, columns, len(left))

            def there(u: Tensor) -> Tensor:
                return pulled(u.flatten(0, 1))

            def again(z: Tensor) -> Tensor:
                return measured(z).reshape(at.measured.shape)

        else:

            def there(u: Tensor) -> Tensor:
                return into(before(at.adjoint(u)).flatten(0, 1))

            def again(z: Tensor) -> Tensor:
                return at.forward(after(images(z)))

        return begin, lambda u: again(there(u) * left), lambda u: mixed(images(there(u) * left))

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.variances.shape:
            raise ValueError(f"spectrum is of images {tuple(self.variances.shape)}; got x of {tuple(x.shape[1:])}")

    def _left(self, node: Node) -> Tensor:
        """The variances of V."""
        return self.variances * (node.sigma**2 / (node.alpha**2 * self.variances + node.sigma**2))

    def _coefficients(self, x: Tensor) -> Tensor:
        _, into = adjoint_pair(*_cosines_of(x), x.shape[0] * x.shape[1])
        return _mixed(self.colours.to(x).T, into(x.flatten(0, 1)).reshape(x.shape))

    def _images(self, z: Tensor) -> Tensor:
        back, _ = adjoint_pair(*_cosines_of(z), z.shape[0] * z.shape[1])
        return _mixed(self.colours.to(z), back(z.flatten(0, 1)).reshape(z.shape))


def _mixed(colours: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(colours.expand(len(x), -1, -1), x.flatten(2)).reshape(x.shape)


def _cosines_of(like: Tensor) -> tuple[Tensor, Tensor]:
    """Tables from coefficients to rows, and to columns."""
    height, width = like.shape[-2:]
    return _cosines(height).to(like).T, _cosines(width).to(like).T


@cache
def _cosines(side: int) -> Tensor:
    """(side, side), orthonormal: frequency k at pixel i is cos(pi k (i + 1/2) / side)."""
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    table = torch.cos(math.pi / side * torch.arange(side, dtype=torch.float64)[:, None] * pixel) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table
