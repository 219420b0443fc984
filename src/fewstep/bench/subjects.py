"""The models that a bench measures: packaged, in a folder, or from a function of the user's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.unet2d import BATCH
from ..grid import GridFunction
from ..prediction import Denoiser
from ..prompts import digest
from ..schedule import Schedule

__all__ = ["Subject", "imported", "load_subject"]


@dataclass(frozen=True)
class Subject:
    """A model, ready to be sampled.

    `denoiser(seeds, guidance)` is that of the images of these seeds: seed s draws class or prompt s, in turn, where
    there are some. `decode` takes what it samples to images in [-1, 1]. `fingerprint` tells models apart. `network` is
    the torch module inside, if the model shows it. `grid` is of its own levels, and `unit_start` says that it begins
    with unit noise, as pipelines have and do.
    """

    name: str
    schedule: Schedule
    shape: tuple[int, ...]
    fingerprint: str
    conditioning: str
    denoiser: Callable[[range, float], Denoiser]
    decode: Callable[[Tensor], Tensor]
    network: object = None
    grid: GridFunction | None = None
    unit_start: bool = False


def load_subject(
    name: str,
    device: str = "cpu",
    shape: tuple[int, ...] = (),
    batch: int = BATCH,
    prompts: tuple[str, ...] = (),
) -> Subject:
    """A packaged model, a folder, or `module:function`.

    The function takes nothing, or `device`, and returns a denoiser and its schedule, or a denoiser that has it as
    `schedule`. It is your code, found as Python finds modules, and in the working directory. The denoiser may have:
    `shape`, of a sample; `classes` and `conditioned(labels, guidance)`, as `adapters.EDMModel` has; `prompted(prompts,
    guidance)`; `decode`, from latents to images in [-1, 1]; `fingerprint`, which changes with its weights.
    """
    if ":" in name and not Path(name).exists():
        made = imported(name)
        answer = made(device=device) if "device" in signature(made).parameters else made()
        model, schedule = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        schedule = schedule or getattr(model, "schedule", None)
        if not callable(model) or not isinstance(schedule, Schedule):
            raise ValueError(f"{name} must return a denoiser and its schedule; got {model!r} and {schedule!r}")
    else:
        from ..adapters import found

        # Always so many at a time, so that an image depends on its seed alone; on a CPU few, for its caches.
        folder, family = found(name)
        model = family.load(folder, device=device, batch=family.BATCH if device == "cpu" else batch)
        schedule = model.schedule
    text = hasattr(model, "prompted")
    if text and not prompts:
        raise ValueError(f"{name} draws what a text says: give prompts, a file with one a line")
    if prompts and not text and ":" not in name:  # a function may have drawn from them itself
        raise ValueError(f"{name} knows no prompts: leave them out")
    shape = shape or tuple(getattr(model, "shape", ()))
    if not shape:
        raise ValueError(f"the shape of a sample of {name} is not known: give shape = [3, 32, 32], or the like")
    told = digest(prompts)
    return Subject(
        name,
        schedule,
        shape,
        str(getattr(model, "fingerprint", name)),
        f"prompts {told['sha256']}" if text and told else "classes" if getattr(model, "classes", ()) else "no classes",
        lambda seeds, guidance: _conditioned(model, name, seeds, guidance, prompts if text else ()),
        getattr(model, "decode", lambda images: images),
        getattr(model, "network", None),
        getattr(model, "grid", None),
        getattr(model, "unit_start", False),
    )


def imported(name: str) -> Any:
    """The `function` of a `module:function`."""
    module, _, function = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"{name} cannot be imported ({error}): give module:function") from error


def _conditioned(model: Any, name: str, seeds: range, guidance: float, prompts: tuple[str, ...]) -> Denoiser:
    if prompts:
        prompted: Denoiser = model.prompted([prompts[seed % len(prompts)] for seed in seeds], guidance)
        return prompted
    classes = getattr(model, "classes", ())
    if classes:
        denoiser: Denoiser = model.conditioned([seed % len(classes) for seed in seeds], guidance)
        return denoiser
    if guidance != 1:
        raise ValueError(f"guidance {guidance:g} needs a model with classes or prompts, and {name} has none: use 1")
    return model  # type: ignore[no-any-return]
