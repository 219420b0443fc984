"""What the commands say: on stderr, so that stdout holds results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..signals import keep_what_is_made

EXIT_FAILED = 1
log = Console(stderr=True)


def count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}" + plural * (number != 1)


def say(text: str) -> None:
    log.print(Text(text), soft_wrap=True)


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One line and a remedy on stderr, exit code 1; the traceback with --debug."""
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if debug:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError)):
            reason = f"{type(error).__name__}: {reason} (unexpected; --debug shows where)"
        log.print(Text.assemble(("error: ", "red"), reason), soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from error


class Reached:
    """A progress function that is told how much of all is done, for a bar of `units` that is told what is added."""

    def __init__(self, advance: Callable[[int], object], units: int):
        self._advance, self._units, self.units = advance, units, 0

    def __call__(self, done: int, total: int) -> None:
        before, self.units = self.units, self._units * done // total
        self._advance(self.units - before)


class _Rate(ProgressColumn):
    def render(self, task: Any) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
    keep_what_is_made()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, _Rate(), TimeRemainingColumn(), console=log) as progress:
        task = progress.add_task(what, total=total, completed=done, unit=unit)
        yield lambda amount: progress.advance(task, amount)


def peak(device: str) -> str:
    """The most memory so far, of the device or of this process."""
    import torch

    if torch.device(device).type == "cuda":
        return f"at most {torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB of the device"
    try:
        import resource
    except ImportError:  # not on Windows
        return "peak memory unknown"
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB in all"
