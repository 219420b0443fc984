"""Measure a trained model: Frechet distances to the training images, and what guidance does to classes.

    python training/evaluate_model.py measure cifar32 --out runs/evaluation
    python training/evaluate_model.py guidance cifar32 --out runs/evaluation
    python training/evaluate_model.py report src/fewstep/models/cifar32 --data cifar10.npz --out runs/evaluation
    python training/evaluate_model.py grid cifar32 --to docs/cifar32.png

Image i of a measurement has seed i and class i mod 10. Features and predicted classes are kept in chunks under OUT, so
that an interrupted measurement goes on, and a longer one continues a shorter one. `report` writes all that is under
OUT into the model's card, in place of what it wrote there before.

The classifier sees 32 x 32 pixels. Smaller images are enlarged to that (bicubic), which costs them their detail;
training images shrunk and enlarged in the same way show how much of a distance that is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

import fewstep as fs
from fewstep.adapters import EDMModel, load_model
from fewstep.bench.classifier import Classifier, load_classifier
from fewstep.bench.images import CLASSES, load_images, resized, to_unit_range
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance
from fewstep.files import check_writable, locked, read_npz, write_atomically
from fewstep.models import CIFAR10
from fewstep.pictures import pixels, png, sheet
from fewstep.solvers import Solver

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)
log = Console(stderr=True)

CHUNK = 250
SIDE = 32  # of the images that the classifier was trained on
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 7.5)
SOLVERS: dict[str, Solver] = {"Heun": fs.Heun(), "DPM-Solver++ 2M": fs.DPMSolverPP(order=2)}
RECORD = "measurement.json"
HEADING = "## Measured"

Model = Annotated[str, typer.Argument(help="a packaged model, or a folder")]
Out = Annotated[Path, typer.Option(help="folder of the measurements")]
Images = Annotated[int, typer.Option(help=f"images, a multiple of {CHUNK}")]
Calls = Annotated[int, typer.Option(min=1, help="calls of the denoiser for each image")]
Device = Annotated[str, typer.Option(help="torch device")]


EXPLANATION = f"""{HEADING}

Fréchet distances to the {{images:,}} training images, in the features of `cifar32-classifier`, and how many images this
classifier, trained apart from the model, finds in the class that they were drawn for. The rows of training images are
as many of them at random, most of which the classifier was trained on. A distance can be compared with others of the
same table, never with a published FID.
"""
ENLARGED = f"""
The classifier sees {SIDE}×{SIDE} pixels: smaller images are enlarged to that (bicubic). The training images shrunk and
enlarged in the same way show what this alone costs.
"""


@dataclass(frozen=True)
class Measurement:
    """What its images depend on, but for their number."""

    model: str
    fingerprint: str
    side: int
    solver: str
    nfe: int
    guidance: float

    def folder(self, out: Path) -> Path:
        return out / f"{self.model}, {self.nfe} calls of {self.solver}, guidance {self.guidance:g}"


@app.command()
def measure(model: Model, out: Out, n: Images = 10_000, nfe: Calls = 50, device: Device = "cpu") -> None:
    """Draw images by Heun's method, without guidance; keep their features and predicted classes."""
    _measure(model, out, n, "Heun", nfe, [1.0], device)


@app.command()
def guidance(model: Model, out: Out, n: Images = 2_000, nfe: Calls = 20, device: Device = "cpu") -> None:
    """The same at several scales of guidance, by DPM-Solver++ 2M."""
    _measure(model, out, n, "DPM-Solver++ 2M", nfe, SCALES, device)


