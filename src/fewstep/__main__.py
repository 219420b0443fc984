"""The command `fewstep`, also `python -m fewstep`."""

from __future__ import annotations

from .signals import leave_at_once


def main() -> None:
    leave_at_once()
    from .cli import app

    app(prog_name="fewstep")


if __name__ == "__main__":
    main()
