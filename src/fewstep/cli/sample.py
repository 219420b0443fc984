"""`fewstep sample`: images from a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models import DEFAULT_MODEL
from ..prompts import digest
from .options import (
    ALL_SOLVERS,
    AsJson,
    Debug,
    Device,
    GridName,
    Guidance,
    Label,
    Model,
    Negative,
    Plan,
    Prompt,
    Prompts,
    Seed,
    Size,
    Statistics,
    path,
)
from .parse import (
    DTYPES,
    conditioned,
    grid_of,
    informed,
    load,
    pick,
    pick_device,
    pick_grid,
    pick_prompts,
    pick_solvers,
)
from .show import count, errors, peak, progress, say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..prediction import Denoiser
    from ..runs import Run

DEFAULT_N = 64
SAVED = {"images": ("images",), "latents": ("latents",), "both": ("images", "latents")}


def sample(
    model: Model = DEFAULT_MODEL,
    solver: Annotated[str, typer.Option(help=ALL_SOLVERS + ".")] = "evodiff",
    nfe: Annotated[int, typer.Option(min=1, help="Calls of the model for each image.")] = 10,
    n: Annotated[
        int | None, typer.Option(min=1, help=f"How many images; default {DEFAULT_N}, or one a prompt.")
    ] = None,
    seed: Seed = 0,
    grid: GridName = None,
    label: Label = "all",
    prompt: Prompt = None,
    prompts: Prompts = None,
    negative: Negative = None,
    guidance: Guidance = 1.0,
    size: Size = None,
    statistics: Statistics = None,
    plan: Plan = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images at a time; of pipelines 1, of others 8, where it changes no pixel on a CPU."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help=f"In which the network computes: {', '.join(DTYPES)}.")] = DTYPES[0],
    save: Annotated[str, typer.Option(help="What to keep: images, latents, which are what was sampled, or both.")] = (
        "images"
    ),
    npz: Annotated[bool, typer.Option("--npz", help="One samples.npz, written at the end, instead of PNGs.")] = False,
    out: Annotated[
        Path, typer.Option(parser=path, metavar="<path>", help="Folder for the images, grid.png and run.json.")
    ] = Path("samples"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in that folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw images.

    An interrupted run goes on when the same command is given again.
    """
    with errors(debug):
        from ..files import sha256_of
        from ..pictures import pixels
        from ..runs import IMAGES, LATENTS, Run, versions
        from ..sampling import plan as planned
        from ..sampling import sample as draw
        from ..sampling import unit_noise

        picked = pick_solvers("--solver", [solver])
        pick_grid(grid)
        pick("--save", SAVED, save)
        texts, device = pick_prompts(prompt, prompts), pick_device(device)
        n = n or len(texts) or DEFAULT_N
        loaded = load(model, device, dtype, batch_size, size)
        denoiser = conditioned(loaded, label, guidance, texts, negative, seed)
        chosen = informed(picked, statistics, plan, loaded, label, guidance, texts, negative)[solver]
        levels = grid_of(loaded, grid, chosen)
        planned(loaded.schedule, chosen, nfe=nfe, grid=levels)  # what cannot be planned is told before there is a run
        network = getattr(loaded, "network", None)
        settings = {
            "model": model, "family": loaded.family, "weights": loaded.fingerprint, "network": digest_of(network),
            "schedule": repr(loaded.schedule), "classes": list(loaded.classes),
            "solver": solver, "solver_options": repr(chosen),
            "nfe": nfe, "n": n, "seed": seed, "grid": grid, "label": label, "guidance": guidance,
            "prompts": digest(texts, negative), "negative": negative, "size": size, "device": device, "dtype": dtype,
            "batch": loaded.batch, "format": "npz" if npz else "png", "save": save,
            "statistics": [sha256_of(path) for path in statistics or []],
            "plan": None if plan is None else sha256_of(plan),
            "versions": versions(network),
        }  # fmt: skip
        evaluations = Evaluations(network, loaded.batch, getattr(loaded, "classifier", None))
        begins_unit = getattr(loaded, "unit_start", False)

        def arrays(seeds: list[int]) -> dict[str, np.ndarray]:
            noise = unit_noise(seeds, loaded.shape, device=device)
            x = draw(
                evaluations.of(denoiser(seeds)), None if begins_unit else noise, x=noise if begins_unit else None,
                nfe=nfe, solver=chosen, schedule=loaded.schedule, grid=levels, seeds=seeds,
            )  # fmt: skip
            found = {}
            if IMAGES in SAVED[save]:
                found[IMAGES] = pixels(loaded.decode(x) if hasattr(loaded, "decode") else x)
            return found | ({LATENTS: x.float().cpu().numpy()} if LATENTS in SAVED[save] else {})

        with Run(out, settings, npz, overwrite, SAVED[save]) as run:
            if run.damaged:
                say(f"damaged, made again: {', '.join(run.damaged)}")
            before = run.made
            record = run.complete() or fill(run, "sampling", seed, batch_size or loaded.batch or 1, arrays, evaluations)
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out)}))
    if record["status"] == "interrupted":
        raise KeyboardInterrupt(f"{run.made} of {count(n, 'image')} in {out}; the same command goes on from there")
    drawn = f"{n - before} drawn now, {record['images_per_second']:.1f} a second" if before < n else "all from before"
    say(f"{count(n, 'image')} in {out}, {drawn}" + (f"; the sheet is {out / 'grid.png'}" if save != "latents" else ""))
    if before < n:
        say(f"{count(nfe, 'call')} an image{evaluations}; {peak(device)}")