def _measure(name: str, out: Path, n: int, solver: str, nfe: int, scales: Sequence[float], device: str) -> None:
    if n < 1 or n % CHUNK:
        raise typer.BadParameter(f"{n} is not a multiple of {CHUNK}", param_hint="--n")
    model, classifier = _loaded(name, device), load_classifier(device=device)
    for scale in scales:
        made = Measurement(Path(name).resolve().name, model.fingerprint, model.shape[-1], solver, nfe, scale)
        folder = made.folder(out)
        check_writable(folder)
        with locked(folder):
            record = folder / RECORD
            if record.exists() and json.loads(record.read_text()) != asdict(made):
                raise typer.BadParameter(f"{folder} is of other weights: choose another --out", param_hint="--out")
            write_atomically(record, json.dumps(asdict(made), indent=2).encode())
            for start in track(range(0, n, CHUNK), folder.name, console=log):
                path = folder / f"{start:06d}.npz"
                if path.exists():
                    continue
                seeds = range(start, start + CHUNK)
                labels = [seed % len(CLASSES) for seed in seeds]
                images = _drawn(model, seeds, labels, SOLVERS[solver], nfe, scale, device)
                features, predicted = _seen(images, classifier)
                buffer = io.BytesIO()
                np.savez(buffer, features=features.cpu(), predicted=predicted.cpu(), labels=labels)
                write_atomically(path, buffer.getvalue())


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="folder of the model", exists=True, file_okay=False)],
    out: Out,
    data: Annotated[str, typer.Option(help="training images: npz file, or a name on the Hugging Face hub")] = CIFAR10,
) -> None:
    """Write tables of all measurements under OUT into the model's card."""
    card, name, found = model / "README.md", model.resolve().name, _found(out)
    if not card.exists():
        raise typer.BadParameter(f"{model} has no {card.name} to write to", param_hint="MODEL")
    if {made.fingerprint for made, _, _ in found if made.model == name} != {_loaded(model, "cpu").fingerprint}:
        raise typer.BadParameter(
            f"{out} holds nothing of {name}, or of other weights: measure {model} into another --out",
            param_hint="--out",
        )
    images, labels = load_images(data)
    if labels is None:
        raise typer.BadParameter(f"{data} must hold images with their classes", param_hint="--data")
    classifier, shuffled = load_classifier(), torch.randperm(len(images), generator=torch.Generator().manual_seed(0))

    def seen(chosen: Tensor, side: int) -> tuple[Tensor, Tensor]:
        parts = track(chosen.split(CHUNK), f"training images at {side} pixels", console=log)
        answers = [_seen(resized(to_unit_range(images[part]), side), classifier) for part in parts]
        features, predicted = map(torch.cat, zip(*answers, strict=True))
        return features, predicted == labels[chosen]

    whole = Moments.of(seen(torch.arange(len(images)), SIDE)[0])

    def figures(features: Tensor, right: Tensor) -> tuple[str, str]:
        return f"{frechet_distance(Moments.of(features), whole):.2f}", f"{right.double().mean():.1%}"

    text = EXPLANATION.format(images=len(images))
    if any(made.side != SIDE for made, _, _ in found):
        text += ENLARGED
    for n, nfe, solver in sorted({(len(right), made.nfe, made.solver) for made, _, right in found}, reverse=True):
        rows, sides = [], set()
        for made, features, right in found:
            if (len(right), made.nfe, made.solver) == (n, nfe, solver):
                rows.append((made.model, f"{made.guidance:g}", *figures(features, right)))
                sides.add(made.side)
        for side in sorted(sides, reverse=True):
            label = "training images" if side == SIDE else f"training images at {side}×{side}"
            rows.append((label, "–", *figures(*seen(shuffled[:n], side))))
        head = ("", "guidance", "Fréchet distance", "class accuracy")
        text += f"\n{n:,} images, {nfe} calls of {solver}:\n\n{table(head, rows)}"
    kept = card.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
    write_atomically(card, f"{kept}\n\n{text}".encode())
    log.print(f"{card}: {len(found)} measurements")


@app.command()
def grid(
    model: Model,
    to: Annotated[Path, typer.Option(help="the picture, a PNG")],
    scale: Annotated[float, typer.Option("--guidance")] = 2.0,
    nfe: Calls = 50,
    device: Device = "cpu",
) -> None:
    """Draw 100 images by Heun's method, ten a class: rows are the classes in order, image i of 100 has seed i."""
    check_writable(to.parent)
    labels = [i // 10 for i in range(100)]
    images = _drawn(_loaded(model, device), range(100), labels, SOLVERS["Heun"], nfe, scale, device)
    write_atomically(to, png(sheet(pixels(images), columns=10)))


def _loaded(model: str | Path, device: str) -> EDMModel:
    try:
        loaded = load_model(model, device=device)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    if loaded.classes != CLASSES:
        raise typer.BadParameter(f"{model} must be a model of CIFAR-10's classes; got {loaded.classes or 'none'}")
    return loaded


def _drawn(
    model: EDMModel, seeds: range, labels: list[int], solver: Solver, nfe: int, scale: float, device: str
) -> Tensor:
    noise = fs.unit_noise(seeds, model.shape, device=device)
    denoiser = model.conditioned(labels, scale)
    return fs.sample(denoiser, noise, nfe=nfe, solver=solver, schedule=model.schedule).clamp(-1, 1)


@torch.no_grad()
def _seen(images: Tensor, classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Features, and predicted classes."""
    if images.shape[-1] != SIDE:
        images = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)
    features = classifier.features(images)
    return features, classifier.head(features).argmax(1)


def _found(out: Path) -> list[tuple[Measurement, Tensor, Tensor]]:
    """The measurements under OUT; of each image its features, and whether the classifier found its class."""
    found = []
    for record in out.glob(f"*/{RECORD}"):
        chunks = [read_npz(path) for path in sorted(record.parent.glob("[0-9]*.npz"))]
        if chunks:
            features = np.concatenate([chunk["features"] for chunk in chunks])
            right = np.concatenate([chunk["predicted"] == chunk["labels"] for chunk in chunks])
            made = Measurement(**json.loads(record.read_text()))
            found.append((made, torch.from_numpy(features), torch.from_numpy(right)))
    return sorted(found, key=lambda each: (each[0].model, each[0].guidance))


if __name__ == "__main__":
    app()
