"""A plan that was measured on a model, as data: nodes, and the weights of EVODiff's step at each.

`fewstep.tune` makes it and a JSON file keeps it, which holds numbers and words alone. Levels are half log-SNRs and
weights are of y = x / alpha, so that a plan serves a model in whichever form its x is: x_0 + sigma noise as well as
alpha x_0 + sigma noise.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...files import write_atomically
from ...grid import Grid, checked
from ...schedule import Node, Schedule
from ...statistics.tables import describe
from ..core.base import spend
from ..evodiff import EVODiff
from ..evodiff.trust import TrustingStage
from .measured import OTHER, Measured

__all__ = ["Outcome", "Tuned"]

FORMAT, VERSION = "fewstep Tuned", 2


class Outcome(NamedTuple):
    """Of one number of calls, on seeds that nothing was tuned on: errors to the converged solution.

    ratio is tuned over default, low and high its 95 % interval over seeds. evaluations: of single samples, by the
    search. kept: whether the tuned plan is in the file; else the default was no worse.
    """

    calls: int
    default: float
    tuned: float
    ratio: float
    low: float
    high: float
    evaluations: int
    kept: bool


@dataclass(frozen=True)
class Tuned:
    """EVODiff with nodes and weights that were measured on one model, by `fewstep.tune`.

    Budgets that were tuned have nodes of their own; others are planned as the nearest tuned one was. Where the default
    was no worse it runs. Explicit levels are planned like other budgets.

    plans: by number of calls. schedule: as `describe` writes it; a run on another is refused, unless it is None.
    fingerprint: of what it was tuned on, the guidance included. facts: seeds, objective, versions. report: what was
    gained. origin: of all that it was tuned from, by which `fewstep.tune` knows its file.

    Cost: 1 call per step; state: 4 tensors, as EVODiff's default, and the same arithmetic.
    """

    plans: Mapping[int, Measured]
    schedule: str | None = None
    fingerprint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    report: tuple[Outcome, ...] = ()
    origin: str | None = field(default=None, compare=False)
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for calls, each in self.plans.items():
            each.check(calls)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.plans.items())), self.schedule, self.fingerprint))

    def __repr__(self) -> str:
        return f"Tuned({', '.join(map(str, sorted(self.plans))) or 'no'} calls)"

    @property
    def grid(self) -> Grid:
        return Grid(self.nodes)

    def nodes(self, schedule: Schedule, steps: int) -> tuple[Node, ...]:
        """The levels of a run of `steps` calls."""
        self._expect(schedule)
        found = self._for(steps)
        if found is None:
            return EVODiff().grid(schedule, steps)
        if steps in self.plans:
            return checked(found.nodes(schedule), "the tuned levels")
        return found.family.nodes(schedule, steps)

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> Sequence[TrustingStage]:
        self._expect(schedule)
        steps = len(nodes) - 1
        found = self._for(steps)
        if found is None or nodes[1].nsr > nodes[0].nsr:
            return EVODiff().plan(schedule, nodes, nfe)  # type: ignore[return-value]
        if steps in self.plans and found.fits(nodes):
            return spend(found.stages(schedule, nodes), nfe, steps)
        data_std = found.data_std / math.exp(found.family.scale)
        return spend(found.family.stages(nodes, data_std, schedule.lam_range[1]), nfe, steps)

    def on(self, schedule: Schedule) -> Tuned:
        """The same for the same model in another form: on any schedule whose range is that of the plans.

        ValueError where it is another. Tables of betas are known by their ends: their numbers are rounded in many ways.
        """
        self._within(schedule)
        return replace(self, schedule=None)

    def _within(self, schedule: Schedule) -> None:
        low, high = schedule.lam_range
        for calls, each in self.plans.items():
            ends = each.lams[0], min(each.lams[-1], high)
            if max(abs(ends[0] - low), abs(ends[1] - high)) > OTHER:
                raise ValueError(
                    f"the plan of {calls} calls, tuned on {self.schedule}, goes from half log-SNR {ends[0]:.3g} to "
                    f"{ends[1]:.3g}; this model knows {low:.3g} to {high:.3g}: tune for it"
                )

    def _for(self, calls: int) -> Measured | None:
        """What was found for so many calls, or for the nearest number; None where the default was no worse."""
        if any(outcome.calls == calls and not outcome.kept for outcome in self.report) or not self.plans:
            return None
        return self.plans[min(self.plans, key=lambda known: (abs(math.log(known / calls)), known))]

    def _expect(self, schedule: Schedule) -> None:
        if self.schedule is not None and self.schedule != describe(schedule):
            raise ValueError(
                f"the plan was tuned on {self.schedule}, the run is on {describe(schedule)}: tune for this schedule, "
                "or, for the same model on another clock, use dataclasses.replace(tuned, schedule=None)"
            )
        if self.schedule is not None:
            self._within(schedule)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all, in place of what is there."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "schedule": self.schedule,
            "fingerprint": self.fingerprint,
            "origin": self.origin,
            "facts": dict(self.facts),
            "report": [outcome._asdict() for outcome in self.report],
            "plans": {str(calls): each.written() for calls, each in sorted(self.plans.items())},
        }
        write_atomically(Path(path), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, *, schedule: Schedule | None = None, fingerprint: str | None = None) -> Tuned:
        """Read a file of `save`.

        `schedule` is refused, and `fingerprint` warned of, where they are not those that the plan was tuned on.
        """
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a folder: name the file in it that fewstep tune, or Tuned.save, made")
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}: make it with fewstep tune, or Tuned.save")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise ValueError(f"it is {content['format']!r} of version {content['version']!r}")
            tuned = cls(
                {int(calls): Measured.read(each) for calls, each in content["plans"].items()},
                _word(content["schedule"]),
                _word(content["fingerprint"]),
                dict(content["facts"]),
                tuple(Outcome(**each) for each in content["report"]),
                _word(content.get("origin")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path} does not hold a plan of this fewstep ({reason}): copy it anew, or tune again"
            ) from error
        if schedule is not None:
            tuned._expect(schedule)
        if fingerprint is not None and tuned.fingerprint != fingerprint:
            warnings.warn(
                f"{path} was tuned on another model or guidance, {tuned.fingerprint}, not {fingerprint}: "
                "what it gains there says nothing of this one; tune again",
                stacklevel=2,
            )
        return tuned


def _word(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a name must be a string; got {value!r}")
    return value
