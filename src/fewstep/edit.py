"""Edit-friendly inversion: the noise of a stochastic run that ends at a given image, and the run again with changes.

For the nodes s_0 ... s_N of a run and an image x_0, every state is drawn apart from the others, with noise of its own,

    x_i = alpha_i x_0 + sigma_i e_i,   x_N = x_0

and the map of a step is what its mean lacks of the next state: r_i = x_(i+1) - mean_i, the solver's step from x_i and
the answers before. In the paper the map is z_i = r_i / noise_i; here r_i is kept, as the last step, which draws none,
has one too, and the run leads back to the image to rounding. The z_i of an image are no unit noise: they are larger,
and opposed in neighbouring steps, and so hold its layout. Another denoiser run with them keeps it.

Huberman-Spiegelglas, Kulikov & Michaeli, An Edit Friendly DDPM Noise Space: Inversion and Manipulations (2024),
Algorithm 1, there for DDPM; here for each solver of one call a step that draws noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .grid import Grid, checked
from .prediction import Denoiser, agreed
from .sampling import check_tensor, integrate, step_noise
from .schedule import Node, Schedule
from .solvers import DDIM, Solver, Stage

__all__ = ["Maps", "invert", "replay"]


@dataclass(frozen=True, eq=False)
class Maps:
    """What `invert` finds: the state (B, *) at nodes[0], and for each step what is added to its mean, in units of x."""

    start: Tensor
    steps: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    solver: Solver
    schedule: Schedule | None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Maps:
        """With `change` made to the start and to every map, such as `lambda each: each.roll(4, -1)`, a shift."""
        start, *steps = map(change, (self.start, *self.steps))
        for each in (start, *steps):
            if not isinstance(each, Tensor) or each.shape != start.shape:
                raise ValueError(f"change must make a tensor of each, all of one shape; got {each!r:.80}")
        return replace(self, start=start, steps=tuple(steps))


def invert(
    denoiser: Denoiser,
    x: Tensor,
    nodes: Sequence[Node],
    *,
    solver: Solver | None = None,
    schedule: Schedule | None = None,
    seeds: Iterable[int],
) -> Maps:
    """The maps of a run over `nodes` that ends at the images `x`, (B, *): `replay` with `denoiser` returns x.

    Args:
        denoiser: of what the images show, such as `model.conditioned(cat)`.
        nodes: of falling noise. To skip the start, which keeps more of the image, give the last of them: `nodes[3:]`.
            Noise belongs to its level, so that a state is the same whichever nodes are before it.
        solver: DDPM, `DDIM(eta=1.0)`, if not given. Any that draws noise and makes one call a step:
            `SDEDPMSolverPP()`, `ERSDE()`, `SASolver()`, `Stochastic(EVODiff(), 1.0)`.
        schedule: as in `sample`.
        seeds: one integer a sample.

    Cost: one call a step. ValueError for rising nodes, for a solver that draws no noise or calls more often, and as in
    `integrate`.
    """
    solver = DDIM(eta=1.0) if solver is None else solver
    check_tensor("x", x, None)
    grid = checked(nodes)
    if grid[1].lam < grid[0].lam:
        raise ValueError("nodes must be of falling noise, those of the run that draws it; got rising ones: nodes[::-1]")
    image = x.to(torch.promote_types(x.dtype, torch.float32))
    draw = step_noise(seeds, image)
    start, *states = [image * node.alpha + draw(node) * node.sigma for node in grid[:-1]]
    found: list[Tensor] = []
    steered = Editing(solver, lambda stage, i: Steered(stage, (*states, image)[i], found))
    integrate(denoiser, start := start.to(x.dtype), grid, solver=steered, schedule=schedule)
    # Copies, as these were made in inference mode.
    return Maps(start, tuple(step.clone() for step in found), grid, solver, agreed((denoiser,), schedule))


def replay(denoiser: Denoiser, maps: Maps) -> Tensor:
    """The images (B, *) that `denoiser` makes of `maps`, such as `model.conditioned(dog, guidance=3.0)`.

    Cost: one call a step.
    """
    mapped = Editing(maps.solver, lambda stage, i: Mapped(stage, maps.steps[i]))
    return integrate(denoiser, maps.start, maps.nodes, solver=mapped, schedule=maps.schedule)


@dataclass(frozen=True, eq=False)
class Editing:
    """The solver with stages that put something in the place of noise."""

    solver: Solver
    edited: Callable[[Stage, int], Stage]

    @property
    def grid(self) -> Grid:
        return self.solver.grid

    @property
    def calls_per_step(self) -> int:
        return self.solver.calls_per_step

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        stages = self.solver.plan(schedule, nodes, nfe)
        if not any(stage.noise for stage in stages):
            raise ValueError(
                f"{self.solver!r} draws no noise over these nodes: take DDIM(eta=1.0), SDEDPMSolverPP() or "
                "Stochastic(EVODiff()); inversion without noise is integrate over rising nodes with "
                'UniPC(field="noise")'
            )
        if [stage.node for stage in stages] != list(nodes[:-1]):
            raise ValueError(f"maps need a solver of one call a step, at its node; got {self.solver!r}")
        return [self.edited(stage, i) for i, stage in enumerate(stages)]


@dataclass(frozen=True, eq=False)
class Mapped:
    """A stage that adds the map `step` itself."""

    stage: Stage
    step: Tensor
    noise = 0.0

    @property
    def node(self) -> Node:
        return self.stage.node

    def __call__(self, state: Any, x: Tensor, denoised: Tensor) -> tuple[Tensor, Any]:
        mean, state = self.stage(state, x, denoised)
        return mean + self.step, state


@dataclass(frozen=True, eq=False)
class Steered(Mapped):
    """A stage that leads to the state `step`, as nearly as mean + map is rounded, and puts the map in `found`."""

    found: list[Tensor] = field(default_factory=list)

    def __call__(self, state: Any, x: Tensor, denoised: Tensor) -> tuple[Tensor, Any]:
        mean, state = self.stage(state, x, denoised)
        self.found.append(self.step - mean)
        return mean + self.found[-1], state
