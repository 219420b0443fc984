"""What networks predict, and the denoised x in it.

Five parameterisations of one quantity, for x = alpha * x_0 + sigma * noise, named as in diffusers where it has them:

    kind               the network's output             denoised
    sample             x_0                              output
    epsilon            noise                            (x - sigma * output) / alpha
    score              grad log p(x) = -noise / sigma   (x + sigma^2 * output) / alpha
    v_prediction       alpha * noise - sigma * x_0      (alpha * x - sigma * output) / (alpha^2 + sigma^2)
    flow_prediction    noise - x_0                      (x - sigma * output) / (alpha + sigma)

A denoiser that knows its noise schedule carries it as an attribute, `schedule`, from which `sample` takes it.
docs/clocks.md says what other libraries mean by their time and their predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from .answers import check_answer
from .schedule import Node, Schedule, contradicts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Denoiser", "Prediction", "agreed", "as_denoiser", "from_denoised", "to_denoised"]

Prediction = Literal["sample", "epsilon", "score", "v_prediction", "flow_prediction"]
KINDS = get_args(Prediction)

Denoiser = Callable[["Tensor", float], "Tensor"]
"""denoiser(x, t): x (B, *) noisy, t a float on the schedule's clock -> E[x_0 | x], of x's shape."""


def _coefficients(kind: Prediction, node: Node) -> tuple[float, float]:
    """(a, b) of denoised = a * x + b * output."""
    _, alpha, sigma = node
    if kind == "sample":
        return 0.0, 1.0
    if kind in ("epsilon", "score"):
        if alpha == 0:
            raise ValueError(
                f"{kind} says nothing of the data at alpha = 0 (time {node.time!r}): "
                "start the grid below pure noise, or use a v or flow prediction"
            )
        return 1 / alpha, -sigma / alpha if kind == "epsilon" else sigma**2 / alpha
    if kind == "v_prediction":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    if kind == "flow_prediction":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")


def to_denoised(kind: Prediction, output: Tensor, x: Tensor, node: Node) -> Tensor:
    """The denoised x, of its shape, in a network's `output` at the noisy `x` of `node`.

    Half precision is combined in float32 and returned so: near pure noise, epsilon is a difference of large numbers.
    DenoiserError for an output that is not a tensor like x.
    """
    a, b = _coefficients(kind, node)
    check_answer(output, x, "the network", node.time, sigma=node.sigma)
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
    check_answer(denoised, x, "the denoiser", node.time, sigma=node.sigma)
    return denoised if kind == "sample" else (denoised - a * x) / b


def as_denoiser(
    network: Callable[[Tensor, float], Tensor], kind: Prediction, schedule: Schedule, *, data_at: Literal[0, 1] = 0
) -> Denoiser:
    """A denoiser from a network that predicts something else: `as_denoiser(unet, "epsilon", schedule)`.

    `network(x, t)` gets the schedule's clock as a float and returns a tensor of x's shape. The denoiser carries
    `schedule`, and can be pickled if the network can.

    `data_at`: the network's time of clean data. 1 is for networks whose clock runs the other way (torchcfm, Meta's
        flow_matching, Lumina, F5-TTS): the network is told 1 - t, and its flow_prediction is x_0 - noise, the velocity
        on its own clock. The denoiser stays on the clock of `schedule`, one of [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if isinstance(schedule, type) or not hasattr(schedule, "node"):
        raise TypeError(f"schedule must be a schedule such as EDM(); got {schedule!r}")
    if data_at not in (0, 1):
        raise ValueError(f"data_at must be 0 or 1, the network's time of clean data; got {data_at!r}")
    if data_at and not (schedule.t_clean == 0 and schedule.t_max <= 1):
        raise ValueError(f"data_at=1 needs a clock of [0, 1], as Flow's; got {schedule!r}")
    return Predicted(network, kind, schedule, data_at)


@dataclass(frozen=True, eq=False)
class Predicted:
    """What `as_denoiser` returns."""

    network: Callable[[Tensor, float], Tensor]
    kind: Prediction
    schedule: Schedule
    data_at: Literal[0, 1] = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        node = self.schedule.node(t)
        # A copy: a network may work in place on its input.
        output = self.network(x.clone(), 1 - t if self.data_at else t)
        if self.data_at and self.kind == "flow_prediction":
            check_answer(output, x, "the network", t, sigma=node.sigma)
            output = -output
        return to_denoised(self.kind, output, x, node)


def agreed(denoisers: Sequence[Any], given: Schedule | None = None) -> Schedule | None:
    """`given`, or the first schedule that one of `denoisers` carries; ValueError if two of them contradict."""
    found = given
    for denoiser in denoisers:
        own: Any = getattr(denoiser, "schedule", None)
        if not hasattr(own, "time_at"):  # another thing of that name, or none
            continue
        if found is None:
            found = own
        elif contradicts(own, found):
            raise ValueError(
                f"a run has one schedule; got {found!r} for a denoiser that was made with {own!r}: "
                "leave schedule= out, or make all denoisers with the right one"
            )
    return found
