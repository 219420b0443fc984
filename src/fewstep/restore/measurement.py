"""A measurement y = A(x_0) + noise: what A must offer, and linear ones out of their function alone.

A linear operator is any object with `A(x)` and `A_adjoint(y)` on batches, such as the physics of deepinv. Where a
library has the operator, take it from there. `Linear` is for a function that you have: its adjoint is its
vector-Jacobian product, so that the three measurements below are a line of torch each. They would be the only use of
deepinv here, which brings ten packages. A differentiable function that is not linear is an operator, too: it is taken
as it is near the denoised x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import avg_pool2d, conv1d, pad

from ..answers import how_to_convert
from ..arguments import count, number

__all__ = [
    "Linear",
    "Linearised",
    "check_derivative",
    "check_measurement",
    "deblurring",
    "derived",
    "inpainting",
    "linearised",
    "lone",
    "superresolution",
]

LEAST = math.sqrt(torch.finfo(torch.float32).tiny)  # standard deviation of the noise, which is squared
TAIL = 3  # standard deviations of a Gaussian blur that its kernel has on either side: 0.3 % of it are beyond


@dataclass(frozen=True, eq=False)
class Linear:
    """`function`, linear, from x (B, *shape) to y (B, *), as an operator.

    Its adjoint is derived, at the cost of one more evaluation, unless it is given as `adjoint`, from y to x.
    """

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    adjoint: Callable[[Tensor], Tensor] | None = None

    def A(self, x: Tensor) -> Tensor:
        return _function(self)(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        if self.adjoint is not None:
            found = _tensor(self.adjoint(y), "A_adjoint(y)")
            if found.shape != (len(y), *self.shape):
                raise ValueError(f"of y of shape {tuple(y.shape)} the adjoint is {tuple(found.shape)}, x {self.shape}")
            return found
        _, pull = torch.func.vjp(self.A, y.new_zeros(len(y), *self.shape))  # type: ignore[misc]
        (x,) = pull(y)
        return x  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Known(Linear):
    """One of which more is known, so that systems take fewer operations: it changes nothing in place, does to each
    channel `alike`, and, if it has `tables`, rows (h, H) and columns (w, W), makes of it rows x columns^T."""

    alike: bool = True
    tables: tuple[Tensor, Tensor] | None = None


def inpainting(mask: Tensor, shape: tuple[int, ...]) -> Linear:
    """x times `mask`, 1 where x is seen and 0 where not, for x of `shape`, to which the mask must broadcast."""
    if not isinstance(mask, Tensor) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must be a tensor of 0, not seen, and 1, seen")
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask must fit x of shape {tuple(shape)}; got {tuple(mask.shape)}: resize or crop one of them"
        )
    masked = partial(_masked, mask=mask)
    return Known(masked, shape, masked, alike=mask.ndim < 3 or bool((mask == mask[:1]).all()))


def superresolution(factor: int, shape: tuple[int, ...]) -> Linear:
    """The means of squares of `factor` x `factor` pixels, for images of `shape` (C, H, W)."""
    _check_image(shape)
    size = count(factor)
    if size < 2 or any(side % size for side in shape[-2:]):
        raise ValueError(
            f"factor must be 2 or more and divide the sides of {tuple(shape)}, an integer; got factor={factor!r}"
        )
    rows, columns = (
        torch.eye(side // size, dtype=torch.float64).repeat_interleave(size, 1) / size for side in shape[-2:]
    )
    pooled, spread = partial(avg_pool2d, kernel_size=size), partial(_spread, factor=size)
    return Known(pooled, shape, spread, tables=(rows, columns))


def deblurring(std: float, shape: tuple[int, ...]) -> Linear:
    """Blur by a Gaussian of `std` pixels, mirrored at the edges, for images of `shape` (C, H, W)."""
    _check_image(shape)
    width = number(std)
    # A width whose square is 0 in floating point is none.
    reach = math.ceil(TAIL * width) if width * width > 0 and 0 < width < math.inf else 0
    if not 0 < reach < min(shape[-2:]):
        raise ValueError(
            f"std must be positive and at most {(min(shape[-2:]) - 1) / TAIL:.3g} pixels here; got std={std!r}"
        )
    line = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * width**2))
    rows, columns = (_blur(side, line / line.sum()) for side in shape[-2:])
    blurred = (partial(_blurred, rows=one, columns=other) for one, other in ((rows, columns), (rows.T, columns.T)))
    return Known(next(blurred), shape, next(blurred), tables=(rows, columns))


def _check_image(shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise ValueError(f"shape must be that of one image, (C, H, W); got {tuple(shape)}")


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.to(x)


def _spread(y: Tensor, factor: int) -> Tensor:
    return (y / factor**2).repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _blur(side: int, line: Tensor) -> Tensor:
    """(side, side): of a row of pixels, what `line` makes of it."""
    points = pad(torch.eye(side, dtype=line.dtype)[:, None], (len(line) // 2,) * 2, mode="reflect")
    return conv1d(points, line.expand(1, 1, -1))[:, 0].T


def _blurred(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # A tenth of the time of convolutions and their derivative, on a CPU.
    return rows.to(x) @ x @ columns.to(x).T


class Linearised(NamedTuple):
    """An operator near a point: what it measures there, and the linear map about it, which may work in place on what it
    is given, with its adjoint. `alike` and `tables` as for `Known`."""

    measured: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    alike: bool = False
    tables: tuple[Tensor, Tensor] | None = None


def linearised(operator: Any, x: Tensor) -> Linearised:
    """`operator` about x (B, *); a linear one is the same about every x."""
    function, linear = _function(operator), isinstance(operator, Linear)
    if hasattr(operator, "A_adjoint") and not (linear and operator.adjoint is None):
        there, back = (operator.function, operator.adjoint) if linear else (operator.A, operator.A_adjoint)
        if isinstance(operator, Known):
            return Linearised(function(x), there, back, operator.alike, operator.tables)
        return Linearised(function(x), there, lambda y: back(y.clone()))

    def watched(x: Tensor) -> Tensor:
        return derived(function(x), "operator's function", "write it without torch.no_grad and detach")

    def along(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative in forward mode: a decoder's attention
            return torch.func.jvp(function, (x,), (v,))[1]  # type: ignore[no-any-return]

    with sdpa_kernel(SDPBackend.MATH):
        measured, pull = torch.func.vjp(watched, x)  # type: ignore[misc]
    # The product of a `Linear` is the same about x as about 0: one for all that is solved here.
    return Linearised(measured, function if linear else along, lambda y: pull(y)[0])


def _function(operator: Any) -> Callable[[Tensor], Tensor]:
    """What it measures of a copy of x, as it may work in place."""
    function = operator.function if isinstance(operator, Linear) else getattr(operator, "A", operator)
    return lambda x: _tensor(function(x.clone()), "A(x)")


def _adjoint(operator: Any, y: Tensor) -> Tensor:
    return _tensor(operator.A_adjoint(y.clone()), "A_adjoint(y)")


def _tensor(found: Any, name: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise TypeError(f"operator's {name} must return a torch.Tensor; got {type(found).__name__}")
    return found


def derived(found: Tensor, name: str, remedy: str) -> Tensor:
    """`found`, computed inside torch.func.vjp, which takes what hides its derivative for a constant."""
    if not found.requires_grad:
        raise ValueError(f"the {name} hides its derivative, as under torch.no_grad or by detach: {remedy}")
    return found


def lone(y: Tensor) -> str:
    """What is told of one measurement, where a batch of them is due."""
    return f"y must be a batch, (1, *) for all samples or (B, *); got one measurement, {tuple(y.shape)}: give y[None]"


def _fits(operator: Any, y: Tensor) -> bool:
    try:
        return _function(operator)(_adjoint(operator, y)).shape == y.shape
    except (RuntimeError, ValueError):
        return False


def check_derivative(operator: Any, at: Linearised) -> None:
    """ValueError for a function whose derivative is 0 all over, as that of rounding. An accelerator waits."""
    if not hasattr(operator, "A_adjoint"):
        draw = torch.Generator().manual_seed(0)
        probe = torch.randn(at.measured.shape, generator=draw, dtype=torch.float32, device="cpu")
        if not bool(at.adjoint(probe.to(at.measured)).any()):
            raise ValueError(
                "the operator's function has a derivative of 0 everywhere, as rounding has: leave the rounding out, "
                "and count it into noise"
            )


def check_measurement(operator: Any, y: Tensor, noise: float) -> tuple[int, ...] | None:
    """The shape of one x, where the operator is linear; ValueError or TypeError if the three do not fit.

    The adjoint is tried on one random pair, <A v, w> = <v, A* w>, within the square root of rounding.
    """
    if not callable(getattr(operator, "A", operator)):
        raise TypeError(
            f"operator must have A(x) and A_adjoint(y), or be a differentiable function; got {type(operator).__name__}"
        )
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a torch.Tensor; got {type(y).__name__}{how_to_convert(y)}")
    if not y.is_floating_point() or y.ndim < 2 or not y.numel():
        raise ValueError(
            f"y must be floating point, (B, *), and not empty; got {y.dtype} of shape {tuple(y.shape)}"
            f"{how_to_convert(y)}{': give y[None]' if y.ndim == 1 else ''}"
        )
    if not bool(y.isfinite().all()):
        raise ValueError("y must be finite; it holds NaN or inf: leave out what was not measured by a mask")
    if not LEAST < number(noise) < 1 / LEAST:
        raise ValueError(
            f"noise must be a number, the standard deviation of y's noise, positive and finite, with a square that "
            f"float32 can hold; got noise={noise!r}: without noise, give that of rounding, such as 1 / 255"
        )
    if not hasattr(operator, "A_adjoint"):
        return None
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    draw = torch.Generator().manual_seed(0)
    try:
        v = torch.randn(_adjoint(operator, y).shape, generator=draw, dtype=y.dtype).to(y.device)
        measured = _function(operator)(v)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        misfit = f"y, {y.dtype} of shape {tuple(y.shape)}, does not fit the operator ({reason})"
        raise ValueError(lone(y) if _fits(operator, y[None]) else misfit) from error
    if measured.shape != y.shape:
        misfit = f"y must have the shape that the operator measures, {tuple(measured.shape)}; got {tuple(y.shape)}"
        raise ValueError(lone(y) if _fits(operator, y[None]) else misfit)
    w = measured + measured.square().mean().sqrt() * torch.randn(y.shape, generator=draw, dtype=y.dtype).to(y.device)
    one, other = float((measured * w).sum()), float((v * _adjoint(operator, w)).sum())
    if not abs(one - other) <= math.sqrt(torch.finfo(y.dtype).eps) * max(abs(one), abs(other)):
        raise ValueError(
            "operator.A_adjoint is not the adjoint of operator.A: "
            f"<A v, w> = {one:.6g}, <v, A_adjoint w> = {other:.6g}; "
            "restore.Linear(A, shape) derives it, and if A is not linear, give A alone"
        )
    return tuple(v.shape[1:])
