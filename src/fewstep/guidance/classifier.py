"""Guidance by a classifier of noisy images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ..answers import DenoiserError
from ..prediction import Denoiser, agreed, each, spread
from ..schedule import Schedule
from .base import answer, checked, times

__all__ = ["classifier_guided"]


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """What `classifier_guided` returns."""

    denoiser: Denoiser
    classifier: Callable[[Tensor, Any], Tensor]
    scale: float | Tensor
    schedule: Schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        (reach,) = spread(each(self._reach, t), x)
        enabled = torch.is_grad_enabled()
        with torch.enable_grad():
            noisy = (x if enabled else x.detach()).clone().requires_grad_(True)
            told = self.classifier(noisy, t)
            if not isinstance(told, Tensor) or told.shape != x.shape[:1]:
                got = f"shape {tuple(told.shape)}" if isinstance(told, Tensor) else type(told).__name__
                raise DenoiserError(
                    f"the classifier returned {got} at time {t}; it must return log p(y | x), one a sample: "
                    f"{tuple(x.shape[:1])}"
                )
            # Of a run that is differentiated itself.
            twice = enabled and (x.requires_grad or unpack_dual(x).tangent is not None or _has_weights(told, noisy))
            gradient = None
            if told.requires_grad:
                (gradient,) = torch.autograd.grad(told.sum(), noisy, create_graph=twice, allow_unused=True)
            if gradient is None:
                raise DenoiserError(
                    f"the classifier's answer at time {t} has no derivative by x: leave out no_grad and detach in it"
                )
        denoised = answer(self.denoiser, x, t)
        # The product in float32 or better: sigma^2 / alpha is thousands near pure noise.
        push = times(self.scale, gradient.to(torch.promote_types(x.dtype, torch.float32)))
        guided: Tensor = (denoised + reach * push).to(denoised.dtype)
        return guided

    def _reach(self, t: float) -> tuple[float]:
        node = self.schedule.node(t)
        if node.alpha == 0:
            raise ValueError(f"a classifier says nothing at alpha = 0 (time {t!r}): start the grid below pure noise")
        return (node.sigma**2 / node.alpha,)


def _has_weights(told: Tensor, noisy: Tensor) -> bool:
    """Whether `told` came of anything else that a derivative is asked of."""
    seen: set[Any] = set()
    known = [told.grad_fn]
    while known:
        node = known.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", noisy) is not noisy:
            return True
        known.extend(before for before, _ in node.next_functions)
    return False


def classifier_guided(
    denoiser: Denoiser, classifier: Callable[[Tensor, Any], Tensor], scale: float | Tensor = 1.0
) -> Denoiser:
    """Classifier guidance: D + scale (sigma^2 / alpha) grad_x log p(y | x_t), scale 0 being none.

    `classifier(x, t)` returns log p(y | x_t) of each sample's class, (B,), of the same noisy x and clock as the
    denoiser; it is differentiated. `scale` is one for all, or a tensor (B,) of one a sample. Dhariwal & Nichol,
    Diffusion Models Beat GANs on Image Synthesis (2021), Algorithm 2, whose change of epsilon, -sigma scale grad, is
    this change of the denoised x. Each call evaluates the denoiser once, and the classifier once, there and back. With
    gradients enabled the answer has derivatives by x and by the classifier's weights, its second ones. ValueError for a
    scale that is not finite, and for a denoiser that carries no schedule; DenoiserError for a classifier that answers
    something else, or without a derivative.
    """
    if not callable(classifier):
        raise TypeError(f"classifier must be a function classifier(x, t); got {type(classifier).__name__}")
    schedule = agreed((denoiser,))
    if schedule is None:
        raise ValueError("classifier_guided needs a denoiser that carries its schedule, as as_denoiser makes them")
    return ClassifierGuided(denoiser, classifier, checked(scale), schedule)
