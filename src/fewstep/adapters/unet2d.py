"""diffusers `UNet2DModel` folders with EDM preconditioning, as denoisers. Needs safetensors, of the extra `cli`.

The network is ours where `unet2d_network` covers it, else diffusers', of the extra `diffusers`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..guidance import guided
from ..models import read_json
from ..prediction import Denoiser, each, spread
from ..schedule import EDM
from ..statistics import fingerprint
from .devices import check_device
from .labels import class_labels
from .unet2d_network import UNet2D, covers

__all__ = ["BATCH", "EDMModel", "load", "recognises"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
REAL = ("F16", "BF16", "F32", "F64")  # in headers of safetensors
BATCH = 8  # images per evaluation in the command line and the benchmarks, always: a pixel depends on its seed alone


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

    family: ClassVar[str] = "UNet2DModel of diffusers with EDM preconditioning"
    network: torch.nn.Module
    shape: tuple[int, int, int]
    schedule: EDM
    sigma_data: float
    noise_scale: float
    classes: tuple[str, ...] = ()
    null_label: int | None = None
    batch: int | None = None
    patch: int = 1

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._denoised(x, t, None)

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the classes `labels`, one a sample or one for all; guidance, too, and 1 adds nothing."""
        conditioned = Conditioned(self, class_labels(labels, self.classes))
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

    def _numbers(self, t: float) -> tuple[float, float, float, float]:
        """c_in, what the network is told of the time, c_skip and c_out."""
        norm = math.hypot(t, self.sigma_data)
        return 1 / norm, self.noise_scale * math.log(t), self.sigma_data**2 / norm**2, t * self.sigma_data / norm

    def _denoised(self, x: Tensor, t: float | Tensor, labels: Tensor | None) -> Tensor:
        c_in, told, c_skip, c_out = spread(each(self._numbers, t), x)
        weight = next(self.network.parameters())
        scaled = pixel_unshuffle((x * c_in).to(weight), self.patch)
        wanted = self.null_label if labels is None else labels
        given = None if wanted is None else torch.as_tensor(wanted, device=x.device).expand(len(x))
        # A tensor: a number would be truncated to an integer by diffusers.
        time = torch.as_tensor(told, dtype=torch.float32, device=x.device).squeeze()
        output = pixel_shuffle(self._evaluate(scaled, time, given), self.patch).to(x.dtype)
        denoised: Tensor = x * c_skip + output * c_out
        return denoised.to(x.dtype)

    def _evaluate(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if self.batch is None:
            return self._answer(x, time, labels)
        rows = torch.arange(-(-len(x) // self.batch) * self.batch, device=x.device).clamp_max(len(x) - 1)
        outputs = [
            self._answer(x[part], time[part] if time.ndim else time, None if labels is None else labels[part])
            for part in torch.split(rows, self.batch)
        ]
        return torch.cat(outputs)[: len(x)]

    def _answer(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        answer = self.network(x, time, class_labels=labels)
        found: Tensor = answer if isinstance(answer, Tensor) else answer.sample  # the latter of diffusers
        return found


@dataclass(frozen=True, eq=False)
class Conditioned:
    """What `EDMModel.conditioned` returns, without guidance."""

    model: EDMModel
    labels: Tensor

    @property
    def schedule(self) -> EDM:
        return self.model.schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.labels.ndim and self.labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be one for all or one a sample, shape {(len(x),)}; got shape {tuple(self.labels.shape)}"
            )
        return self.model._denoised(x, t, self.labels)


def recognises(folder: Path) -> bool:
    """Whether it is the folder of a UNet2DModel."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("_class_name") == "UNet2DModel"


def load(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
) -> EDMModel:
    """The model in a folder with config.json and safetensors weights.

    A `fewstep.json` in the folder gives sigma_data, noise_scale, sigma_min, sigma_max, classes, null_label and patch;
    without one, EDM's values, no classes and no folding are assumed. Nothing in a folder is executed.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("loading a model needs safetensors: pip install 'fewstep[cli]'") from error

    check_device(device)
    config, card = read_json(folder / "config.json"), Card.read(folder / "fewstep.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder / 'config.json'} must describe a UNet2DModel; got {config.get('_class_name')!r}")
    try:
        _check_sizes(config, folder / WEIGHTS)
        network = _network(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except ImportError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: save the model with safe_serialization=True") from error
    except Exception as error:  # a corrupt header, missing or misshapen tensors, an impossible configuration
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(f"{folder} does not hold a whole UNet2DModel ({reason}): copy it again") from error
    height, width = _sides(config, folder / "config.json")
    channels = card.fit(network)
    network.eval().requires_grad_(False)
    torch.nn.Module.to(network, device=device, dtype=dtype)  # ModelMixin.to prints a warning about casts
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder / WEIGHTS}: {name} holds NaN or inf as {tensor.dtype}: copy or train it again")
    network.to(memory_format=torch.channels_last)  # in which convolutions are faster
    return EDMModel(
        network=network,
        shape=(channels, height * card.patch, width * card.patch),
        schedule=EDM(card.sigma_min, card.sigma_max, data_std=card.sigma_data),
        sigma_data=card.sigma_data,
        noise_scale=card.noise_scale,
        classes=tuple(card.classes),
        null_label=card.null_label,
        batch=batch,
        patch=card.patch,
    )


@dataclass(frozen=True)
class Card:
    """What a `fewstep.json` says; the values here are those of a folder without one."""

    path: Path
    preconditioning: str = "edm"
    sigma_data: float = 0.5
    noise_scale: float = 250.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    classes: Sequence[str] = ()
    null_label: int | None = None
    patch: int = 1
    summary: str = ""

    @classmethod
    def read(cls, path: Path) -> Card:
        facts = read_json(path) if path.exists() else {}
        known = [field.name for field in fields(cls) if field.name != "path"]
        if unknown := facts.keys() - known:
            raise ValueError(f"{path}: {min(unknown)!r} is not known; there are {', '.join(known)}")
        return cls(path, **facts)

    def __post_init__(self) -> None:
        if self.preconditioning != "edm":
            self._refuse("preconditioning", "'edm'")
        for name in ("sigma_data", "noise_scale", "sigma_min", "sigma_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                self._refuse(name, "a positive number")
        if not isinstance(self.classes, list | tuple) or not all(isinstance(each, str) for each in self.classes):
            self._refuse("classes", "a list of names")
        if self.null_label is not None and not _is_integer(self.null_label):
            self._refuse("null_label", "an integer, or null")
        if not _is_integer(self.patch) or self.patch < 1:
            self._refuse("patch", "an integer of at least 1")

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        raise ValueError(f"{self.path}: {name} must be {wanted}; got {getattr(self, name)!r}")

    def fit(self, network: torch.nn.Module) -> int:
        """The colours of an image, if the network can be what the card says of it."""
        config: Any = network.config  # not the file's, which may leave out what diffusers has a value for
        folded, area = config["in_channels"], self.patch**2
        if folded % area:
            self._refuse("patch", f"an integer whose square divides {folded} channels")
        if config["out_channels"] != folded:
            raise ValueError(
                f"{self.path.parent}: the network must have as many channels out as in; "
                f"got {folded} in, {config['out_channels']} out"
            )
        embedding: Any = network.class_embedding
        count = 0 if embedding is None else getattr(embedding, "num_embeddings", math.inf)
        if len(self.classes) > count:
            self._refuse("classes", f"at most {count}, which the network has")
        if self.null_label is not None and not 0 <= self.null_label < count:
            self._refuse("null_label", f"one of the {count} labels of the network, or null")
        return int(folded // area)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sides(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    size = config.get("sample_size")
    if size is None:
        raise ValueError(f"{path} has no sample_size: add the side of the images in pixels")
    sides = [size, size] if _is_integer(size) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(_is_integer(s) and s > 0 for s in sides):
        raise ValueError(f"{path}: sample_size must be the side of the images in pixels, or two; got {size!r}")
    return sides[0], sides[1]


def _network(config: Mapping[str, Any]) -> Any:
    if covers(config):
        return UNet2D(config)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("this network needs diffusers: pip install 'fewstep[diffusers]'") from error
    return UNet2DModel.from_config(config)


def _check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """ValueError unless the network of `config` has the tensors that the header of `path` names; nothing is built."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
        stored = {name: tuple(each.get_shape()) for name, each in slices.items()}
        kinds = {name: each.get_dtype() for name, each in slices.items()}
    for name, kind in kinds.items():
        if kind not in REAL:
            raise ValueError(f"{name} is of {kind} in the weights, and must be of {', '.join(REAL)}")
    layers = config.get("layers_per_block", 1) * len(config.get("block_out_channels", ()))
    if layers > len(stored):  # before the network without memory, which takes its time too
        raise ValueError(f"the configuration has {layers} layers, the weights {len(stored)} tensors")
    with torch.device("meta"):
        wanted = {name: tuple(each.shape) for name, each in _network(config).state_dict().items()}
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"{name} is {stored.get(name, 'not')} in the weights, {wanted.get(name, 'not')} in the configuration"
            )
