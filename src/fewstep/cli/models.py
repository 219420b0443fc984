"""`fewstep models`: what can be loaded."""

from __future__ import annotations

import json

import typer

from ..models import packaged_models
from .options import AsJson

FOLDERS = (
    ("FOLDER", "a pipeline of diffusers, as save_pretrained writes it: Stable Diffusion and its kin, DiT, DDPM"),
    ("OWNER/NAME", "the same on the Hugging Face hub, fetched once and kept in its cache"),
    ("FOLDER", "a network of EDM, ADM or ScoreSDE, converted"),
    ("FOLDER", "a diffusers UNet2DModel with EDM preconditioning: config.json, safetensors, fewstep.json"),
)


def models(as_json: AsJson = False) -> None:
    """List what can be loaded, and how."""
    packaged = packaged_models()
    if as_json:
        typer.echo(json.dumps(packaged))
        return
    for name, summary in (*packaged.items(), *FOLDERS):
        typer.echo(f"{name:12}{summary}")
    typer.echo(
        "\nLoad one by --model NAME or, in Python, fewstep.adapters.load_model(NAME). docs/checkpoints.md has more."
    )
