"""What was found for one number of calls: levels, and the numbers of EVODiff's step at each, as JSON keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ...schedule import Node, Schedule
from ..core.base import euler_row
from ..evodiff.family import Family
from ..evodiff.trust import Split, TrustingStage

__all__ = ["OTHER", "Measured", "Numbers", "asked"]

DIFFERENCES = 3  # that a step of EVODiff weighs, at most
# In half log-SNR. Levels that went through float32 are off by 1e-6, tuned ones are 0.02 apart at least.
SAME = 1e-3
OTHER = 0.1  # likewise: the ends of ranges differ by 1e-4 in rounding, those of models by 0.3 and more


def asked(schedule: Schedule, nodes: Sequence[Node], further: Sequence[float]) -> tuple[Node, ...]:
    """`nodes` for a model that is told so much more half log-SNR than theirs at each but the last: y = x / alpha and
    its noise stay.

    A state that was predicted is off its level, and a network is not a posterior mean: what it is best told is not
    what the level is. alpha is that of the level that is told, so that a denoiser finds the x that it expects. Nothing
    is told beyond the range of both the schedule, which may be another form of the model's, and the nodes.
    """
    low, high = schedule.lam_range
    low, high = min(low, nodes[0].lam), max(high, nodes[-2].lam)

    def at(node: Node, by: float) -> Node:
        told = schedule.node(schedule.time_at(min(max(node.lam + by, low), high)))
        return Node(told.time, told.alpha, node.nsr * told.alpha)

    return (*(at(node, by) if by else node for node, by in zip(nodes[:-1], further, strict=True)), nodes[-1])


class Numbers(NamedTuple):
    """Of one stage: the weights of differences of answers in the prediction and the correction, over alpha, the newest
    first, and what trust needs, as in `TrustingStage`. No weights, no correction. further: half log-SNR that the model
    is told beyond that of the level. The last prediction is not bounded: its weights are the model's."""

    predict: tuple[float, ...] = ()
    correct: tuple[float, ...] = ()
    foretold: tuple[float, ...] = ()
    surprise: float = 0.0
    further: float = 0.0

    @classmethod
    def of(cls, stage: TrustingStage, t: Node, further: float) -> Numbers:
        """Of the stage from its node to `t`."""
        predict, correct = (
            () if split is None else tuple(weight / node.alpha for weight in (split.lead, *split.rest))
            for split, node in ((stage.predict, t), (stage.correct, stage.node))
        )
        return cls(predict, correct, stage.foretold, stage.surprise, further)

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Numbers:
        predict, correct, foretold = (tuple(map(float, kept[name])) for name in ("predict", "correct", "foretold"))
        return cls(predict, correct, foretold, float(kept["surprise"]), float(kept["further"]))

    @property
    def reach(self) -> int:
        """How many differences of answers it takes."""
        return max(1, len(self.predict) - 1, len(self.correct) - 1, 1 + len(self.foretold))


class Measured(NamedTuple):
    """What was found for one number of calls.

    lams: half log-SNRs of the nodes, inf where the run ends at sigma = 0. data_std: of the data. family: what plans
    other budgets.
    """

    lams: tuple[float, ...]
    numbers: tuple[Numbers, ...]
    data_std: float
    family: Family

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        nodes: Sequence[Node],
        stages: Sequence[TrustingStage],
        data_std: float,
        family: Family,
    ) -> Measured:
        told = (schedule.node(stage.node.time).lam - stage.node.lam for stage in stages)
        numbers = (Numbers.of(*each) for each in zip(stages, nodes[1:], told, strict=True))
        return cls(tuple(node.lam for node in nodes), tuple(numbers), data_std, family)

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Measured:
        """Of what `written` returned; KeyError, TypeError or ValueError for anything else."""
        *inner, last = kept["lams"]
        lams = (*map(float, inner), math.inf if last is None else float(last))
        numbers = (Numbers.read(stage) for stage in kept["stages"])
        family = Family(**{name: float(value) for name, value in kept["family"].items()})
        return cls(lams, tuple(numbers), float(kept["data_std"]), family)

    def written(self) -> dict[str, Any]:
        """In the terms of JSON, which has no infinity."""
        return {
            "lams": [None if math.isinf(lam) else lam for lam in self.lams],
            "data_std": self.data_std,
            "family": self.family._asdict(),
            "stages": [numbers._asdict() for numbers in self.numbers],
        }

    def nodes(self, schedule: Schedule) -> tuple[Node, ...]:
        """The levels. Where the ends of the range differ by no more than `OTHER`, it begins at the schedule's own."""
        first, low = self.lams[0], schedule.lam_range[0]
        lams = (max(first, low) if low - first <= OTHER else first, *self.lams[1:])
        return tuple(schedule.node(schedule.t_clean if math.isinf(lam) else schedule.time_at(lam)) for lam in lams)

    def fits(self, nodes: Sequence[Node]) -> bool:
        """Whether `nodes` are its levels."""
        return len(nodes) == len(self.lams) and all(
            lam == node.lam or abs(lam - node.lam) <= SAME for lam, node in zip(self.lams, nodes, strict=True)
        )

    def stages(self, schedule: Schedule, nodes: Sequence[Node]) -> list[TrustingStage]:
        plan: list[TrustingStage] = []
        nodes = asked(schedule, nodes, [numbers.further for numbers in self.numbers])
        reaches = [*(numbers.reach for numbers in self.numbers[1:]), 1]
        for (s, t), numbers, next_reach in zip(pairwise(nodes), self.numbers, reaches, strict=True):
            scale, (move,) = euler_row("data", s, t)
            predict, correct = (
                Split(node.alpha * weights[0], tuple(node.alpha * weight for weight in weights[1:]))
                if weights
                else None
                for weights, node in ((numbers.predict, t), (numbers.correct, s))
            )
            gain = plan[-1].move if plan else 0.0
            plan.append(
                TrustingStage(
                    s, scale, move, gain, correct, predict, numbers.foretold, numbers.surprise, self.data_std,
                    next_reach - 1,
                )
            )  # fmt: skip
        return plan

    def check(self, calls: int) -> None:
        """ValueError unless it is a plan of so many calls."""
        if len(self.numbers) != calls or len(self.lams) != calls + 1:
            raise ValueError(f"a plan of {calls} calls has {len(self.lams)} levels and {len(self.numbers)} stages")
        rising = all(t > s for s, t in pairwise(self.lams))
        if not rising or not all(map(math.isfinite, self.lams[:-1])):
            raise ValueError(f"levels must rise in half log-SNR; got {self.lams}")
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std must be positive and finite; got {self.data_std!r}")
        for i, (predict, correct, foretold, surprise, further) in enumerate(self.numbers):
            known = min(i, DIFFERENCES)
            if not all(map(math.isfinite, (*predict, *correct, *foretold, surprise, further, *self.family))):
                raise ValueError(f"stage {i} of {calls} holds NaN or inf")
            if further and not i:
                raise ValueError(f"stage 0 of {calls} must ask at the level of the noise that it is given")
            if max(len(predict) - 1, len(correct) - 1, len(foretold) + 1 if foretold else 0) > known or (
                not known and (predict or correct)
            ):
                raise ValueError(f"stage {i} of {calls} weighs more than the {known} differences that are known")
            if not foretold and max(len(predict), len(correct)) > 2:
                raise ValueError(f"stage {i} of {calls} weighs old differences, of which nothing is foretold")
