"""Ctrl-C and SIGTERM, which the command line takes alike. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

__all__ = ["INTERRUPTED", "keep_what_is_made", "leave_at_once"]

INTERRUPTED = 130  # the exit code, as shells say it of SIGINT


def leave_at_once() -> None:
    """At a signal, end by one line: for the seconds of imports.

    A KeyboardInterrupt would not do there: one that comes through torch's C++ ends the process with a core dump.
    """
    _all(lambda handler: handler is not signal.SIG_IGN, _leave)  # a shell ignores SIGINT for what runs behind


def keep_what_is_made() -> None:
    """From here on a signal raises KeyboardInterrupt, if `leave_at_once` was in force."""
    _all(lambda handler: handler is _leave, signal.default_int_handler)


def _all(where: Callable[[object], bool], handler: Callable[[int, FrameType | None], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if where(signal.getsignal(number)):
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
