"""Strings become objects, or wrong usage that names the option."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .options import ALL_GRIDS, ALL_SOLVERS
from .show import say

if TYPE_CHECKING:
    from ..adapters import EDMModel
    from ..grid import Grid
    from ..prediction import Denoiser
    from ..solvers import Solver

TUNED = "tuned"  # not in the table: it is of a file


def pick(option: str, known: Collection[str], name: str, shown: str | None = None) -> None:
    if name not in known:
        raise typer.BadParameter(f"{name!r} is not known; choose from {shown or ', '.join(known)}", param_hint=option)


def pick_solvers(option: str, names: Iterable[str]) -> dict[str, Solver]:
    from ..solvers import Tuned
    from ..table import SOLVERS

    chosen: dict[str, Solver] = {}
    for name in names:
        pick(option, {*SOLVERS, TUNED}, name, ALL_SOLVERS)
        chosen[name] = Tuned({}) if name == TUNED else SOLVERS[name].solver
    return chosen


def pick_grid(name: str | None) -> Grid | None:
    from ..table import GRIDS

    if name is None:
        return None
    pick("--grid", GRIDS, name, ALL_GRIDS)
    return GRIDS[name]


def pick_budgets(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise typer.BadParameter(f"{text!r} must be integers of at least 1, like 5,8,10", param_hint="--nfe")
    return found


def load(model: str, device: str) -> EDMModel:
    import torch

    from ..adapters import load_model
    from ..adapters.unet2d import BATCH

    try:
        torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{device!r} is not a device; choose cpu, cuda, mps ...", param_hint="--device"
        ) from error
    loaded: EDMModel = load_model(model, device=device, batch=BATCH)
    return loaded


def conditioned(model: EDMModel, label: str, guidance: float) -> Callable[[Iterable[int]], Denoiser]:
    """From the seeds of images to the denoiser of their classes."""
    names = list(model.classes)
    if not math.isfinite(guidance):
        raise typer.BadParameter(f"{guidance} must be finite", param_hint="--guidance")
    if label == "none" or (label == "all" and not names):
        if guidance != 1:
            raise typer.BadParameter(f"{guidance:g} needs a class: give a --label, or 1", param_hint="--guidance")
        return lambda seeds: model
    if label == "all":
        return lambda seeds: model.conditioned([seed % len(names) for seed in seeds], guidance)
    if label in names:
        number = names.index(label)
    elif label.isdecimal() and int(label) < len(names):
        number = int(label)
    else:
        known = f"'none', 'all', {', '.join(names)}" if names else "'none', it has no classes"
        raise typer.BadParameter(f"{label!r} is not a class of this model; choose from {known}", param_hint="--label")
    return lambda seeds: model.conditioned(number, guidance)


def subject(model: EDMModel, label: str, guidance: float) -> str:
    """What statistics are of: the model, with the classes of its images or without, and the guidance."""
    classes = "no classes" if label == "none" or not model.classes else "classes"
    return f"{model.fingerprint}, {classes}, guidance {guidance:g}"


def informed(
    solvers: dict[str, Solver],
    files: list[Path] | None,
    plan: Path | None,
    model: EDMModel,
    label: str,
    guidance: float,
) -> dict[str, Solver]:
    """The solvers, those that need statistics or a plan with the ones that the files hold; others are stand-ins."""
    from ..solvers import Tuned
    from ..statistics import load_statistics

    of = subject(model, label, guidance)
    found = [load_statistics(path, schedule=model.schedule, fingerprint=of) for path in files or []]
    informed, used = {}, set()
    for name, solver in solvers.items():
        kind = type(getattr(solver, "statistics", None))
        fitting = [each for each in found if type(each) is kind]
        if kind is not type(None) and len(fitting) != 1:
            command = f"fewstep estimate {kind.__name__.lower()} --out FILE"
            raise typer.BadParameter(f"{name} needs one file of {kind.__name__}: {command}", param_hint="--statistics")
        if name == TUNED:
            if plan is None:
                raise typer.BadParameter(f"{name} needs a plan: fewstep tune --out FILE", param_hint="--plan")
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                solver = Tuned.load(plan, schedule=model.schedule, fingerprint=of)
            for each in told:
                say(f"warning: {each.message}")
        informed[name] = dataclasses.replace(solver, statistics=fitting[0]) if fitting else solver  # type: ignore[type-var]
        used |= set(map(id, fitting))
    if plan is not None and TUNED not in solvers:
        raise typer.BadParameter(f"is for the solver {TUNED!r}, which was not asked for", param_hint="--plan")
    if len(used) < len(found):
        raise typer.BadParameter("holds statistics that no solver asked for", param_hint="--statistics")
    return informed
