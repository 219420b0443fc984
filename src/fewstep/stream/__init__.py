"""Images that come one after another, each in another phase of its run, in one call: docs/stream.md."""

from .frames import Result, Stream, stream
from .residual import residual
from .similar import Similar

__all__ = ["Result", "Similar", "Stream", "residual", "stream"]
