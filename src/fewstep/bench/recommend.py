"""The best setting that a bench found for a budget, and the lines that use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import schedule as schedules
from ..grid import uniform
from ..schedule import Schedule
from ..table import SOLVERS, call
from .plan import CONVERGED, OWN_GRID
from .report import COLUMNS, Row

__all__ = ["FRONT_ENDS", "best", "lines"]

CLASS = re.compile(r"\b[A-Z]\w*(?=\()")  # in a constructor call, and those within it

# Grids, as rows name them, where a front end has the very same: options of diffusers' scheduler, which spaces flows
# evenly in time by itself, and Karras' and log-SNR levels of flows otherwise than we do; nodes of ComfyUI.
IN_DIFFUSERS: Mapping[str, str] = {
    "focused": ", use_focused_sigmas=True", "karras": ", use_karras_sigmas=True", "log_snr": ", use_lu_lambdas=True",
}  # fmt: skip
FLOWS_IN_DIFFUSERS: Mapping[str, str] = {"focused": IN_DIFFUSERS["focused"], "time_uniform": ""}
IN_COMFY: Mapping[str, str] = {
    "focused": "fewstep sigmas: grid focused", "karras": "fewstep sigmas: grid karras",
    "log_snr": "fewstep sigmas: grid log-snr", "kl_optimal": "BasicScheduler: scheduler kl_optimal",
    "simple": "BasicScheduler: scheduler simple", "normal": "BasicScheduler: scheduler normal",
    "sgm_uniform": "BasicScheduler: scheduler sgm_uniform", "beta57(a=0.6, b=0.6)": "BasicScheduler: scheduler beta",
}  # fmt: skip
FRONT_ENDS = ("Python", "diffusers", "ComfyUI")


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
    """What to paste, by where, of FRONT_ENDS: those that have this solver with these levels.

    In Python, of a `denoiser`, its `schedule` and unit `noise`, and of `statistics` if the solver has some.
    """
    under: Mapping[str, Any] = row["drawn under"]
    python, nodes = under["python"], under["nodes"]
    grid = "" if nodes == OWN_GRID else f", grid={nodes}"
    found = {
        "Python": f"from fewstep import {', '.join(sorted({*CLASS.findall(python), 'sample'}))}\n"
        + (f"from fewstep.grid import {nodes.split('(')[0]}\n" if grid else "")
        + f"images = sample(denoiser, noise, nfe={row['calls']}, solver={python}, schedule=schedule{grid}, "
        "seeds=range(len(noise)))"
    }
    name = next((each for each, entry in SOLVERS.items() if call(entry.solver) == python), None)
    if name is None or SOLVERS[name].calls > 1 or hasattr(SOLVERS[name].solver, "statistics"):
        return found
    kind = under.get("schedule", "").partition("(")[0]
    levels = _own_grid(name, kind) if nodes == OWN_GRID else nodes
    options = FLOWS_IN_DIFFUSERS if kind == "Flow" else IN_DIFFUSERS
    if levels in options:
        found["diffusers"] = (
            "from fewstep.integrations.diffusers import EVODiffScheduler\n"
            f'pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, solver="{name}"{options[levels]})\n'
            f"pipe(..., num_inference_steps={row['calls']}, guidance_scale={row['guidance']!r})"
        )
    if sigmas := IN_COMFY.get(levels):
        from ..integrations.comfy import NODE_DISPLAY_NAME_MAPPINGS as NODES
        from ..integrations.comfy import SHORT

        node = NODES["FewstepSampler" if name in SHORT else "FewstepAnySampler"]
        found["ComfyUI"] = (
            f"{node}: solver {name}\n{sigmas}, steps {row['calls']}\nSamplerCustom: cfg {row['guidance']!r}"
        )
    return found


def _own_grid(name: str, kind: str) -> str:
    """As rows would name it."""
    grid = SOLVERS[name].solver.grid
    if grid == uniform:
        return "log_snr" if getattr(schedules, kind, Schedule).uniform == "lam" else "time_uniform"
    return repr(grid)
