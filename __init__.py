"""What ComfyUI loads where this repository is cloned into its `custom_nodes`. Nobody else has a use for it."""

import sys

if "folder_paths" in sys.modules:  # ComfyUI's
    from .comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./comfyui/web"

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
