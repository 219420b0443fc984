"""Conjugate gradients for a batch of symmetric positive systems, each to its own tolerance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .residuals import Solution

__all__ = ["conjugate_gradients"]


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, most: int) -> Solution:
    """u with M u = b, `product(u)` = M u for symmetric positive M, until |b - M u| <= tolerance |b|, or `most` times.

    Hestenes & Stiefel (1952): of all u in the Krylov space, the one of the least error in M's own norm. It keeps three
    tensors like b. For an M that is only nearly symmetric, as with a network's Jacobian in it, `conjugate_residuals`.

    A system that is solved is frozen, so that it does not depend on the others. Inner products are of b's dtype. An
    accelerator waits once an iteration.
    """

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).sum(1, keepdim=True)

    p = r = b.flatten(1)
    u = torch.zeros_like(r)
    left = whole = dot(r, r)
    enough, zero = tolerance**2 * whole, whole.new_zeros(())
    active, iterations = whole > 0, torch.zeros_like(whole, dtype=torch.long)
    for _ in range(most):
        if not bool(active.any()):
            break
        image = product(p.reshape(b.shape)).flatten(1)
        step = torch.where(active, left / dot(p, image), zero)  # 0 / 0 where nothing is left
        u, r = torch.addcmul(u, step, p), torch.addcmul(r, step, image, value=-1)
        iterations += active
        before, left = left, dot(r, r)
        active = active & (left > enough)
        p = torch.addcmul(r, torch.where(active, left / before, zero), p)
    residual = torch.where(whole > 0, (left / whole).sqrt(), zero)
    return Solution(u.reshape(b.shape), iterations.flatten(), residual.flatten())
