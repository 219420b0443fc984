"""Generalised conjugate residuals for a batch of systems, each to its own tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Solution", "conjugate_residuals"]


class Solution(NamedTuple):
    """u (B, *); and of each system the iterations, (B,), and what is left, |b - M u| / |b|, (B,)."""

    u: Tensor
    iterations: Tensor
    residual: Tensor


def conjugate_residuals(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, most: int) -> Solution:
    """u with M u = b, `product(u)` = M u, until |b - M u| <= tolerance |b|, or `most` iterations.

    Eisenstat, Elman & Schultz (1983): of all u in the Krylov space that conjugate gradients search, the one of the
    least residual. For a symmetric positive M both take as many iterations, within one or two. But M has a network's
    Jacobian in it, which is symmetric to some percent and not quite positive: there conjugate gradients diverge, and
    here the residual never grows. The price is `most` pairs of tensors like b.

    A system that is solved is frozen, so that it does not depend on the others. Inner products are of b's dtype. An
    accelerator waits once an iteration. scipy's solvers are for one system, on a CPU.
    """

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    u, r, whole = torch.zeros_like(b), b, dot(b, b)
    active = whole > 0
    iterations = torch.zeros_like(whole, dtype=torch.long)
    before: list[tuple[Tensor, Tensor]] = []  # directions p and their M p, which are orthonormal
    for _ in range(most):
        if not bool(active.any()):
            break
        p, image = r, product(r)
        for direction, its in before:
            share = dot(its, image)
            p, image = torch.addcmul(p, share, direction, value=-1), torch.addcmul(image, share, its, value=-1)
        size = dot(image, image).sqrt()
        active = active & (size > 0)
        # Not 0 times what a frozen system may have in the meantime: that may be NaN.
        p, image = (torch.where(active, each / size, 0) for each in (p, image))
        before.append((p, image))
        step = dot(image, r)
        u, r = u + step * p, r - step * image
        iterations += active
        active = active & (dot(r, r) > tolerance**2 * whole)
    residual = torch.where(whole > 0, (dot(r, r) / whole).sqrt(), 0)
    return Solution(u, iterations.flatten(), residual.flatten())
