"""What Forge, reForge and Automatic1111's web UI run where this repository is cloned into their `extensions`."""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"  # of a clone, which needs no installation
PYTHON = (3, 11)

if sys.version_info < PYTHON:
    raise ImportError(f"fewstep needs Python 3.11 or newer; this web UI runs on {sys.version.split()[0]}")
if (SOURCE / "fewstep").is_dir() and str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))

from fewstep.integrations.webui import register  # noqa: E402

register()
