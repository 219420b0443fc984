"""What ComfyUI loads where this repository is cloned into its `custom_nodes`.

Where a clone named `fewstep` lies beside one's own script, Python finds this file before what was installed: then the
sources of the clone are the package.
"""

import sys

if "folder_paths" in sys.modules:  # ComfyUI's
    from .comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./comfyui/web"

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
elif __name__ == "fewstep":
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    _spec = spec_from_file_location(__name__, Path(__file__).parent / "src" / "fewstep" / "__init__.py")
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