class Evaluations:
    """What the calls of denoisers made of a network: how often it was evaluated, and on how many rows."""

    def __init__(self, network: Any, batch: int | None, classifier: Any = None):
        self.calls, self.evaluations, self.rows, self.gradients, self._batch = 0, 0, 0, 0, batch
        if network is not None:
            network.register_forward_pre_hook(self._see, with_kwargs=True)
        if classifier is not None:
            classifier.register_forward_pre_hook(self._judged)

    def _see(self, network: Any, args: Any, kwargs: Any) -> None:
        first = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.evaluations, self.rows = self.evaluations + 1, self.rows + len(first)

    def _judged(self, classifier: Any, args: Any) -> None:
        self.gradients += 1

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, whose calls are counted: each batch of a call is one."""

        def counted(x: Tensor, t: float) -> Tensor:
            self.calls += -(-len(x) // (self._batch or len(x)))
            return denoiser(x, t)

        return counted

    def __str__(self) -> str:
        if not self.evaluations:
            return ""
        each, rows = self.evaluations / self.calls, self.rows / self.evaluations / (self._batch or 1)
        if each == 1 and self._batch and rows == 2:
            return ", each one evaluation of the network, of a batched pair: with the condition and without"
        judged = f" and {count(round(self.gradients / self.calls), 'gradient')} of the classifier" * bool(
            self.gradients
        )
        return f", each {count(round(each), 'evaluation')} of the network{judged}"


def fill(
    run: Run,
    doing: str,
    seed: int,
    batch_size: int,
    draw: Callable[[list[int]], dict[str, np.ndarray]],
    evaluations: Evaluations,
    measure: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Draw the images that are missing, up to the end or an interruption, and return the run's record, which has what
    `measure` finds then."""
    found, status = run.made, "done"
    started = time.perf_counter()
    try:
        with progress(doing, run.settings["n"], "images", done=found) as advance:
            while run.missing:
                part = run.missing[:batch_size]
                run.add(**draw([seed + i for i in part]))
                advance(len(part))
    except KeyboardInterrupt:
        status = "interrupted"
    except BaseException:
        with suppress(OSError):  # of which there was one, most likely
            run.finish("failed")
        raise
    seconds = time.perf_counter() - started
    facts = {"found": found, "seconds": round(seconds, 3), "images_per_second": round((run.made - found) / seconds, 3)}
    network = {name: getattr(evaluations, name) for name in ("calls", "evaluations", "rows", "gradients")}
    return run.finish(status, **facts, **measure(), network=network)


def digest_of(network: Any) -> str:
    """Of the configuration of a network, without diffusers' own notes on it."""
    config = getattr(network, "config", {})
    config = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # type: ignore[arg-type]
    facts = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
