"""What a model may answer, and the words for what it may not: the same wherever one is called."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

__all__ = ["DenoiserError", "check_answer", "how_to_convert"]


Times = float | list[float] | Tensor  # of a call: one, or one a sample


class DenoiserError(ValueError):
    """A model returned something that is not a tensor like its input: wrong type, shape, device, or NaN."""


def check_answer(
    answer: object, x: Tensor, who: str, time: Times, *, sigma: float | None = None, index: int | None = None
) -> None:
    """DenoiserError unless `answer` is floating point, of the shape and on the device of `x`, which `who` was given."""
    if not isinstance(answer, Tensor):
        _refuse(who, type(answer).__name__, f"it must return a tensor{how_to_convert(answer)}", time, sigma, index)
    if answer.shape != x.shape:
        shapes = f"shape {tuple(answer.shape)} for x of shape {tuple(x.shape)}"
        remedy = "it must return the shape it was given"
        if answer.ndim == x.ndim > 1 and answer.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            remedy += " (with a learned variance, keep the first half of the channels: output.chunk(2, 1)[0])"
        _refuse(who, shapes, remedy, time, sigma, index)
    if answer.device != x.device:
        _refuse(who, f"a tensor on {answer.device} for x on {x.device}", "it must return it there", time, sigma, index)
    if not answer.is_floating_point():
        _refuse(who, str(answer.dtype), "it must return floating point", time, sigma, index)


def _refuse(who: str, what: str, remedy: str, time: Times, sigma: float | None, index: int | None) -> NoReturn:
    place = "time " + ", ".join(f"{one:g}" for one in torch.as_tensor(time, dtype=torch.float64).flatten().tolist())
    place += "" if sigma is None else f", sigma {sigma:g}"
    where = place if index is None else f"call {index} ({place})"
    raise DenoiserError(f"{who} returned {what} at {where}; {remedy}")


def how_to_convert(value: object) -> str:
    """How to make a tensor of `value`, to follow a sentence; empty where that is not known."""
    if isinstance(value, Tensor):
        if value.dtype == torch.uint8:
            return " (.float() / 127.5 - 1, of an image)"
        return "" if value.is_floating_point() or value.is_complex() else " (.float())"
    if isinstance(value, tuple | list):
        return " (the first of these? or torch.stack, torch.as_tensor)"
    if type(value).__module__.partition(".")[0] == "numpy":
        return " (torch.from_numpy)"
    if hasattr(value, "__dlpack__"):  # JAX and others
        return " (torch.from_dlpack)"
    return " (its .sample?)" if hasattr(value, "sample") else ""
