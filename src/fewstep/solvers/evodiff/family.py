"""The numbers behind EVODiff's default, to be changed together: those of its grid, of its prior and of its trust.

All are chosen once for models of images. `fewstep.tune` chooses them for one model; with all of them 0 the default's
nodes and stages come out, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...grid.base import CENTER, center_of, closes, fall_of, focused, lam_ends, rise_of
from ...schedule import Node, Schedule
from .trust import TrustingStage
from .variance import PRIOR, REACH, stages

__all__ = ["Family"]


class Family(NamedTuple):
    """Natural logarithms of factors on the default's numbers; `slope` is added to its own.

    scale: of the data's standard deviation, in grid, prior and trust. center, rise, fall: of `focused`. surprise,
    slope, largest: of `PathPrior`. reach: of `variance`. trusted: of the change that trust allows.
    """

    scale: float = 0.0
    center: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    surprise: float = 0.0
    slope: float = 0.0
    largest: float = 0.0
    reach: float = 0.0
    trusted: float = 0.0

    def nodes(self, schedule: Schedule, steps: int) -> tuple[Node, ...]:
        """The grid. It ends where the default's ends, whatever the scale."""
        begin, end = schedule.lam_range
        closing = closes(schedule.data_std, lam_ends(schedule)[1], None)
        rise = rise_of(-begin - center_of(schedule.data_scale))
        fall = fall_of(end - begin, steps - closing)
        return focused(
            schedule,
            steps,
            data_std=schedule.data_scale * math.exp(self.scale),
            center=CENTER * math.exp(self.center),
            rise=rise * math.exp(self.rise),
            fall=fall * math.exp(self.fall),
            to_zero=closing,
        )

    def stages(self, nodes: Sequence[Node], data_std: float, end: float) -> list[TrustingStage]:
        """The plan on any nodes, for data of about `data_std` before it is scaled, and a model that ends at `end`."""
        prior = replace(
            PRIOR,
            surprise=PRIOR.surprise * math.exp(self.surprise),
            slope=PRIOR.slope + self.slope,
            largest=PRIOR.largest * math.exp(self.largest),
        )
        data_std, reach = data_std * math.exp(self.scale), REACH * math.exp(self.reach)
        plan = stages(nodes, False, data_std, end=end, prior=prior, reach=reach)
        return [stage._replace(surprise=stage.surprise * math.exp(self.trusted)) for stage in plan]
