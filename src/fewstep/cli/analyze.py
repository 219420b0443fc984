"""`fewstep analyze`: where a model decides, by noise level."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ..transition import Transitions

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
    nfe: Annotated[
        int | None,
        typer.Option(min=3, help="Also what each step leaves in so many calls, by solver."),
    ] = None,
    single_steps: Annotated[
        bool, typer.Option("--single-steps", help="Also the papers' RE iteration beside FD, over calls.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="<path>", help="A picture of it, a PNG; needs matplotlib.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure where a model decides: conditional variance and entropy of what it makes, by noise level.

    An element's variance given the noisy image, of the data and of the noise; nats an element by which its entropy
    falls per unit of half log-SNR; and nats that are left. `--nfe` adds, for EVODiff, DDIM and 2M against the converged
    path from the same noise, the variance that steps have added and the error of reconstruction, and what the papers'
    rule weighs.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{str(out)!r} must end in .png", param_hint="--out")
    with errors(debug):
        import numpy as np

        from ..analysis import TEACHER
        from ..analysis import analyze as measure
        from ..files import check_file, write_atomically
        from ..transition import CALLS, over_calls, transitions

        if out is not None:
            check_file(out)
            _pyplot()
        texts, device = pick_prompts(prompt, prompts), pick_device(device)
        loaded = load(model, device)
        denoiser = conditioned(loaded, label, guidance, texts, negative, seed)
        given: dict[str, Any] = {
            "schedule": loaded.schedule, "shape": loaded.shape, "seeds": range(seed, seed + n), "by_seed": True,
            "batch": batch_size, "device": device,
        }  # fmt: skip

        def told(what: str, work: Any, total: int, **rest: Any) -> Any:
            with progress(what, total, "samples") as advance:
                return work(denoiser, **given, **rest, progress=Reached(advance, total))

        found = told("analyzing", measure, n * (TEACHER + levels), levels=levels)
        steps = told("running solvers", transitions, n, nfe=nfe) if nfe else None
        ends = told("running single steps", over_calls, n) if single_steps else {}
        if out is not None:
            write_atomically(out, _picture(found, steps))
    rows = list(zip(np.exp(-found.lams), found.lams, found.variance, found.rate, found.left, strict=True))
    parts = [_table("", COLUMNS, rows), *(_of_steps(steps) if steps else ())]
    if ends:
        parts.append(_table("RMSE of single steps", ("calls", *ends), list(zip(CALLS, *ends.values(), strict=True))))
    if as_json:
        told_of = {name or "levels": cells for name, _, cells in parts}
        typer.echo(json.dumps({**told_of, "decided": found.decided, "out": out and str(out)}))
    else:
        for _, table, _ in parts:
            Console().print(table)
    say(f"half of it is decided by sigma / alpha = {math.exp(-found.decided):.3g}")
    if out is not None:
        say(f"the picture is {out}")


Part = tuple[str, Table, list[dict[str, float | None]]]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> Part:
    """The table as people and as programs read it; NaN is a blank."""
    table = Table(*columns, title=title or None)
    for row in rows:
        table.add_row(*("" if math.isnan(value) else f"{value:.4g}" for value in row))
    plain = [[None if math.isnan(value) else float(value) for value in row] for row in rows]
    return title, table, [dict(zip(columns, row, strict=True)) for row in plain]


def _of_steps(found: Transitions) -> list[Part]:
    import numpy as np

    levels = np.exp(-found.lams)

    def side_by_side(title: str, columns: Mapping[str, Any]) -> Part:
        return _table(title, ("sigma / alpha", *columns), list(zip(levels, *columns.values(), strict=True)))

    rules = {
        f"{what}, {name.removeprefix('evodiff-')}": getattr(rule, what)
        for name, rule in found.rules.items()
        for what in ("eta", "zeta")
    }
    return [
        side_by_side("variance that steps have added", found.state),
        side_by_side("error of reconstruction", {"converged": found.path, **found.answer}),
        side_by_side("what the papers' rule weighs", {**rules, "ratio, at most": found.longest}),
        _table("RMSE of the sample", tuple(found.ends), [list(found.ends.values())]),
    ]


def _pyplot() -> tuple[type, type]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'fewstep[plot]', or leave --out") from error
    return Figure, FigureCanvasAgg


def _picture(found: Analysis, steps: Transitions | None) -> bytes:
    """Variances above, the entropy's fall below, and what steps leave under them."""
    import numpy as np

    figure_type, canvas = _pyplot()
    count = 3 if steps else 2
    figure = figure_type(figsize=(7, 3 * count), layout="constrained")
    canvas(figure)
    above, below, *last = figure.subplots(count, 1, sharex=True)
    levels = np.exp(-found.lams)
    above.loglog(levels, found.variance, label="data")
    above.loglog(levels, found.rate, label="noise")
    above.set_ylabel("conditional variance")
    above.legend()
    below.semilogx(levels, found.rate)
    below.axvline(math.exp(-found.decided), linestyle=":")
    below.set_ylabel("nats an element, a unit of half log-SNR")
    for panel in last:
        assert steps is not None  # as there are three
        for name, error in steps.answer.items():
            panel.loglog(np.exp(-steps.lams), error, marker="o", label=name)
        panel.loglog(np.exp(-steps.lams), steps.path, linestyle=":", color="black", label="converged")
        panel.set_ylabel("error of reconstruction")
        panel.legend()
    (last or [below])[-1].set_xlabel("sigma / alpha")
    below.invert_xaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
