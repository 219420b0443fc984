"""`fewstep models`: what can be loaded."""

from __future__ import annotations

import json

import typer

from ..models import packaged_models
from .options import AsJson


def models(as_json: AsJson = False) -> None:
    """List what can be loaded, and how."""
    packaged = packaged_models()
    if as_json:
        typer.echo(json.dumps(packaged))
        return
    folder = "a diffusers UNet2DModel with EDM preconditioning: config.json, safetensors, fewstep.json"
    for name, summary in {**packaged, "FOLDER": folder}.items():
        typer.echo(f"{name:12}{summary}")
    typer.echo("\nLoad one by --model NAME or, in Python, fewstep.adapters.load_model(NAME).")
