"""What every kind of guidance shares: two answers to one question, and a scale that may be one a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..answers import check_answer
from ..arguments import count
from ..prediction import Denoiser
from ..schedule import Schedule

__all__ = ["Batched", "answer", "checked", "in_batches", "pair", "times"]


@dataclass(frozen=True, eq=False)
class Batched:
    """One condition of a network that takes a condition a sample, so that guidance asks for two at once.

    `network(x, t, condition)` gets x (B, *) and a condition (B, *), and returns the denoised x. Here `condition` is
    one for all, of batch 1, or one a sample. Two of these of one network are evaluated together, in one evaluation of
    2 B samples, wherever guidance needs both: half as many evaluations, each twice as large. Conditions of two shapes
    a sample, such as prompts of other lengths, are evaluated apart. ValueError at a call for conditions of another
    number.

    With `batch` the network gets exactly so many samples at a time, or twice as many where it is asked for two
    conditions; the last ones fill up. On a CPU a sample is then the same, to the bit, whatever it is batched with.
    """

    network: Callable[[Tensor, Any, Tensor], Tensor]
    condition: Tensor
    schedule: Schedule | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"network must be a function network(x, t, condition); got {self.network!r}")
        if not isinstance(self.condition, Tensor):
            raise TypeError(
                f"condition must be a tensor (B, *); got {type(self.condition).__name__}: torch.as_tensor it"
            )
        if self.batch is not None and count(self.batch) < 1:
            raise ValueError(f"batch must be an integer of at least 1, or None for all at once; got {self.batch!r}")

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return in_batches(self.network, self.batch, x, t, self._of(x))

    def _of(self, x: Tensor) -> Tensor:
        if self.condition.ndim == 0 or len(self.condition) not in (1, len(x)):
            raise ValueError(
                f"condition must be one for all or one a sample, 1 or {len(x)}; got shape {tuple(self.condition.shape)}"
            )
        return self.condition.to(x.device).expand(len(x), *self.condition.shape[1:])

    def beside(self, other: Denoiser, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor] | None:
        """The answers of both from one evaluation; None if `other` is of another network or shape of condition."""
        if not isinstance(other, Batched) or other.network != self.network:
            return None
        if other.condition.shape[1:] != self.condition.shape[1:]:
            return None

        def both(x: Tensor, t: float | Tensor, *conditions: Tensor) -> Tensor:
            twice, times = torch.cat([x, x]), torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
            found = self.network(twice, times, torch.cat(conditions))
            check_answer(found, twice, "the network", t)
            return torch.stack(found.chunk(2), dim=1)

        first, second = in_batches(both, self.batch, x, t, self._of(x), other._of(x)).unbind(1)
        return first, second


def in_batches(
    function: Callable[..., Tensor], batch: int | None, x: Tensor, t: float | Tensor, *conditions: Tensor
) -> Tensor:
    """function(x, t, *conditions) on exactly `batch` samples at a time, if that is given; the last one fills up."""
    if batch is None:
        return function(x, t, *conditions)
    every = torch.arange(-(-len(x) // batch) * batch).clamp_max(len(x) - 1)
    own = isinstance(t, Tensor) and t.ndim
    answers = [
        function(x[rows.to(x.device)], t[rows.to(t.device)] if own else t, *(c[rows.to(c.device)] for c in conditions))  # type: ignore[index,union-attr]
        for rows in every.split(batch)
    ]
    return torch.cat(answers)[: len(x)]


def answer(denoiser: Denoiser, x: Tensor, t: float | Tensor, who: str = "the denoiser") -> Tensor:
    """What `denoiser` makes of x; DenoiserError if that is not a tensor like x."""
    denoised = denoiser(x, t)
    check_answer(denoised, x, who, t)
    return denoised


def pair(denoiser: Denoiser, uncond: Denoiser, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both answers at x: from one evaluation if both are `Batched` of one network, else from one each."""
    if isinstance(denoiser, Batched) and (both := denoiser.beside(uncond, x, t)) is not None:
        return both
    # Copies: a model may work in place on its input, and both may answer in one buffer.
    denoised = answer(denoiser, x.clone(), t).clone()
    return denoised, answer(uncond, x.clone(), t, "the unconditional denoiser")


def checked(scale: float | Tensor, name: str = "scale") -> float | Tensor:
    """A scale as a float, or as a tensor (B,) of float64; TypeError if it is neither, ValueError if not finite."""
    try:
        scales: Any = torch.as_tensor(scale, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, or a tensor of one a sample; got {name}={scale!r}") from error
    if scales.ndim > 1 or not bool(scales.isfinite().all()):
        raise ValueError(f"{name} must be finite, one for all or a tensor (B,); got {name}={scale!r}")
    if scales.requires_grad and not scales.ndim:
        raise ValueError(f"{name} as one number drops its derivative; got {name}={scale!r}: give {name}.expand(B)")
    return scales if scales.ndim else float(scales)


def times(weight: float | Tensor, change: Tensor, name: str = "scale") -> Tensor:
    """weight * change, of change's type, for a weight that is one for all or one a sample."""
    if not isinstance(weight, Tensor):
        return weight * change
    if weight.shape != change.shape[:1]:
        raise ValueError(f"{name} must be one for all or one a sample, {len(change)}; got {len(weight)}")
    # In float32 or better, as a number would be, and rounded once.
    each = weight.to(change.device, torch.promote_types(change.dtype, torch.float32))
    return (each.reshape(-1, *[1] * (change.ndim - 1)) * change).to(change.dtype)
