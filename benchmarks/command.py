"""What the commands that write a page share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fewstep.adapters import load_model
from fewstep.adapters.unet2d import BATCH, EDMModel
from fewstep.bench.images import load_images
from fewstep.cheaper import winograd
from fewstep.files import check_file, write_atomically

from .problems import SPLITS, Source

__all__ = ["Data", "Out", "packaged", "say", "source", "write"]

FEW = 4  # images per evaluation: as many run on first, and more would be filled up

Out = Annotated[Path | None, typer.Option("--out", help="Write the page here instead of to stdout.")]
Data = Annotated[str, typer.Option(help="Training images: an npz file, or a name on the Hugging Face hub.")]


def packaged() -> EDMModel:
    loaded: EDMModel = load_model(batch=BATCH)
    return loaded


def source(data: str, split: str) -> Source:
    """What the problems are made of; the model's convolutions are Winograd's, which takes four fifths of the time."""
    pixels, labels = load_images(data)
    if labels is None:
        raise ValueError(f"the images of {data} have no classes, which the problems need: give others by --data")
    return Source(pixels, labels, SPLITS[split], lambda: winograd(load_model(batch=FEW)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(out: Path | None, page: Callable[[], str]) -> None:
    """The page to `out`, which is tried before the work, or to stdout."""
    if out is None:
        print(page())
    else:
        check_file(out)
        write_atomically(out, page().encode())
