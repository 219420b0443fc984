"""Measure a trained model: Frechet distances to the training images, and what guidance does to classes.

    python scripts/evaluate_model.py measure cifar32 --out runs/evaluation
    python scripts/evaluate_model.py measure cifar32 --out runs/evaluation --guidance 2 --n 2000
    python scripts/evaluate_model.py report --data cifar10.npz --out runs/evaluation

Image i of a measurement has seed i and class i mod 10. Features and predicted classes are kept in chunks under OUT, so
that an interrupted measurement goes on, and a longer one continues a shorter one. Models of other sizes are resized to
32 x 32 first (bicubic).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

import fewstep as fs
from fewstep.adapters import load_model
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import CIFAR10, load_images, to_unit_range
from fewstep.bench.metrics import Moments, frechet_distance
from fewstep.files import check_writable, write_atomically

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)
log = Console(stderr=True)

CHUNK = 250
SIDE = 32
Data = Annotated[str, typer.Option(help="npz file, or a name on the Hugging Face hub")]
Out = Annotated[Path, typer.Option(help="folder of the measurements")]


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="a packaged model, or a folder")],
    out: Out,
    n: Annotated[int, typer.Option(help="images, a multiple of 250")] = 10_000,
    nfe: Annotated[int, typer.Option(help="calls of Heun's method")] = 50,
    guidance: float = 1.0,
    device: str = "cpu",
) -> None:
    """Draw images and keep their features and predicted classes."""
    if n < 1 or n % CHUNK:
        raise typer.BadParameter(f"{n} is not a multiple of {CHUNK}", param_hint="--n")
    loaded = load_model(model, device=device)
    classifier = load_classifier(device=device)
    folder = out / f"{Path(model).name},{nfe},{guidance:g}"
    check_writable(folder)
    for start in track(range(0, n, CHUNK), f"{folder.name}", console=log):
        path = folder / f"{start:06d}.npz"
        if path.exists():
            continue
        seeds = range(start, start + CHUNK)
        labels = [seed % len(loaded.classes) for seed in seeds]
        noise = fs.unit_noise(seeds, loaded.shape, device=device)
        denoiser = loaded.conditioned(labels, guidance)
        images = fs.sample(denoiser, noise, nfe=nfe, solver=fs.Heun(), schedule=loaded.schedule).clamp(-1, 1)
        if loaded.shape[1] != SIDE:
            images = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        with torch.no_grad():
            features = classifier.features(images)
            predicted = classifier.head(features).argmax(1)
        buffer = io.BytesIO()
        np.savez(buffer, features=features.cpu().numpy(), predicted=predicted.cpu().numpy(), labels=np.array(labels))
        write_atomically(path, buffer.getvalue())


@app.command()
def report(out: Out, data: Data = CIFAR10) -> None:
    """Print a table of all measurements under OUT: distance to the training images, class accuracy."""
    images, _ = load_images(data)
    classifier = load_classifier()
    with torch.no_grad():
        parts = [classifier.features(to_unit_range(part)) for part in track(images.split(CHUNK), console=log)]
    real = torch.cat(parts)
    whole = Moments.of(real)
    typer.echo("| model | calls | guidance | images | distance | the same number of training images | class accuracy |")
    typer.echo("| --- | --- | --- | --- | --- | --- | --- |")
    shuffled = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    for folder in sorted(out.glob("*,*,*")):
        model, nfe, guidance = folder.name.rsplit(",", 2)
        chunks = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("[0-9]*.npz"))]
        features = torch.from_numpy(np.concatenate([chunk["features"] for chunk in chunks]))
        right = np.concatenate([chunk["predicted"] == chunk["labels"] for chunk in chunks]).mean()
        distance = frechet_distance(Moments.of(features), whole)
        floor = frechet_distance(Moments.of(shuffled[: len(features)]), whole)
        cells = (model, nfe, guidance, f"{len(features):,}", f"{distance:.3f}", f"{floor:.3f}", f"{right:.1%}")
        typer.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app()
