"""The best setting that a bench found for a budget, and the lines that use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..table import SOLVERS, call
from .plan import CONVERGED, OWN_GRID
from .report import COLUMNS, Row

__all__ = ["best", "lines"]

# Grids, as rows name them, in the terms of diffusers' schedulers and of ComfyUI's.
IN_DIFFUSERS: Mapping[str, str] = {
    "focused": "use_focused_sigmas=True", "karras": "use_karras_sigmas=True", "log_snr": "use_lu_lambdas=True",
    "beta": "use_beta_sigmas=True",
}  # fmt: skip
IN_COMFY: Mapping[str, str] = {
    "karras": "BasicScheduler, karras", "log_snr": "BasicScheduler, exponential",
    "beta": "BasicScheduler, beta", "kl_optimal": "BasicScheduler, kl_optimal",
}  # fmt: skip


def best(rows: Sequence[Row], metric: str, calls: int | None = None, milliseconds: float | None = None) -> Row:
    """The row of the best `metric` among those of at most so many calls and milliseconds an image."""
    known = [row for row in rows if metric in row and row["solver"] != CONVERGED]
    pick = COLUMNS[metric].best if metric in COLUMNS else None
    if not known or pick is None:
        measured = [key for key, column in COLUMNS.items() if column.best and any(key in row for row in rows)]
        why = f"this bench has measured {metric!r}, but not whether more or less of it is better"
        why = why if known else f"this bench has not measured {metric!r}"
        raise ValueError(f"{why}; {'choose from ' + ', '.join(measured) if measured else 'run it with --metrics rmse'}")
    for limit, key, unit in ((calls, "calls", "calls"), (milliseconds, "milliseconds", "milliseconds an image")):
        least = min(row[key] for row in known)
        if limit is not None and least > limit:
            raise ValueError(f"nothing that was measured takes {limit:g} {unit} or fewer; the least is {least:g}")
        known = [row for row in known if limit is None or row[key] <= limit]
    value = pick([row[metric] for row in known])
    return min((row for row in known if row[metric] == value), key=lambda row: row["calls"])


def lines(row: Row) -> dict[str, str]:
    """What to paste, by where: Python, diffusers and ComfyUI; for a solver with options of its own Python alone."""
    under: Mapping[str, Any] = row["drawn under"]
    python, nodes = under["python"], under["nodes"]
    grid = "" if nodes == OWN_GRID else f", grid={nodes}"
    found = {
        "Python": f"from fewstep import {python.split('(')[0]}, sample\n"
        + (f"from fewstep.grid import {nodes.split('(')[0]}\n" if grid else "")
        + f"images = sample(denoiser, noise, nfe={row['calls']}, solver={python}, schedule=schedule{grid})"
    }
    name = next((each for each, entry in SOLVERS.items() if call(entry.solver) == python), None)
    if name is None or SOLVERS[name].calls > 1 or hasattr(SOLVERS[name].solver, "statistics"):
        return found
    levels = _own_grid(name) if nodes == OWN_GRID else nodes.split("(")[0]
    option = f", {IN_DIFFUSERS[levels]}" if levels in IN_DIFFUSERS else ""
    found["diffusers"] = (
        "from fewstep.integrations.diffusers import EVODiffScheduler\n"
        f'pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, solver="{name}"{option})\n'
        f"pipe(..., num_inference_steps={row['calls']}, guidance_scale={row['guidance']:g})"
    )
    from ..integrations.comfy import NODE_DISPLAY_NAME_MAPPINGS as NODES

    sigmas = NODES["FewstepSigmas"] if levels == "focused" else IN_COMFY.get(levels, "BasicScheduler, normal")
    found["ComfyUI"] = (
        f"{NODES['FewstepSampler']}: solver {name}\n"
        f"{sigmas}: steps {row['calls']}\n"
        f"SamplerCustom: cfg {row['guidance']:g}"
    )
    return found


def _own_grid(name: str) -> str:
    grid = SOLVERS[name].solver.grid
    return "log_snr" if grid.__name__ == "uniform" else grid.__name__
