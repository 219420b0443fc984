"""What patch parallelism costs in error: each half of an image sees the other as it was one call ago.

DistriFusion (Li et al., 2024) and PCPP (Zhang et al., 2024) give each device a part of the image, and let it take the
others' features from the call before, so that they are sent while it computes. Here both devices are simulated on one:
each layer that mixes pixels (convolutions, group norms, attention) is evaluated twice, with one half of its input fresh
and the other late, and of each result the fresh half is kept. The first call is whole, as theirs are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.unet2d import EDMModel
from fewstep.bench.markdown import table
from fewstep.prediction import Denoiser
from fewstep.sampling import sample, unit_noise
from fewstep.solvers import DDIM, EVODiff, Solver, UniPC

__all__ = ["Late", "divided", "errors", "report", "rmse"]

IMAGES = 16
BUDGETS = (5, 8, 12, 20)
CONVERGED = 60  # calls of UniPC-3: its error is a hundredth of the least here
SOLVERS: Mapping[str, Solver] = {"EVODiff": EVODiff(), "DDIM": DDIM()}


class Late:
    """The forward of a layer on two devices. `old` is its input one call ago, None before the first."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.whole: Callable[..., Tensor] = layer.forward
        self.old: Tensor | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        old, self.old = self.old, x
        if old is None:
            return self.whole(x, *args, **kwargs)
        half = x.shape[2] // 2
        upper = self.whole(torch.cat([x[:, :, :half], old[:, :, half:]], 2), *args, **kwargs)
        lower = self.whole(torch.cat([old[:, :, :half], x[:, :, half:]], 2), *args, **kwargs)
        half = upper.shape[2] // 2
        return torch.cat([upper[:, :, :half], lower[:, :, half:]], 2)


def divided(model: EDMModel) -> tuple[EDMModel, list[Late]]:
    """The model with each layer that mixes pixels divided, and those layers: set their `old` to None for a new run."""
    network = copy.deepcopy(model.network)
    layers = [Late(layer) for layer in _mixing(network)]
    for late in layers:
        late.whole.__self__.forward = late  # type: ignore[attr-defined]
    return dataclasses.replace(model, network=network, batch=None), layers


def _mixing(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for layer in module.children():
        wide = isinstance(layer, torch.nn.Conv2d) and max(layer.kernel_size) > 1
        if wide or isinstance(layer, torch.nn.GroupNorm) or type(layer).__name__ == "Attention":
            yield layer
        else:
            yield from _mixing(layer)


def errors(
    model: EDMModel, images: int = IMAGES, budgets: Sequence[int] = BUDGETS, converged: int = CONVERGED
) -> dict[tuple[str, int], tuple[float, float, float]]:
    """RMSE of each solver and budget: to the converged solution on one device and on two, and between these."""
    labels = torch.arange(images) % len(model.classes)
    noise = unit_noise(range(images), model.shape)
    late, layers = divided(model)

    def run(denoiser: Denoiser, **options: Any) -> Tensor:
        for layer in layers:
            layer.old = None
        return sample(denoiser, noise, **options)

    whole, halves = model.conditioned(labels), late.conditioned(labels)
    exact = run(whole, nfe=converged, solver=UniPC(order=3))
    found = {}
    for name, solver in SOLVERS.items():
        for nfe in budgets:
            one, two = (run(denoiser, nfe=nfe, solver=solver) for denoiser in (whole, halves))
            found[name, nfe] = rmse(one, exact), rmse(two, exact), rmse(one, two)
    return found


def rmse(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def report(found: Mapping[tuple[str, int], tuple[float, float, float]]) -> str:
    """As a table of Markdown."""
    rows = [
        [name, str(nfe), f"{one:.4f}", f"{two:.4f}", f"{apart:.4f}", f"{two / one:.2f}"]
        for (name, nfe), (one, two, apart) in found.items()
    ]
    return table(["solver", "calls", "error, one device", "error, two", "between them", "two / one"], rows)
