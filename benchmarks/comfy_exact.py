"""Nodes for ComfyUI that hold a model which is known exactly: what the tests and docs/comfyui.md are measured with.

ComfyUI loads this file where it lies in `custom_nodes`, beside fewstep and with the repository in PYTHONPATH. The
data are a mixture of Gaussians over latents of 4 x 8 x 8, in two classes; the prompt is the class, and without one all
of it is meant. The model answers the posterior mean, so that nothing but the sampler is at fault.
"""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import torch
from torch import Tensor

# Names of ComfyUI's kinds of models, and what they are configured with where they are in use.
KINDS: dict[str, tuple[str, dict[str, float]]] = {
    "SD": ("EPS", {}),
    "SD, v": ("V_PREDICTION", {}),
    "EDM": ("EDM", {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}),
    "flow": ("FLOW", {"shift": 3.0}),
    "Flux": ("FLUX", {"shift": 1.15}),
    "Cosmos": ("FLOW_COSMOS", {"sigma_data": 1.0, "sigma_min": 0.002, "sigma_max": 80.0}),
}


class Exact(comfy.model_base.BaseModel):  # type: ignore[misc]
    """Of the class that its conditioning holds, 1 or 2, or of all, 0."""

    def __init__(self, kind: str) -> None:
        from benchmarks.problems.latents import latent_laws  # fewstep may be loaded after this file

        name, settings = KINDS[kind]
        config = type(
            "Config",
            (comfy.supported_models_base.BASE,),
            {"sampling_settings": settings, "latent_format": comfy.latent_formats.SD15},
        )
        super().__init__(config({"disable_unet_model_creation": True}), comfy.model_base.ModelType[name])
        self.laws = latent_laws()
        self.flow = isinstance(self.model_sampling, comfy.model_sampling.CONST)
        self.register_buffer("nothing", torch.zeros(1))  # ComfyUI asks a model for its size and type

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        return {"c_crossattn": comfy.conds.CONDRegular(given["cross_attn"])}

    def _apply_model(
        self, x: Tensor, t: Tensor, c_concat: None, c_crossattn: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        from fewstep.schedule import Node

        out = torch.empty_like(x)
        for sigma, law in {(float(s), int(c)) for s, c in zip(t, c_crossattn.flatten(), strict=True)}:
            rows = (t == sigma) & (c_crossattn.flatten() == law)
            node = Node(sigma, 1 - sigma if self.flow else 1.0, sigma)
            out[rows] = self.laws[law].denoised(x[rows], node).to(x.dtype)
        return out

    def get_dtype(self) -> torch.dtype:
        return torch.float32


def patcher(kind: str) -> Any:
    """A MODEL."""
    return comfy.model_patcher.ModelPatcher(Exact(kind), torch.device("cpu"), torch.device("cpu"))


def conditioning(label: int) -> list[Any]:
    """A CONDITIONING: of class `label`, 1 or 2, or none, 0."""
    return [[torch.full((1, 1, 1), float(label)), {}]]


class ExactModel:
    """MODEL, and CONDITIONING of the first class, of none, and of the second."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (list(KINDS),)}}

    def make(self, kind: str) -> tuple[Any, ...]:
        return patcher(kind), conditioning(1), conditioning(0), conditioning(2)


NODE_CLASS_MAPPINGS = {"ExactModel": ExactModel}
