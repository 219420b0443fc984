"""Other people's models as denoisers. Imported only when asked for; each needs the extra that it names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..arguments import count
from ..models import DEFAULT_MODEL, MODELS, packaged_models
from .locality import Local, local
from .unet2d import EDMModel

__all__ = ["FAMILIES", "EDMModel", "Local", "found", "load_model", "local", "packaged_models"]

# Each a module of this package, with `recognises(folder) -> bool`, `load(folder, *, device, dtype, batch)` and `BATCH`,
# how many samples the command line evaluates together. The last takes what none recognises, and says what is wrong.
FAMILIES = ("pipelines", "research", "unet2d")


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    **options: Any,
) -> Any:
    """Load a packaged model by name, or a folder: of a pipeline of diffusers, of a network that `fewstep convert` made,
    or of a UNet2DModel; or a pipeline by its name on the Hugging Face hub.

    The model is itself the denoiser of no prompt and no class, and has `family`, `schedule`, `shape` (of one sample),
    `classes`, `conditioned(labels, guidance)`, `fingerprint`; models of text have `prompted(prompts, guidance,
    negative)`, and those whose samples are not images `decode`. Nothing in a folder is executed.

    Args:
        batch: evaluate the network on exactly so many samples at a time, so that on a CPU a sample is the same, to the
            bit, whatever it is batched with.
        options: a family's own: `size`, height and width, of pipelines.

    Raises:
        FileNotFoundError, ValueError: in one line, saying which file is missing, damaged or refused.
    """
    if batch is not None and count(batch) < 1:
        raise ValueError(f"batch must be an integer of at least 1, or None for all at once; got {batch!r}")
    folder, family = found(name)
    loaded: Any = family.load(folder, device=device, dtype=dtype, batch=batch, **options)
    return loaded


def found(name: str | Path) -> tuple[Path, Any]:
    """The folder of a model, and the module of its family."""
    folder = MODELS / name if str(name) in packaged_models() else Path(name)
    if not folder.is_dir():
        from . import pipelines

        if folder.exists():
            raise ValueError(
                f"{name} is a file, and models are folders: `fewstep convert` makes one of a file of EDM, ADM or "
                "ScoreSDE; of a single file of Stable Diffusion, diffusers' from_single_file and save_pretrained do"
            )
        fetched = pipelines.fetched(str(name))
        if fetched is None:
            known = ", ".join(packaged_models())
            raise FileNotFoundError(
                f"no model {str(name)!r}: give a folder, the name of a pipeline on the Hugging Face hub, or one of the "
                f"packaged models: {known}"
            )
        folder = fetched
    modules = [import_module(f".{family}", __name__) for family in FAMILIES]
    return folder, next((module for module in modules if module.recognises(folder)), modules[-1])
