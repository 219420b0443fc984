"""`fewstep analyze`: where a model decides, by noise level."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..models import DEFAULT_MODEL
from .options import (
    AsJson,
    Debug,
    Device,
    Guidance,
    Label,
    Model,
    Negative,
    Prompt,
    Prompts,
    Seed,
    path,
)
from .parse import conditioned, load, pick_device, pick_prompts
from .show import Reached, errors, progress, say

if TYPE_CHECKING:
    from ..analysis import Analysis

COLUMNS = ("sigma / alpha", "half log-SNR", "variance of data", "of noise, nats a unit", "nats left")


def analyze(
    model: Model = DEFAULT_MODEL,
    n: Annotated[int, typer.Option(min=2, help="How many samples of the model's own.")] = 32,
    levels: Annotated[int, typer.Option(min=3, help="Noise levels, evenly in log-SNR.")] = 24,
    seed: Seed = 0,
    label: Label = "all",
    prompt: Prompt = None,
    prompts: Prompts = None,
    negative: Negative = None,
    guidance: Guidance = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 16,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="<path>", help="A picture of it, a PNG; needs matplotlib.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure where a model decides: conditional variance and entropy of what it makes, by noise level.

    An element's variance given the noisy image, of the data and of the noise; nats an element by which its entropy
    falls per unit of half log-SNR; and nats that are left.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{str(out)!r} must end in .png", param_hint="--out")
    with errors(debug):
        import numpy as np

        from ..analysis import TEACHER
        from ..analysis import analyze as measure
        from ..files import check_file, write_atomically

        if out is not None:
            check_file(out)
            _pyplot()
        texts, device = pick_prompts(prompt, prompts), pick_device(device)
        loaded = load(model, device)
        denoiser = conditioned(loaded, label, guidance, texts, negative, seed)
        total = n * (TEACHER + levels)
        with progress("analyzing", total, "samples") as advance:
            found = measure(
                denoiser, loaded.schedule, shape=loaded.shape, seeds=range(seed, seed + n), levels=levels, by_seed=True,
                batch=batch_size, device=device, progress=Reached(advance, total),
            )  # fmt: skip
        if out is not None:
            write_atomically(out, _picture(found))
    rows = list(zip(np.exp(-found.lams), found.lams, found.variance, found.rate, found.left, strict=True))
    if as_json:
        cells = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]
        typer.echo(json.dumps({"levels": cells, "decided": found.decided, "out": out and str(out)}))
    else:
        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*(f"{value:.4g}" for value in row))
        Console().print(table)
    say(f"half of it is decided by sigma / alpha = {math.exp(-found.decided):.3g}")
    if out is not None:
        say(f"the picture is {out}")


def _pyplot() -> tuple[type, type]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'fewstep[plot]', or leave --out") from error
    return Figure, FigureCanvasAgg


def _picture(found: Analysis) -> bytes:
    """Variances above, the entropy's fall below."""
    import numpy as np

    figure_type, canvas = _pyplot()
    figure = figure_type(figsize=(7, 6), layout="constrained")
    canvas(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    levels = np.exp(-found.lams)
    above.loglog(levels, found.variance, label="data")
    above.loglog(levels, found.rate, label="noise")
    above.set_ylabel("conditional variance")
    above.legend()
    below.semilogx(levels, found.rate)
    below.axvline(math.exp(-found.decided), linestyle=":")
    below.set_ylabel("nats an element, a unit of half log-SNR")
    below.set_xlabel("sigma / alpha")
    below.invert_xaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
