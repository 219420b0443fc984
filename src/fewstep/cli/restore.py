"""`fewstep restore`: what a degraded image may have been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models import DEFAULT_MODEL
from ..prompts import digest
from .options import (
    ALL_SOLVERS,
    MAX_SEED,
    AsJson,
    Debug,
    Device,
    GridName,
    Guidance,
    Model,
    Negative,
    Prompt,
    Size,
    path,
)
from .parse import DTYPES, TUNED, conditioned, grid_of, informed, load, pick, pick_device, pick_grid, pick_solvers
from .sample import Evaluations, digest_of, fill
from .show import count, errors, peak, say

if TYPE_CHECKING:
    import numpy as np

    from ..runs import Run

TASKS = ("inpaint", "superres", "deblur")
RED_DIFF = "red-diff"
METHODS = ("moment", "pigdm", "dps", "proximal", RED_DIFF)  # of fewstep.restore, which imports torch
NFE = {RED_DIFF: 100}  # of others 10
FACTOR, BLUR = 4, 1.5
NOISES = 1e-6, 100.0  # beyond which nothing of the noise, or of the image, is left to float32
FITS = 0.5, 2.0  # of what a restoration leaves of the measurement, over its noise, if that was right


def restore(
    task: Annotated[str, typer.Option(help=f"What degraded the image: {', '.join(TASKS)}.")],
    image: Annotated[Path, typer.Option(parser=path, metavar="<path>", help="An image, or a folder of images.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="<path>",
            help="For inpaint: white where to fill in, or a folder with one of each image's name. Default: what is "
            "transparent in the image; with --degrade its right half.",
        ),
    ] = None,
    factor: Annotated[int | None, typer.Option(help=f"For superres: how much larger; {FACTOR}.")] = None,
    blur: Annotated[
        float | None, typer.Option(help=f"For deblur: the blur's standard deviation in pixels; {BLUR}.")
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Standard deviation of the image's noise, of pixels in [-1, 1]: 0.05 is 6 of 255.")
    ] = 0.05,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="The images are whole: degrade them first, and show them beside.")
    ] = False,
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}; the last two take no gradients, and the last is no sample.")
    ] = METHODS[0],
    spectrum: Annotated[
        Path | None,
        typer.Option(
            parser=path, metavar="<path>", help="For proximal: a folder of such images, whole, by which it knows them."
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    solver: Annotated[str, typer.Option(help=ALL_SOLVERS + f"; not of {RED_DIFF}.")] = "evodiff",
    nfe: Annotated[
        int | None, typer.Option(min=1, help=f"Calls of the model for each restoration; 10, of {RED_DIFF} 100.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Restorations of each image, which differ where it leaves open.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the first; the next has the next seed.")] = 0,
    grid: GridName = None,
    label: Annotated[str, typer.Option(help="The class of the images by name or number, or 'none'.")] = "none",
    prompt: Prompt = None,
    negative: Negative = None,
    guidance: Guidance = 1.0,
    size: Size = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="At a time; of pipelines 1, of others 8, where it changes no pixel on a CPU."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help=f"In which the network computes: {', '.join(DTYPES)}.")] = DTYPES[0],
    out: Annotated[
        Path, typer.Option(parser=path, metavar="<path>", help="Folder for the restorations, grid.png and run.json.")
    ] = Path("restored"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in that folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Restore images: draw what they may have been before they were degraded.

    The picture, grid.png, has each image and its restorations. An interrupted run goes on when the same command is
    given again.
    """
    pick("--task", TASKS, task)
    pick("--method", METHODS, method)
    own = (("--mask", mask, "inpaint"), ("--factor", factor, "superres"), ("--blur", blur, "deblur"))
    for option, value, of in own:
        if value is not None and task != of:
            raise typer.BadParameter(f"is for --task {of}", param_hint=option)
    if spectrum is not None and method != "proximal":
        raise typer.BadParameter("is for --method proximal", param_hint="--spectrum")
    if method == RED_DIFF and solver != "evodiff":
        raise typer.BadParameter(f"is not for --method {RED_DIFF}, which has an optimiser", param_hint="--solver")
    nfe = NFE.get(method, 10) if nfe is None else nfe
    if not NOISES[0] <= noise <= NOISES[1]:
        least, most = NOISES
        raise typer.BadParameter(f"{noise} must be from {least} to {most}; rounding is 0.002", param_hint="--noise")
    if label == "all":
        raise typer.BadParameter("'all' is for drawing; choose one class, or 'none'", param_hint="--label")
    factor, blur = FACTOR if factor is None else factor, BLUR if blur is None else blur
    with errors(debug):
        import torch

        from ..files import sha256_of
        from ..pictures import OURS, pixels, read
        from ..restore import posterior, red_diff
        from ..restore.measurement import linearised
        from ..runs import IMAGES, Run, versions
        from ..sampling import plan as planned
        from ..sampling import sample as draw
        from ..sampling import unit_noise
        from .degraded import Task, degraded, image_files, mask_of, spectrum_of

        picked, device = pick_solvers("--solver", [solver]), pick_device(device)
        pick_grid(grid)
        if solver == TUNED or getattr(picked[solver], "statistics", None) is not None:
            needed = "a plan" if solver == TUNED else "a file of statistics"
            raise typer.BadParameter(
                f"{solver} needs {needed}, which restore cannot use: choose another", param_hint="--solver"
            )
        files = image_files(image)
        if out.resolve() == image.resolve():
            raise typer.BadParameter(f"{out} is where the images are: choose another folder", param_hint="--out")
        loaded = load(model, device, dtype, batch_size, size)
        of_text = hasattr(loaded, "prompted")
        texts = (prompt or "",) if of_text or prompt is not None else ()
        label = "all" if of_text and label == "none" else label
        denoiser = conditioned(loaded, label, guidance, texts, negative, seed)
        chosen = informed(picked, None, None, loaded, label, guidance, texts, negative)[solver]
        levels = grid_of(loaded, grid, chosen)
        planned(loaded.schedule, chosen, nfe=nfe, grid=levels)  # what cannot be planned is told before there is a run
        shape, decode = loaded.shape, getattr(loaded, "decode", None)
        if decode is not None and (spectrum is not None or method == RED_DIFF):
            what = "--spectrum" if spectrum is not None else f"--method {RED_DIFF}"
            raise ValueError(f"{what} is for models of images, and {model} is one of latents: choose another --method")
        if decode is not None:
            nothing = torch.zeros(1, *loaded.shape, device=device)
            try:
                decoded = linearised(decode, nothing)
                decoded.forward(nothing)
            except NotImplementedError as error:
                raise ValueError(f"{model} decodes by what has no derivatives, which restoring needs") from error
            shape = tuple(decoded.measured.shape[1:])
        given = degraded(files, Task(task, mask, factor, blur, noise, degrade), shape)
        likes = [] if spectrum is None else image_files(spectrum)
        known = spectrum_of(likes, shape) if likes else None
        total = n * len(files)
        network = getattr(loaded, "network", None)
        masks = (mask_of(file, mask) for file in files)
        settings = {
            "task": task, "images": {file.name: sha256_of(file) for file in files},
            "masks": [each and sha256_of(each) for each in masks], "factor": factor, "blur": blur, "noise": noise,
            "degrade": degrade, "method": method,
            "spectrum": digest(list(map(sha256_of, likes))), "model": model, "family": loaded.family,
            "weights": loaded.fingerprint, "network": digest_of(network),
            "schedule": repr(loaded.schedule), "solver": solver, "solver_options": repr(chosen), "nfe": nfe, "n": total,
            "seed": seed, "grid": grid, "label": label, "guidance": guidance, "prompts": digest(texts, negative),
            "size": size, "device": device, "dtype": dtype, "batch": loaded.batch, "versions": versions(network),
        }  # fmt: skip
        evaluations = Evaluations(network, loaded.batch, getattr(loaded, "classifier", None))
        gradients: list[int] = []
        begins_unit = getattr(loaded, "unit_start", False)

        # The first restoration of every image, then the second: a run grows with --n.
        def numbers_of(i: int) -> tuple[int, int]:
            """The image, and the seed."""
            return i % len(files), seed + i // len(files)

        def arrays(some: list[int]) -> dict[str, np.ndarray]:
            images, seeds = map(list, zip(*map(numbers_of, some), strict=True))
            operator = given.operator(images)
            if method == RED_DIFF:
                x = red_diff(
                    evaluations.of(denoiser(seeds)), operator, given.y[images].to(device), noise=noise,
                    schedule=loaded.schedule, seeds=seeds, nfe=nfe, grid=levels,
                )  # fmt: skip
                return {IMAGES: pixels(x)}
            restoring = posterior(
                evaluations.of(denoiser(seeds)), operator if decode is None else lambda x: operator.A(decode(x)),
                given.y[images].to(device), noise=noise, schedule=loaded.schedule, method=method,  # type: ignore[arg-type]
                spectrum=known, callback=lambda solve: gradients.append(solve.gradients),
            )  # fmt: skip
            start = unit_noise(seeds, loaded.shape, device=device)
            x = draw(
                restoring, None if begins_unit else start, x=start if begins_unit else None, nfe=nfe, solver=chosen,
                schedule=loaded.schedule, grid=levels, seeds=seeds,
            )  # fmt: skip
            return {IMAGES: pixels(x if decode is None else decode(x))}

        def name(i: int, kind: str) -> str:
            k, s = numbers_of(i)
            return f"{files[k].stem}-{s}.png"

        def present(run: Run) -> dict[int, dict[int, np.ndarray]]:
            found: dict[int, dict[int, np.ndarray]] = {}
            for i, file in run.present().items():
                k, s = numbers_of(i)
                found.setdefault(k, {})[s] = read(file, OURS)
            return found

        def picture(run: Run) -> np.ndarray:
            return given.picture(present(run), range(seed, seed + n))

        def measure() -> dict[str, Any]:
            each = round(sum(gradients) / len(gradients) * nfe) if gradients else 0
            return {"gradients": each, **given.figures(present(run))}

        with Run(out, settings, overwrite=overwrite, name=name, draw=picture) as run:
            if run.damaged:
                say(f"damaged, made again: {', '.join(run.damaged)}")
            before, size_of_batch = run.made, batch_size or loaded.batch or 1
            record = run.complete() or fill(run, "restoring", 0, size_of_batch, arrays, evaluations, measure)
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out)}))
    every = count(total, "restoration")
    if record["status"] == "interrupted":
        raise KeyboardInterrupt(f"{run.made} of {every} in {out}; the same command goes on from there")
    drawn = f"{total - before} drawn now" if before < total else "all from before"
    say(f"{every} in {out}, {drawn}; the picture is {out / 'grid.png'}")
    if before < total:
        say(f"{count(nfe, 'call')} and {record['gradients']} gradients each{evaluations}; {peak(device)}")
    told = f"what they leave of the measurement is {record['residual']:.2f} of its noise"
    if degrade:
        told += f"; PSNR {record['psnr']:.2f} dB, of an image's mean {record['psnr_of_mean']:.2f} dB"
    elif not FITS[0] < record["residual"] < FITS[1]:
        told += ", and should be near 1: is --noise right, and all that degraded the image said?"
    say(told)
