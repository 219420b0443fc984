"""Seconds until things are ready, each in a process of its own, beside `import torch` in the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import typer

from fewstep.bench.markdown import table

from .command import Out, write

__all__ = ["page"]

ROUNDS = 7  # each runs every candidate once, in turn
BASE, OURS, THEIRS = "import torch", "load_model()", "load_model() with diffusers' network"
CANDIDATES = {
    BASE: BASE,
    "import fewstep": "import fewstep",
    "from fewstep import sample": "from fewstep import sample",
    "fewstep --help": "from fewstep.cli import app; app(['--help'])",
    OURS: "from fewstep.adapters import load_model; load_model()",
    THEIRS: "from fewstep.adapters import load_model, unet2d; unet2d.covers = lambda config: False; load_model()",
}


def page(rounds: int = ROUNDS) -> str:
    times: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for _ in range(1 + rounds):  # the first fills the system's caches
        for name, code in CANDIDATES.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    rows = [[f"`{name}`", f"{each:.2f}", f"{each / medians[BASE]:.2f}"] for name, each in medians.items()]
    return INTRODUCTION.format(rounds=rounds) + table(["in a new process", "seconds", "of torch's"], rows) + READING


INTRODUCTION = """# Imports

For people who start many short processes. You get what imports and the command line's help cost.

Seconds until a new process has done this and ended, written by `make bench-imports`: medians of {rounds} runs of each
in turn. Compare ratios, not seconds.

"""
READING = """
The names of `fewstep` are imported when one is first asked for, and the command line's help needs no torch. The network
of the packaged model, and others of its kind, are in the package, equal to diffusers' to the bit. The last line takes
diffusers' own, whose import brings parts of transformers and torch's compiler along.
"""


def main(out: Out = None) -> None:
    """Time imports, the command line's help and the loading of the packaged model."""
    write(out, page)


if __name__ == "__main__":
    typer.run(main)
