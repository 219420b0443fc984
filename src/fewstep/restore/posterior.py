"""Posterior sampling as a denoiser: E[x_0 | x_t, y] for a measurement y, for any solver, grid and front end.

All methods are one formula. With x^ = E[x_0 | x_t], the model's answer, and V = Cov(x_0 | x_t), for y = A x_0 + noise,

    E[x_0 | x_t, y] = x^ + V A^T (A V A^T + noise^2 I)^-1 (y - A x^)

if x_0 given x_t is Gaussian. They differ in what they take for V. Tweedie's formula has it in the model's Jacobian,
V = (sigma^2 / alpha) dx^/dx_t, for any law and schedule:

    method      V inside                          V outside   gradients a call
    moment      (sigma^2 / alpha) J               the same    1 + iterations
    pigdm       r^2 I                             J           1
    dps         r^2 I, with A A^T = I             J           1
    proximal    r^2 I, or that of a `spectrum`    the same    none

r^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2) for data of standard deviation s.

moment: Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization (2024), eq. (15)-(18);
pigdm: Song et al., Pseudoinverse-Guided Diffusion Models (2023), eq. (7), with the scale of the score and not their
own; dps: Chung et al., Diffusion Posterior Sampling (2023), with the variance of y given x_t for their step of
1 / |y - A x^|, which is for 1,000 steps of a sampler of their own and diverges in ten; proximal: Zhu et al., DiffPIR
(2023), eq. (13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..arguments import count
from ..guidance.base import answer
from ..prediction import Denoiser, schedule_of
from ..schedule import Node, Schedule
from .measurement import Linearised, check_derivative, check_measurement, derived, linearised, lone
from .residuals import Solution, conjugate_residuals
from .separable import Map, same, separable
from .spectrum import Spectrum
from .symmetric import symmetric_residuals

__all__ = ["Method", "Posterior", "Solve", "posterior"]

Method = Literal["moment", "pigdm", "dps", "proximal"]
METHODS = get_args(Method)

# Of the linear system, and the most iterations in one call. Exact denoisers need fewer; of the packaged network what
# comes later changes nothing that can be seen, and half as many do.
TOLERANCE, ITERATIONS = 1e-2, 20


class Solve(NamedTuple):
    """What one call cost: vector-Jacobian products of the denoiser for the batch, and of each sample the iterations of
    conjugate residuals, (B,), and what they left of the residual, (B,)."""

    node: Node
    gradients: int
    iterations: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class Posterior:
    """What `posterior` returns."""

    denoiser: Denoiser
    operator: Any
    y: Tensor
    noise: float
    schedule: Schedule
    method: Method
    spectrum: Spectrum | None
    tolerance: float
    iterations: int
    callback: Callable[[Solve], object] | None
    shape: tuple[int, ...] | None
    checked: list[bool] = field(default_factory=list, init=False, repr=False)  # whether A has a derivative

    def __call__(self, x: Tensor, t: float) -> Tensor:
        node, y = self._node(t), self._measurement(x)
        gradients = 0
        if self.method == "proximal":
            denoised = answer(self.denoiser, x, t)
        else:

            def denoise(z: Tensor) -> Tensor:
                remedy = "call the network without them, or use method='proximal', which needs no derivative"
                return derived(answer(self.denoiser, z.clone(), node.time), "denoiser", remedy)

            denoised, pull = torch.func.vjp(denoise, x)  # type: ignore[misc]

        def tweedie(v: Tensor) -> Tensor:
            nonlocal gradients
            gradients += 1
            return pull(v.to(denoised.dtype))[0].to(v.dtype) * (node.sigma**2 / node.alpha)  # type: ignore[no-any-return]

        mean = denoised.to(y.dtype)
        at = linearised(self.operator, mean)
        if at.measured.shape != y.shape:
            misfit = f"y must have the shape of A(x), {tuple(at.measured.shape)}; got {tuple(y.shape)}"
            raise ValueError(lone(self.y) if at.measured.shape[1:] == self.y.shape else misfit)
        if not self.checked:
            check_derivative(self.operator, at)
            self.checked.append(True)
        residual = y - at.measured
        begin, seen, moved = self._system(node, mean, at, tweedie)
        if self.method == "dps":
            u = residual / (self._variance(node) + self.noise**2)
            found = Solution(u, torch.zeros(len(u), dtype=torch.long, device=u.device), u.new_zeros(len(u)))
        else:
            solve = conjugate_residuals if self.method == "moment" else symmetric_residuals
            found = solve(
                lambda u: torch.add(seen(u), u, alpha=self.noise**2),
                begin(residual),
                self.tolerance,
                self.iterations,
            )
        restored = mean + moved(found.u)
        if self.callback is not None:
            self.callback(Solve(node, gradients, found.iterations, found.residual))
        return restored.to(x.dtype)

    def _node(self, t: float) -> Node:
        """Where nothing of the data is left, the noisiest level of the schedule at which something is."""
        node = self.schedule.node(t)
        if node.alpha or self.method == "proximal":
            return node
        return self.schedule.node(self.schedule.time_at(self.schedule.lam_range[0]))

    def _measurement(self, x: Tensor) -> Tensor:
        """y for each of x, in float32 or better."""
        if self.shape is not None and x.shape[1:] != self.shape:
            if x.shape[1:] == (len(self.y), *self.shape):  # to an operator of any shape, y was a batch
                raise ValueError(lone(self.y))
            raise ValueError(
                f"x must have the shape that the operator takes, {self.shape}; got {tuple(x.shape[1:])}: "
                f"one of x and y, of shape {tuple(self.y.shape)}, is of another size"
            )
        if len(self.y) not in (1, len(x)):
            raise ValueError(
                f"y must be one for all or one a sample, {len(x)}; got {len(self.y)}: "
                f"if y, {tuple(self.y.shape)}, is one measurement, give y[None]"
            )
        return self.y.expand(len(x), *self.y.shape[1:]).to(x.device, torch.promote_types(x.dtype, torch.float32))

    def _system(self, node: Node, mean: Tensor, at: Linearised, tweedie: Map) -> tuple[Map, Map, Map]:
        """u -> u', its coordinates; u' -> (A V A^T u)', with the V inside; and u' -> V A^T u, with the one outside."""
        if self.spectrum is not None:
            return self.spectrum.system(node, mean, at)
        variance = self._variance(node)

        def flat(v: Tensor) -> Tensor:
            return v * variance

        inside = tweedie if self.method == "moment" else flat
        outside = flat if self.method == "proximal" else tweedie

        def moved(u: Tensor) -> Tensor:
            return outside(at.adjoint(u))

        if at.tables is None or self.method in ("moment", "dps"):  # nothing to iterate, or not by tables
            return same, lambda u: at.forward(inside(at.adjoint(u))), moved
        rows, columns = (table.to(mean) for table in at.tables)
        seen = separable(variance * rows @ rows.T, columns @ columns.T, at.measured.shape[:-2].numel())
        return same, lambda u: seen(u.flatten(0, -3)).reshape(u.shape), moved

    def _variance(self, node: Node) -> float:
        data = self.schedule.data_scale**2
        return data * node.sigma**2 / (node.alpha**2 * data + node.sigma**2)


def posterior(
    denoiser: Denoiser,
    operator: Any,
    y: Tensor,
    *,
    noise: float,
    schedule: Schedule | None = None,
    method: Method = "moment",
    spectrum: Spectrum | None = None,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    callback: Callable[[Solve], object] | None = None,
) -> Denoiser:
    """The denoiser of x_0 given x_t and y = A(x_0) + noise, for `sample` and all else that takes a denoiser.

    Args:
        denoiser: of the data, x (B, *) -> E[x_0 | x].
        operator: `A(x)` and `A_adjoint(y)`, linear, as deepinv's physics have them, or any differentiable function,
            which is linearised about the denoised x. It works on float32 or better.
        y: the measurement, (1, *) for all samples or (B, *).
        noise: its standard deviation, in the units of y.
        schedule: the denoiser's own if not given.
        method: "moment", exact for Gaussian data; "pigdm" and "dps", one gradient a call, biased; "proximal", without
            gradients through the network, exact for Gaussian data of the given `spectrum`.
        spectrum: of the data, for "proximal" alone; its total variance, `schedule.data_scale` squared, if not given.
        tolerance: of conjugate residuals, on what they leave of each sample's residual.
        iterations: the most in one call, each of which is a gradient for "moment".
        callback: called with a `Solve` for each call.

    Cost: one call of the denoiser each, and of its vector-Jacobian products the `gradients` of the table above, each
    about a call and a half and with the memory of training. The Jacobian of a true posterior mean is symmetric, J =
    J^T, so that no Jacobian-vector products are needed; a network's is nearly so.

    Raises:
        ValueError, TypeError: a y that is not finite or does not fit the operator, an adjoint that is none, an unknown
            method, before the first call; an x that does not fit, and a denoiser or function that hides its derivative,
            as under torch.no_grad, at the first call.
    """
    found = schedule_of(denoiser, schedule)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if spectrum is not None and method != "proximal":
        raise ValueError(f"spectrum is for method='proximal'; got method={method!r}")
    if spectrum is not None and not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a restore.Spectrum; got {type(spectrum).__name__}: Spectrum.of(images)")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a Solve, or None; got callback={callback!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), a share of the residual; got tolerance={tolerance!r}")
    most = count(iterations)
    if most < 1:
        raise ValueError(f"iterations must be an integer of at least 1; got {iterations!r}")
    shape = check_measurement(operator, y, noise)
    return Posterior(denoiser, operator, y, float(noise), found, method, spectrum, tolerance, most, callback, shape)
