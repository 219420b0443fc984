"""What networks predict, and the denoised image in it.

Four parameterisations of one quantity, for x = alpha * x_0 + sigma * noise, named as in diffusers:

    kind               the network's output             denoised
    sample             x_0                              output
    epsilon            noise                            (x - sigma * output) / alpha
    v_prediction       alpha * noise - sigma * x_0      (alpha * x - sigma * output) / (alpha^2 + sigma^2)
    flow_prediction    noise - x_0                      (x - sigma * output) / (alpha + sigma)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from .schedule import Node, Schedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Denoiser", "Prediction", "as_denoiser", "from_denoised", "to_denoised"]

Prediction = Literal["sample", "epsilon", "v_prediction", "flow_prediction"]
KINDS = get_args(Prediction)

Denoiser = Callable[["Tensor", float], "Tensor"]
"""denoiser(x, t): x (B, *) noisy, t a float on the schedule's clock -> E[x_0 | x], of x's shape."""


def _coefficients(kind: Prediction, node: Node) -> tuple[float, float]:
    """(a, b) of denoised = a * x + b * output."""
    _, alpha, sigma = node
    if kind == "sample":
        return 0.0, 1.0
    if kind == "epsilon":
        if alpha == 0:
            raise ValueError(
                f"epsilon says nothing of the data at alpha = 0 (time {node.time!r}): "
                "start the grid below pure noise, or use a v or flow prediction"
            )
        return 1 / alpha, -sigma / alpha
    if kind == "v_prediction":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    if kind == "flow_prediction":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")


def to_denoised(kind: Prediction, output: Tensor, x: Tensor, node: Node) -> Tensor:
    """The denoised image, of x's shape, in a network's `output` at the noisy `x` of `node`.

    Half precision is combined in float32 and returned so: near pure noise, epsilon is a difference of large numbers.
    """
    a, b = _coefficients(kind, node)
    if kind == "sample":
        return output
    if x.element_size() < 4:
        x = x.float()
    return (a * x).add(output, alpha=b)


def from_denoised(kind: Prediction, denoised: Tensor, x: Tensor, node: Node) -> Tensor:
    """The inverse of `to_denoised`: what a network of this kind would have returned."""
    a, b = _coefficients(kind, node)
    if b == 0:
        raise ValueError(f"{kind} cannot be read off the denoised image at sigma = 0 (time {node.time!r})")
    return denoised if kind == "sample" else (denoised - a * x) / b


def as_denoiser(network: Callable[[Tensor, float], Tensor], kind: Prediction, schedule: Schedule) -> Denoiser:
    """A denoiser from a network that predicts something else: `as_denoiser(unet, "epsilon", schedule)`.

    `network(x, t)` gets the schedule's clock as a float and returns a tensor of x's shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")

    def denoiser(x: Tensor, t: float) -> Tensor:
        # A copy: a network may work in place on its input.
        return to_denoised(kind, network(x.clone(), t), x, schedule.node(t))

    return denoiser
