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
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from .answers import check_answer
from .schedule import Node, Schedule, contradicts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Denoiser",
    "Prediction",
    "agreed",
    "as_denoiser",
    "each",
    "from_denoised",
    "schedule_of",
    "spread",
    "to_denoised",
]

T = TypeVar("T")

Prediction = Literal["sample", "epsilon", "score", "v_prediction", "flow_prediction"]
KINDS = get_args(Prediction)

Denoiser = Callable[["Tensor", Any], "Tensor"]
"""denoiser(x, t): x (B, *) noisy, t a float on the schedule's clock -> E[x_0 | x], of x's shape.

`fewstep.stream`, whose samples are in different phases of their runs, gives times (B,), one a sample, in float64 on the
CPU. What fewstep makes of a model takes both, and nothing else asks for them.
"""


def each(numbers: Callable[[Any], T], of: Any) -> T | list[T]:
    """`numbers` of a time or a node, or a list of those of each, if there are several: times (B,), a list of nodes."""
    if getattr(of, "ndim", 0):
        of = of.tolist()
    return [numbers(one) for one in of] if isinstance(of, list) else numbers(of)


def spread(rows: Sequence[Any], x: Tensor) -> Sequence[Any]:
    """A row of numbers as it is; of a list of rows, one a sample, tensors (B, 1, ...) on x's device.

    They are of x's dtype, float32 or better, so that each number, made in float64, is rounded once.
    """
    if not isinstance(rows, list):
        return rows
    if len(rows) != len(x):
        raise ValueError(f"times must be one for all or one a sample, shape {(len(x),)}; got {len(rows)}")
    like = x[:0].float() if x.element_size() < 4 else x
    return like.new_tensor(rows).T.reshape(-1, len(x), *[1] * (x.ndim - 1)).unbind()


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


def _invertible(kind: Prediction, node: Node) -> tuple[float, float]:
    a, b = _coefficients(kind, node)
    if b == 0:
        raise ValueError(f"{kind} cannot be read off the denoised image at sigma = 0 (time {node.time!r})")
    return a, b


def _check(answer: object, x: Tensor, who: str, node: Node | list[Node]) -> None:
    if isinstance(node, list):
        check_answer(answer, x, who, [one.time for one in node])
    else:
        check_answer(answer, x, who, node.time, sigma=node.sigma)


def to_denoised(kind: Prediction, output: Tensor, x: Tensor, node: Node | list[Node]) -> Tensor:
    """The denoised x, of its shape, in a network's `output` at the noisy `x` of `node`, or of a list, one a sample.

    Half precision is combined in float32 and returned so: near pure noise, epsilon is a difference of large numbers.
    DenoiserError for an output that is not a tensor like x.
    """
    a, b = spread(each(partial(_coefficients, kind), node), x)
    _check(output, x, "the network", node)
    if kind == "sample":
        return output
    if x.element_size() < 4:
        x = x.float()
    scaled: Tensor = a * x
    return scaled.addcmul(b, output) if isinstance(node, list) else scaled.add(output, alpha=b)


def from_denoised(kind: Prediction, denoised: Tensor, x: Tensor, node: Node | list[Node]) -> Tensor:
    """The inverse of `to_denoised`: what a network of this kind would have returned."""
    a, b = spread(each(partial(_invertible, kind), node), x)
    _check(denoised, x, "the denoiser", node)
    if kind == "sample":
        return denoised
    output: Tensor = (denoised - a * x) / b
    return output


def as_denoiser(
    network: Callable[[Tensor, Any], Tensor], kind: Prediction, schedule: Schedule, *, data_at: Literal[0, 1] = 0
) -> Denoiser:
    """A denoiser from a network that predicts something else: `as_denoiser(unet, "epsilon", schedule)`.

    `network(x, t)` gets the schedule's clock as a float and returns a tensor of x's shape; where the denoiser is given
    times (B,), one a sample, so is the network. The denoiser carries `schedule`, and can be pickled if the network can.

    `data_at`: the network's time of clean data. 1 is for networks whose clock runs the other way (torchcfm, Meta's
        flow_matching, Lumina, F5-TTS): the network is told 1 - t, and its flow_prediction is x_0 - noise, the velocity
        on its own clock. The denoiser stays on the clock of `schedule`, one of [0, 1].
    """
    if not callable(network):
        raise TypeError(f"network must be a function network(x, t); got {type(network).__name__}")
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

    network: Callable[[Tensor, Any], Tensor]
    kind: Prediction
    schedule: Schedule
    data_at: Literal[0, 1] = 0

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        node = each(self.schedule.node, t)
        # A copy: a network may work in place on its input.
        output = self.network(x.clone(), 1 - t if self.data_at else t)
        if self.data_at and self.kind == "flow_prediction":
            _check(output, x, "the network", node)
            output = -output
        return to_denoised(self.kind, output, x, node)


def agreed(denoisers: Sequence[Any], given: Schedule | None = None) -> Schedule | None:
    """`given`, or the first schedule that one of `denoisers` carries; ValueError if two of them contradict.

    TypeError for what is no function.
    """
    found = given
    for denoiser in denoisers:
        if not callable(denoiser):
            raise TypeError(f"denoiser must be a function denoiser(x, t); got {type(denoiser).__name__}")
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


def schedule_of(denoiser: Any, given: Schedule | None = None) -> Schedule:
    """The schedule of a run of `denoiser`: `given`, or its own.

    Raises TypeError if it is no function, or nobody knows the schedule; ValueError where the two contradict.
    """
    if given is not None and (isinstance(given, type) or not hasattr(given, "node")):
        raise TypeError(f"schedule must be a schedule such as EDM(); got {given!r}")
    found = agreed((denoiser,), given)
    if found is None:
        raise TypeError(
            "schedule is needed, as this denoiser carries none: give the one that the model was trained with, such as "
            "schedule=EDM(), or make the denoiser with as_denoiser(network, kind, schedule)"
        )
    return found
