"""EVODiff: predict, call, correct, with weights that reduce the variance of each transition.

After Entropy-aware Variance Optimized Diffusion Inference (NeurIPS 2025), in three readings:

    mode="least-variance"  its aim taken literally: the weights of least variance   variance.py
    mode="published"       what the authors' code does                              published.py
    mode="paper"           Algorithm 1 of the paper as printed                      paper.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...grid import Grid, focused, uniform
from ...schedule import Node, Schedule
from ..core.base import Row, Stage, choice, euler_row, spend
from . import paper, published, variance

SHIFT = 0.5  # mu, as in the authors' code
# Those that measure predictions at run time.
RULES = {"published": published, "paper": paper}


@dataclass(frozen=True)
class EVODiff:
    """The EVODiff solver.

    `mode` picks the reading. The default, "least-variance", is the one to use: docs/quality.md. Its weights are made
    when a run is planned, how much of them a sample gets is measured on its own answers, and it runs on
    `fewstep.grid.focused`; the others, kept to compare with, on `uniform`. `lower_order_final=False` corrects the last
    step too, at the price of one more call where the grid ends above sigma = 0; the default mode then ends at the
    conditional mean.

    `data_std` is about the standard deviation of the data, for the default mode and its grid; None asks the schedule,
    for its `data_scale`: 0.5, that of images in [-1, 1], or more on a range that ends at visible noise. With data,
    levels and `data_std` c times as large the samples are c times as large.

    Of the others alone: `channel_dim` is the dimension that holds channels: "published" measures each sample and
    channel apart, "paper" each sample; use -1 for packed latents (B, L, C), or None to measure each sample as a whole.

    Of "paper" alone, and of its ablations (docs/evodiff.md): `eta` and `zeta` fix what it reads off the predictions,
    the share of the coming difference in B and the weight of the second-order term; `shift` is the mu of the latter.

    Cost: 1 call per step; state: 4 tensors ("published" and "paper" 2). Order: 3 to 4 ("least-variance"); 2 ("paper";
    1 with zeta fixed below 1); "published" 1 but for its last step, which on EDM leaves an error of about sigma_min
    however many steps are taken; docs/numerics.md.
    """

    mode: Literal["least-variance", "published", "paper"] = "least-variance"
    channel_dim: int | None = 1
    lower_order_final: bool = True
    eta: float | None = None
    zeta: float | None = None
    shift: float = SHIFT
    data_std: float | None = None
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice("mode", self.mode, ("least-variance", *RULES))
        if self.channel_dim == 0:
            raise ValueError("channel_dim must not be 0, the batch; got channel_dim=0")
        if self.mode not in RULES and self.channel_dim != 1:
            raise ValueError(f'only mode="published" and "paper" measure channels; got {self!r}')
        for name, value in (("eta", self.eta), ("zeta", self.zeta)):
            if value is not None and self.mode != "paper":
                raise ValueError(f'{name} can be fixed in mode="paper" only; got {name}={value!r}, mode={self.mode!r}')
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be None or a number in [0, 1]; got {value!r}")
        if self.shift != SHIFT and (self.mode != "paper" or self.zeta is not None):
            raise ValueError(f'shift is part of the refined zeta of mode="paper"; got {self!r}')
        if self.data_std is not None and (self.mode in RULES or not 0 < self.data_std < math.inf):
            raise ValueError(f"data_std is a positive number for the default mode; got {self!r}")
        if not math.isfinite(self.shift):
            raise ValueError(f"shift must be finite; got {self.shift!r}")

    @property
    def grid(self) -> Grid:
        if self.mode in RULES:
            return uniform
        return focused if self.data_std is None else focused(data_std=self.data_std)

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[Stage]:
        if nodes[1].nsr > nodes[0].nsr:
            raise ValueError(
                "EVODiff needs nodes of falling noise, the direction its weights are made for; "
                "to invert, use a linear solver such as UniPC"
            )
        closing = nodes[-1].sigma == 0
        last = len(nodes) - 1 - closing  # the last noisy node
        # With a closing call there the step into it could be corrected for nothing, and to no effect.
        extra = not self.lower_order_final and not closing and last > 1 and nfe != last
        if self.mode not in RULES:
            scale, end = self.data_std or schedule.data_scale, schedule.lam_range[1]
            return spend(variance.stages(nodes, extra, scale, end=end), nfe, len(nodes) - 1)
        rule = RULES[self.mode]
        fixed = {"eta": self.eta, "zeta": self.zeta, "shift": self.shift} if self.mode == "paper" else {}
        stages: list[Stage] = []
        pending = None  # the predicted step that the next call corrects
        for i in range(last):
            s, t = nodes[i], nodes[i + 1]
            move: Row | None = euler_row("data", s, t)
            numbers = rule.second(nodes, i, last, **fixed) if i and math.isfinite(nodes[i - 1].lam) else None
            own = rule.final(s, t) if numbers and i == last - 1 and self.lower_order_final else None
            if own:
                move, numbers = own, None
            stages.append(rule.Stage(s, self.channel_dim, pending, move, numbers))
            pending = numbers
        if closing:
            stages.append(rule.Stage(nodes[last], self.channel_dim, None, euler_row("data", *nodes[-2:]), None))
        elif extra:
            stages.append(rule.Stage(nodes[last], self.channel_dim, pending, None, None))
        return spend(stages, nfe, len(nodes) - 1)
