"""diffusers `UNet2DModel` folders with EDM preconditioning, as denoisers. Needs the extra `diffusers`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..guidance import guided
from ..models import DEFAULT_MODEL, MODELS, packaged_models, read_json
from ..prediction import Denoiser
from ..schedule import EDM
from ..statistics import fingerprint

__all__ = ["BATCH", "EDMModel", "load_model"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
BATCH = 8  # images per evaluation in the command line and the benchmarks, always: a pixel depends on its seed alone
# What a folder without a fewstep.json is taken for.
DEFAULTS: Mapping[str, Any] = {"sigma_data": 0.5, "noise_scale": 250.0, "sigma_min": 0.002, "sigma_max": 80.0}


@dataclass(frozen=True)
class EDMModel:
    """A network F under EDM preconditioning; itself the unconditional denoiser.

    D(x; sigma) = c_skip x + c_out F(c_in x, noise_scale ln sigma, label), with s = sigma_data and
    c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), c_in = 1 / sqrt(sigma^2 + s^2).
    Karras et al. (2022), Table 1 (there noise_scale is 1/4; diffusers' embedding expects 1000 times that).

    With `patch` p > 1 the network sees images folded: every p x p pixels are 3 p^2 channels of one position.

    `batch`, if given, evaluates the network in batches of exactly that many images, filling up the last: on CPU an
    image is then the same, bit for bit, whatever it is batched with. Otherwise it may differ in the last bits.
    """

    network: torch.nn.Module
    shape: tuple[int, int, int]
    schedule: EDM
    sigma_data: float
    noise_scale: float
    classes: tuple[str, ...] = ()
    null_label: int | None = None
    batch: int | None = None
    patch: int = 1

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self._denoised(x, t, None)

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the classes `labels`, one a sample or one for all; guidance, too, and 1 adds nothing."""
        if not self.classes:
            raise ValueError("this model has no classes: call it as it is")
        wanted = torch.as_tensor(labels)
        if wanted.is_floating_point() or bool(((wanted < 0) | (wanted >= len(self.classes))).any()):
            raise ValueError(f"labels must be integers in [0, {len(self.classes)}); got {labels!r}")
        conditioned = Conditioned(self, wanted)
        if not isinstance(guidance, Tensor) and guidance == 1:
            return conditioned
        if self.null_label is None:
            raise ValueError("this model has no label for 'no class', which guidance needs: use guidance=1")
        return guided(conditioned, self, guidance)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and the preconditioning, under which statistics of this model are recorded.

        Not of the network's configuration, whose keys grow with diffusers.
        """
        facts = {name: getattr(self, name) for name in ("sigma_data", "noise_scale", "null_label", "patch")}
        return fingerprint(self.network, **facts)

    def _denoised(self, x: Tensor, t: float, labels: Tensor | None) -> Tensor:
        norm = math.hypot(t, self.sigma_data)
        weight = next(self.network.parameters())
        scaled = pixel_unshuffle((x * (1 / norm)).to(weight), self.patch)
        wanted = self.null_label if labels is None else labels
        given = None if wanted is None else torch.as_tensor(wanted, device=x.device).expand(len(x))
        # A tensor: a number would be truncated to an integer by diffusers.
        time = torch.tensor(self.noise_scale * math.log(t), dtype=torch.float32, device=x.device)
        output = pixel_shuffle(self._evaluate(scaled, time, given), self.patch).to(x.dtype)
        return x * (self.sigma_data**2 / norm**2) + output * (t * self.sigma_data / norm)

    def _evaluate(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if self.batch is None:
            answer: Tensor = self.network(x, time, class_labels=labels).sample
            return answer
        rows = torch.arange(-(-len(x) // self.batch) * self.batch, device=x.device).clamp_max(len(x) - 1)
        outputs = [
            self.network(x[part], time, class_labels=None if labels is None else labels[part]).sample
            for part in torch.split(rows, self.batch)
        ]
        return torch.cat(outputs)[: len(x)]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """What `EDMModel.conditioned` returns, without guidance."""

    model: EDMModel
    labels: Tensor

    @property
    def schedule(self) -> EDM:
        return self.model.schedule

    def __call__(self, x: Tensor, t: float) -> Tensor:
        if self.labels.ndim and self.labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be one for all or one a sample, shape {(len(x),)}; got shape {tuple(self.labels.shape)}"
            )
        return self.model._denoised(x, t, self.labels)


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
) -> EDMModel:
    """Load a packaged model by name, or a folder with config.json and safetensors weights.

    A `fewstep.json` in the folder gives sigma_data, noise_scale, sigma_min, sigma_max, classes, null_label and patch;
    without one, EDM's values, no classes and no folding are assumed. Nothing in a folder is executed.
    """
    folder = MODELS / name if str(name) in packaged_models() else Path(name)
    if not folder.is_dir():
        known = ", ".join(packaged_models())
        raise FileNotFoundError(f"no model {str(name)!r}: give a folder, or one of the packaged models: {known}")
    try:
        from diffusers import UNet2DModel
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("loading a model needs diffusers: pip install 'fewstep[diffusers]'") from error

    _check_device(device)
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder / 'config.json'} must describe a UNet2DModel; got {config.get('_class_name')!r}")
    card = folder / "fewstep.json"
    facts = {**DEFAULTS, **(read_json(card) if card.exists() else {})}
    if facts.get("preconditioning", "edm") != "edm":
        raise ValueError(f"{card} asks for preconditioning {facts['preconditioning']!r}; only 'edm' is known")
    for key in DEFAULTS:
        if isinstance(facts[key], bool) or not isinstance(facts[key], int | float):
            raise ValueError(f"{card}: {key} must be a number; got {facts[key]!r}")
    try:
        network = UNet2DModel.from_config(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: save the model with safe_serialization=True") from error
    except Exception as error:  # a corrupt header, missing or misshapen tensors, an impossible configuration
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(f"{folder} does not hold a whole UNet2DModel ({reason}): copy it again") from error
    patch, channels = facts.get("patch", 1), network.config.in_channels
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1 or channels % patch**2:
        raise ValueError(f"{card}: patch must be an integer whose square divides {channels} channels; got {patch!r}")
    size = network.config.sample_size
    if size is None:
        raise ValueError(f"{folder / 'config.json'} has no sample_size: add the side of the images in pixels")
    network.eval().requires_grad_(False)
    torch.nn.Module.to(network, device=device, dtype=dtype)  # ModelMixin.to prints a warning about casts
    network.to(memory_format=torch.channels_last)  # in which convolutions are faster
    height, width = (size, size) if isinstance(size, int) else size
    return EDMModel(
        network=network,
        shape=(channels // patch**2, height * patch, width * patch),
        schedule=EDM(facts["sigma_min"], facts["sigma_max"]),
        sigma_data=facts["sigma_data"],
        noise_scale=facts["noise_scale"],
        classes=tuple(facts.get("classes", ())),
        null_label=facts.get("null_label"),
        batch=batch,
        patch=patch,
    )


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # the former from a torch built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}): use 'cpu'") from error
