"""`fewstep estimate`: the statistics of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..models import CIFAR10, DEFAULT_MODEL
from .options import MAX_SEED, Debug, Device, Guidance, Model, OverwriteFile, path
from .parse import load, pick_device, subject
from .show import Reached, errors, progress, say

app = typer.Typer(help="What DPM-Solver-v3 and Analytic-DPM need to know of a model.", no_args_is_help=True)

EstimateLabel = Annotated[str, typer.Option("--label", help="'all': each image with its class; 'none': without.")]
Data = Annotated[str, typer.Option(help="Training images: an npz file, or a name on the Hugging Face hub.")]
StatisticsFile = Annotated[Path, typer.Option("--out", parser=path, metavar="<path>", help="The file, safetensors.")]
Points = Annotated[int, typer.Option(min=2, help="Noise levels, evenly in log-SNR.")]
Samples = Annotated[int, typer.Option(min=2, help="Noisy images at each; more matter more than points.")]
StatisticsSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the choice of images, and of the noise.")]


@app.command()
def ems(
    out: StatisticsFile,
    data: Data = CIFAR10,
    model: Model = DEFAULT_MODEL,
    label: EstimateLabel = "all",
    guidance: Guidance = 1.0,
    points: Annotated[int, typer.Option(min=8, help="Noise levels, evenly in log-SNR, that are differenced.")] = 120,
    samples: Samples = 1024,
    probes: Annotated[int, typer.Option(min=1, help="Random signs for each image.")] = 1,
    seed: StatisticsSeed = 0,
    device: Device = "cpu",
    overwrite: OverwriteFile = False,
    debug: Debug = False,
) -> None:
    """Estimate the statistics of DPM-Solver-v3: about six calls for each point and sample.

    An interrupted estimate goes on when the same command is given again, a finished one is read.
    """
    with errors(debug):
        from ..statistics import estimate_ems

        _estimate(
            estimate_ems, out, data, model, label, guidance, device, overwrite, points, samples, seed, probes=probes
        )


@app.command()
def gamma(
    out: StatisticsFile,
    data: Data = CIFAR10,
    model: Model = DEFAULT_MODEL,
    label: EstimateLabel = "all",
    guidance: Guidance = 1.0,
    points: Points = 120,
    samples: Samples = 1024,
    seed: StatisticsSeed = 0,
    device: Device = "cpu",
    overwrite: OverwriteFile = False,
    debug: Debug = False,
) -> None:
    """Estimate Gamma of Analytic-DPM: one call for each point and sample.

    An interrupted estimate goes on when the same command is given again, a finished one is read.
    """
    with errors(debug):
        from ..statistics import estimate_gamma

        _estimate(estimate_gamma, out, data, model, label, guidance, device, overwrite, points, samples, seed)


def _estimate(
    estimator: Callable[..., Any],
    out: Path,
    data: str,
    model: str,
    label: str,
    guidance: float,
    device: str,
    overwrite: bool,
    points: int,
    samples: int,
    seed: int,
    **options: int,
) -> None:
    from ..bench.images import load_images, resized, to_unit_range
    from ..files import check_file

    if label not in ("all", "none"):
        raise typer.BadParameter(f"{label!r} must be 'all' or 'none'", param_hint="--label")
    check_file(out)
    device = pick_device(device)
    loaded = load(model, device)
    if hasattr(loaded, "pipe"):
        raise typer.BadParameter(
            f"{model} is a pipeline; statistics are estimated of models of images", param_hint="--model"
        )
    pixels, labels = load_images(data)
    if label == "none" or not loaded.classes:
        labels = None
    elif labels is None:
        raise typer.BadParameter(f"the images of {data} have no classes: use --label none", param_hint="--label")
    if labels is None and guidance != 1:
        raise typer.BadParameter(f"{guidance:g} needs classes", param_hint="--guidance")
    images = resized(to_unit_range(pixels), loaded.shape[-1]).to(device)
    denoiser = loaded if labels is None else lambda chosen: loaded.conditioned(chosen, guidance)
    with progress("estimating", points, "points") as advance:
        reached = Reached(advance, points)
        try:
            found = estimator(
                denoiser,
                loaded.schedule,
                images,
                labels=labels,
                points=points,
                samples=samples,
                seed=seed,
                fingerprint=subject(loaded, label, guidance),
                out=out,
                overwrite=overwrite,
                progress=reached,
                **options,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{reached.units} of {points} points are kept; the same command goes on from there"
            ) from None
    say(f"{found!r} in {out}: give it to a solver by --statistics")
