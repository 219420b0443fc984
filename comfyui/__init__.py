"""The nodes for ComfyUI: link this folder into its `custom_nodes`, or clone the whole repository there."""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"  # of a clone, which needs no installation
PYTHON = (3, 11)

if sys.version_info < PYTHON:
    raise ImportError(f"fewstep needs Python 3.11 or newer; this ComfyUI runs on {sys.version.split()[0]}")
if (SOURCE / "fewstep").is_dir() and str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))
try:
    from fewstep.integrations.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register
except ModuleNotFoundError as error:
    missing = error.name.partition(".")[0]
    source = "FOLDER_OF_A_CLONE" if missing == "fewstep" else missing  # fewstep itself is on no index
    raise ImportError(
        f"ComfyUI's Python has no module {error.name}: clone fewstep's repository into custom_nodes, or type\n"
        f'    "{sys.executable}" -m pip install {source}'
    ) from error

WEB_DIRECTORY = "./web"
register()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
