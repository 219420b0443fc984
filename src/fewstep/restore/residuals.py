"""Generalised conjugate residuals for a batch of systems, each to its own tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..solvers.core.inner import Inner

__all__ = ["Solution", "conjugate_residuals"]


class Solution(NamedTuple):
    """u (B, *); and of each system the iterations, (B,), and what is left, |b - M u| / |b|, (B,)."""

    u: Tensor
    iterations: Tensor
    residual: Tensor


def conjugate_residuals(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, most: int) -> Solution:
    """u with M u = b, `product(u)` = M u, until |b - M u| <= tolerance |b|, or `most` iterations.

    Eisenstat, Elman & Schultz (1983): of all u in the Krylov space that conjugate gradients search, the one of the
    least residual. M may have a network's Jacobian in it, which is symmetric to some percent and not quite positive:
    there conjugate gradients diverge, and here the residual never grows. The price is `most` pairs of tensors like b.
    Of a symmetric M the last pair will do: `symmetric_residuals`.

    A system that is solved is frozen, so that it does not depend on the others. Inner products are of b's dtype. An
    accelerator waits once an iteration. scipy's solvers are for one system, on a CPU.
    """

    r = due = b.flatten(1)
    dot = Inner(r, None).dot
    found, whole = r.new_zeros(2, *r.shape), dot(r, r)  # u and M u
    left, enough = whole, tolerance**2 * whole
    active, iterations = whole > 0, torch.zeros_like(whole, dtype=torch.long)
    before: list[Tensor] = []  # directions p and their M p, which are orthonormal: (2, B, *)
    for _ in range(most):
        if not bool(active.any()):
            break
        pair = torch.stack([r, product(r.reshape(b.shape)).flatten(1)])
        for earlier in before:
            pair = torch.addcmul(pair, dot(earlier[1], pair[1]), earlier, value=-1)
        size = dot(pair[1], pair[1]).sqrt()
        active = active & (size > 0)
        # Not 0 times what a frozen system may have in the meantime: that may be NaN.
        pair = torch.where(active, pair / size, 0)
        before.append(pair)
        found = torch.addcmul(found, dot(pair[1], r), pair)
        r = due - found[1]
        left = dot(r, r)
        iterations += active
        active = active & (left > enough)
    residual = torch.where(whole == 0, 0, (left / whole).sqrt())
    return Solution(found[0].reshape(b.shape), iterations.flatten(), residual.flatten())
