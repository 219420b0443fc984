"""Strings become objects, or wrong usage that names the option."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..prompts import digest, read_prompts
from .options import ALL_GRIDS, ALL_SOLVERS
from .show import count, say

if TYPE_CHECKING:
    from ..grid import Grid, GridFunction
    from ..prediction import Denoiser
    from ..solvers import Solver

TUNED = "tuned"  # not in the table: it is of a file
DTYPES = ("float32", "bfloat16", "float16")
SHOWN = 20  # classes in an error


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


def pick_device(name: str) -> str:
    """The device of that name; of 'auto', the fastest that is here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{name!r} is not a device; choose cpu, cuda, mps ..., or auto", param_hint="--device"
        ) from error
    return name


def pick_size(text: str | None) -> dict[str, tuple[int, int]]:
    """The option `size`, height and width, of a pipeline; none if there is no text."""
    if text is None:
        return {}
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} must be width and height, such as 768x512", param_hint="--size")
    return {"size": (int(found[2]), int(found[1]))}


def pick_prompts(prompt: str | None, file: Path | None) -> tuple[str, ...]:
    """The prompts of a run; none at all if none were given."""
    if file is None:
        return () if prompt is None else (prompt,)
    if prompt is not None:
        raise typer.BadParameter("and --prompts exclude each other", param_hint="--prompt")
    try:
        return read_prompts(file)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--prompts") from error


def load(
    model: str, device: str, dtype: str = "float32", batch_size: int | None = None, size: str | None = None
) -> Any:
    """The model, which says what it is; `batch_size` images of a pipeline are evaluated together."""
    import torch

    from ..adapters import found

    pick("--dtype", DTYPES, dtype)
    chosen = pick_size(size)
    folder, family = found(model)
    # A pixel depends on its seed alone where the network always has as many images before it. For small networks that
    # is a number of ours; of large ones nobody wants to evaluate more than were asked for.
    batch = family.BATCH if family.BATCH > 1 else batch_size or 1
    if size is not None and "size" not in inspect.signature(family.load).parameters:
        raise typer.BadParameter(f"{size} is for pipelines; {model} makes images of one size", param_hint="--size")
    loaded = family.load(folder, device=device, dtype=getattr(torch, dtype), batch=batch, **chosen)
    say(f"{model}: {loaded.family}" + (f", {count(len(loaded.classes), 'class', 'es')}" if loaded.classes else ""))
    return loaded


def conditioned(
    model: Any, label: str, guidance: float, prompts: Sequence[str] = (), negative: str | None = None, first: int = 0
) -> Callable[[Iterable[int]], Denoiser]:
    """From the seeds of images to the denoiser of their classes or prompts; the image of seed `first` is number 0."""
    names = list(model.classes)
    if not math.isfinite(guidance):
        raise typer.BadParameter(f"{guidance} must be finite", param_hint="--guidance")
    if hasattr(model, "prompted"):
        if not prompts:
            raise typer.BadParameter(
                "is missing: this model draws what a text says, '' for nothing", param_hint="--prompt"
            )
        model.prompted(prompts, guidance, negative)  # what is wrong with them is told now
        if label != "all":
            raise typer.BadParameter(f"{label!r} is for models of classes; give a --prompt", param_hint="--label")
        return lambda seeds: model.prompted([prompts[(s - first) % len(prompts)] for s in seeds], guidance, negative)
    for option, given in (("--prompt", prompts), ("--negative", negative)):
        if given:
            raise typer.BadParameter("is for models of text, and this is none", param_hint=option)
    if label == "none" or (label == "all" and not names):
        if guidance != 1:
            raise typer.BadParameter(f"{guidance:g} needs a class: give a --label, or 1", param_hint="--guidance")
        return lambda seeds: model
    if names:
        model.conditioned(0, guidance)  # what is wrong with it is told now
    if label == "all":
        return lambda seeds: model.conditioned([seed % len(names) for seed in seeds], guidance)
    number = class_of(model, label)
    return lambda seeds: model.conditioned(number, guidance)


def class_of(model: Any, label: str) -> int:
    """Its number, of a name or a number."""
    names = list(model.classes)
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    known = f"'none', 'all', {', '.join(names[:SHOWN])}" if names else "'none', it has no classes"
    raise typer.BadParameter(f"{label!r} is not a class of this model; choose from {known}", param_hint="--label")


def grid_of(model: Any, name: str | None, solver: Solver) -> GridFunction | None:
    """The grid of that name; else a pipeline's own noise levels, unless the solver is tuned to others."""
    from ..solvers import Tuned

    own = None if isinstance(solver, Tuned) else getattr(model, "grid", None)
    return pick_grid(name) if name is not None else own


def subject(model: Any, label: str, guidance: float, prompts: Sequence[str] = (), negative: str | None = None) -> str:
    """What statistics and plans are of: the model, the classes, class or prompts of its images if any, the guidance."""
    if label == "none" or not model.classes:
        classes = "no classes"
    else:
        classes = "classes" if label == "all" else f"class {class_of(model, label)}"
    if told := digest(prompts, negative):
        classes = f"prompts {told['sha256']}"
    return f"{model.fingerprint}, {classes}, guidance {guidance:g}"


def informed(
    solvers: dict[str, Solver],
    files: list[Path] | None,
    plan: Path | None,
    model: Any,
    label: str,
    guidance: float,
    prompts: Sequence[str] = (),
    negative: str | None = None,
) -> dict[str, Solver]:
    """The solvers, those that need statistics or a plan with the ones that the files hold; others are stand-ins."""
    from ..schedule import Flow
    from ..solvers import Tuned
    from ..solvers.evodiff.solver import RULES
    from ..statistics import load_statistics
    from ..table import SOLVERS

    flow = isinstance(model.schedule, Flow)
    # What was measured on all classes serves each of them.
    of = [subject(model, each, guidance, prompts, negative) for each in (label if label == "none" else "all", label)]
    found = [load_statistics(path, schedule=model.schedule, fingerprint=of[0]) for path in files or []]
    informed, used = {}, set()
    for name, solver in solvers.items():
        if flow and name in SOLVERS:
            solver = SOLVERS[name].on_flow
            if len(model.shape) == 2 and getattr(solver, "mode", None) in RULES:  # packed: (tokens, channels)
                solver = dataclasses.replace(solver, channel_dim=-1)  # type: ignore[type-var]
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
                known = Tuned.load(plan).fingerprint
                solver = Tuned.load(plan, schedule=model.schedule, fingerprint=known if known in of else of[-1])
            for each in told:
                say(f"warning: {each.message}")
        informed[name] = dataclasses.replace(solver, statistics=fitting[0]) if fitting else solver  # type: ignore[type-var]
        used |= set(map(id, fitting))
    if plan is not None and TUNED not in solvers:
        raise typer.BadParameter(f"is for the solver {TUNED!r}, which was not asked for", param_hint="--plan")
    if len(used) < len(found):
        raise typer.BadParameter("holds statistics that no solver asked for", param_hint="--statistics")
    return informed
