"""Link or copy this folder into ComfyUI's `custom_nodes`, with fewstep installed in ComfyUI's Python."""

from fewstep.integrations.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
