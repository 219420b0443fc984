"""The models that a bench measures: packaged, in a folder, or from a function of the user's."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.unet2d import BATCH
from ..prediction import Denoiser
from ..schedule import Schedule

__all__ = ["Subject", "imported", "load_subject", "read_prompts"]


@dataclass(frozen=True)
class Subject:
    """A model, ready to be sampled.

    `denoiser(seeds, guidance)` is that of the images of these seeds: seed s draws class s, or prompt s, in turn, where
    there are any. `decode` takes what it samples to images in [-1, 1]. `fingerprint` tells models apart.
    """

    name: str
    schedule: Schedule
    shape: tuple[int, ...]
    fingerprint: str
    conditioning: str
    denoiser: Callable[[range, float], Denoiser]
    decode: Callable[[Tensor], Tensor]


def load_subject(
    name: str, device: str = "cpu", shape: tuple[int, ...] = (), batch: int = BATCH, prompts: Path | None = None
) -> Subject:
    """A packaged model, a folder, a name on the Hub, or `module:function`; `prompts` are a file's, for models of text.

    The function takes nothing, or `device`, and returns a denoiser and its schedule, or a denoiser that has it as
    `schedule`. It is your code, found as Python finds modules, and in the working directory. The denoiser may have:
    `shape`, of a sample; `classes` and `conditioned(labels, guidance)`, as `adapters.EDMModel` has; `decode`, from
    latents to images in [-1, 1]; `fingerprint`, which changes with its weights.
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
    texts = () if prompts is None else read_prompts(prompts)
    if hasattr(model, "prompted") != bool(texts):
        raise ValueError(
            f"{name} knows no prompts: leave them out"
            if texts
            else f"{name} draws what a text says: give prompts, a file of one a line"
        )
    shape = shape or tuple(getattr(model, "shape", ()))
    if not shape:
        raise ValueError(f"the shape of a sample of {name} is not known: give shape = [3, 32, 32], or the like")
    return Subject(
        name,
        schedule,
        shape,
        ", prompts ".join((str(getattr(model, "fingerprint", name)), *[_digest(texts)] * bool(texts))),
        "classes" if getattr(model, "classes", ()) else "no classes",
        lambda seeds, guidance: _conditioned(model, name, seeds, guidance, texts),
        getattr(model, "decode", lambda images: images),
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


def read_prompts(file: Path) -> tuple[str, ...]:
    """One a line, without the blank ones; ValueError if there are none."""
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text ({error})") from error
    if not lines:
        raise ValueError(f"{file} holds no prompts")
    return lines


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _conditioned(model: Any, name: str, seeds: range, guidance: float, texts: Sequence[str]) -> Denoiser:
    if texts:
        prompted: Denoiser = model.prompted([texts[seed % len(texts)] for seed in seeds], guidance)
        return prompted
    classes = getattr(model, "classes", ())
    if classes:
        denoiser: Denoiser = model.conditioned([seed % len(classes) for seed in seeds], guidance)
        return denoiser
    if guidance != 1:
        raise ValueError(f"guidance {guidance:g} needs a model with classes, and {name} has none: use 1")
    return model  # type: ignore[no-any-return]
