"""Pipelines of diffusers as denoisers. Needs the extra `pipelines`.

A pipeline's `__call__` encodes its prompts, evaluates its network in the way of its model, with guidance, and hands the
answer to its scheduler. Here a stand-in of one step takes that place (`Asking`), and makes of the answer the denoised
latents: so the call is a denoiser. A run of no step at all is the decoder, and tells the shape of the latents and the
noise levels that the pipeline would take. What a pipeline does is thus never written down a second time, and one of
diffusers that takes `prompt` and `latents` needs no line here. `encode_prompt` is answered once a denoiser.

The few pipelines that cannot be given latents (`DIRECT`) only call their network, which is called as they do.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..guidance.base import checked, times
from ..models import read_json
from ..prediction import Denoiser
from ..schedule import Node, Schedule
from ..statistics import fingerprint
from .devices import check_device
from .labels import class_labels

__all__ = ["BATCH", "LabelModel", "PipelineModel", "TextModel", "fetched", "load", "recognises"]

BATCH = 1  # of large networks
SHOWN = 120  # letters of the reason that a library gives
INDEX = "model_index.json"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
NEEDS = {"prompt", "latents", "output_type", "num_inference_steps", "num_images_per_prompt"}
DIRECT = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "DiTPipeline")


def recognises(folder: Path) -> bool:
    """Whether it is the folder of a pipeline."""
    return (folder / INDEX).is_file()


def fetched(name: str) -> Path | None:
    """The folder of a pipeline on the Hub or in its cache; None for what is no name there."""
    if not HUB_NAME.fullmatch(name):
        return None
    from .pipeline_folder import quiet

    try:
        import diffusers
        import transformers
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as error:
        raise ImportError(f"{name!r} is no folder here, and to fetch it: pip install 'fewstep[pipelines]'") from error
    try:
        with quiet(diffusers, transformers):
            return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:
        raise FileNotFoundError(
            f"no folder {name!r} here, no whole copy of it in {HF_HUB_CACHE}, and the Hugging Face hub did not give it "
            f"({textwrap.shorten(_first_line(error), SHOWN, placeholder=' ...')}): where there is a network, "
            f"`hf download {name} --local-dir FOLDER`, and give that folder, which has {INDEX} at the top and each "
            "part in a folder of its name"
        ) from error


def load(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
) -> PipelineModel:
    """The model in a pipeline's folder; nothing in it is executed, and only safetensors are read.

    size: height and width of the images in pixels, for pipelines that can make others than their own.
    """
    from .asking import Asking
    from .pipeline_folder import load_pipeline

    check_device(device)
    pipe = load_pipeline(folder, dtype)
    pipe.set_progress_bar_config(disable=True)
    asking = Asking.from_config(pipe.scheduler.config)
    name, takes = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    if size is not None and "height" not in takes:
        raise ValueError(f"{name} makes images of one size: leave size={size!r} out")
    call = {} if size is None else {"height": size[0], "width": size[1]}
    kind: Callable[..., PipelineModel] = TextModel
    if name in DIRECT:
        kind = LabelModel
    elif not (takes.keys() >= NEEDS and hasattr(pipe, "encode_prompt")):
        missing = ", ".join(sorted(NEEDS - takes.keys())) or "encode_prompt"
        raise ValueError(f"{name} cannot be asked from outside (it has no {missing}): use EVODiffScheduler in it")
    pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    names = read_json(folder / INDEX).get("id2label") or {}
    model = kind(pipe, asking, call, batch, {int(number): str(name).split(",")[0] for number, name in names.items()})
    if torch.device(device).type != "cpu":  # where convolutions are faster in it; here they are not always
        model.network.to(memory_format=torch.channels_last)
    return model


@dataclass(frozen=True, eq=False)
class PipelineModel(ABC):
    """A pipeline of diffusers; itself the denoiser of no prompt, or no class, without guidance.

    With `batch`, the network is given the latents of exactly so many images at a time, filled up: on CPU an image is
    then the same, to the bit, whatever it is batched with. `call` has what is passed to the pipeline besides.
    """

    pipe: Any
    asking: Any
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    classes: ClassVar[Sequence[str]] = ()
    unit_start: ClassVar[bool] = True  # pipelines begin with unit noise, whatever the first level's sigma

    @property
    def family(self) -> str:
        """What was recognised."""
        return f"{type(self.pipe).__name__} of diffusers, {self.asking.config.prediction_type}"

    @property
    def schedule(self) -> Schedule:
        """On the clock of the table of betas, or of the flow, that the pipeline's scheduler was configured with."""
        found: Schedule = self.asking.schedule
        return found

    @property
    def network(self) -> Any:
        """What a call evaluates, a torch.nn.Module."""
        return self.pipe.components.get("transformer") or self.pipe.unet

    def with_network(self, network: torch.nn.Module) -> Self:
        """The model with another network, such as a cheaper one; all else is shared."""
        pipe = copy.copy(self.pipe)
        vars(pipe)["transformer" if pipe.components.get("transformer") else "unet"] = network
        return replace(self, pipe=pipe)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights of all parts, the pipeline's class and what its scheduler says of the model."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        weights = {name: fingerprint(part) for name, part in sorted(parts.items())}
        levels = {name: self.asking.config[name] for name in ("prediction_type", "variance_type", "clip_sample")}
        facts = (type(self.pipe).__name__, weights, levels, repr(self.asking.betas.tolist()), sorted(self.call.items()))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample: of the latents, as the pipeline packs them."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of samples."""

    def grid(self, schedule: Schedule, steps: int) -> tuple[Node, ...]:
        """The noise levels that the pipeline takes under EVODiffScheduler: a grid, for `fewstep.sample`."""
        planned: tuple[Node, ...] = self.asking.planned(steps)
        return planned

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        raise ValueError("this model has no classes: call it as it is, or with prompts")

    def _each(self, x: Tensor, function: Callable[[Tensor, Tensor], Tensor], size: int | None = None) -> Tensor:
        """`function(x[rows], rows)` of `size` samples, or `batch`, together; the last ones fill up."""
        size = size or self.batch or len(x)
        every = torch.arange(-(-len(x) // size) * size).clamp_max(len(x) - 1)
        return torch.cat([function(x[rows.to(x.device)], rows) for rows in every.split(size)])[: len(x)]

    def _asked(self, x: Tensor, t: float | Tensor, function: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
        """`function(asking, latents, rows)` at `t`; a pipeline knows one time, so samples with their own go alone."""
        times = t.tolist() if isinstance(t, Tensor) and t.ndim else None

        def ask(latents: Tensor, rows: Tensor) -> Tensor:
            asking = self.asking.at(float(t) if times is None else times[int(rows[0])], latents)
            return function(asking, latents, rows).to(x.dtype)

        return self._each(x, ask, None if times is None else 1)

    def _check_guidance(self, guidance: float | Tensor) -> float | Tensor:
        scale = checked(guidance, "guidance")
        if not bool((torch.as_tensor(scale) >= 1).all()):
            raise ValueError(f"guidance must be 1, which is none, or larger, for all or each (B,); got {guidance!r}")
        return scale


class TextModel(PipelineModel):
    """A pipeline from text to image: `prompted(...)` is what to sample."""

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self._plain(x, t)

    @cached_property
    def _plain(self) -> Prompted:
        return Prompted(self, ("",), None, {})

    @cached_property
    def shape(self) -> tuple[int, ...]:
        noise = self._plain.run(self.asking.at(None, None), 1, generator=torch.Generator().manual_seed(0))
        return tuple(noise.shape[1:])

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of samples, as the pipeline decodes and clips them."""
        nothing = self.asking.at(None, None)

        def images(latents: Tensor, rows: Tensor) -> Tensor:
            latents = latents.to(self.network.dtype)
            found: Tensor = self._plain.run(nothing, len(latents), latents=latents, output_type="pt")
            return found.float() * 2 - 1

        return self._each(x, images)

    def grid(self, schedule: Schedule, steps: int) -> tuple[Node, ...]:
        asking = self.asking.at(None, None)
        self._plain.run(asking, 1, steps=steps, generator=torch.Generator().manual_seed(0))
        return asking.planned(**asking.asked)  # type: ignore[no-any-return]

    def prompted(
        self, prompts: str | Sequence[str], guidance: float | Tensor = 1.0, negative: str | Sequence[str] | None = None
    ) -> Prompted | Apart:
        """The denoiser of `prompts`, one for all samples or one a sample, against `negative`, "" if not given.

        Guidance is the pipeline's own: mostly both prompts in one batched evaluation. Models that have it built in
        (Flux dev) are told the number, and know no negative prompts. A tensor (B,) is a scale each: a pipeline knows
        one, so these samples go one by one.
        """
        texts, negatives = _texts("prompts", prompts), None if negative is None else _texts("negative", negative)
        guidance = self._check_guidance(guidance)
        if negatives is not None and len(negatives) not in (1, len(texts)):
            raise ValueError(f"negative must be one for all or one a prompt, {len(texts)}; got {len(negatives)}")
        if isinstance(guidance, Tensor):
            if len(texts) not in (1, len(guidance)):
                raise ValueError(f"prompts must be one for all or one a scale, {len(guidance)}; got {len(texts)}")
            return Apart(
                tuple(
                    self.prompted(text, scale, negative if scale > 1 else None)
                    for text, scale, negative in zip(
                        _each(texts, len(guidance)),
                        guidance.tolist(),
                        _each(negatives or (None,), len(guidance)),
                        strict=True,
                    )
                )
            )
        takes = inspect.signature(type(self.pipe).__call__).parameters
        built_in = getattr(self.network.config, "guidance_embeds", False)
        if negatives is not None and (guidance == 1 or built_in or "negative_prompt" not in takes):
            why = "guidance 1 is none" if guidance == 1 else "this model has its guidance built in"
            raise ValueError(f"negative={negative!r} has no effect, as {why}: leave it out")
        if "true_cfg_scale" in takes and not built_in:
            return Prompted(self, texts, negatives or (("",) if guidance > 1 else None), {"true_cfg_scale": guidance})
        if "guidance_scale" not in takes and guidance != 1:
            raise ValueError(f"{type(self.pipe).__name__} has no guidance: use 1; got {guidance!r}")
        return Prompted(self, texts, negatives, {"guidance_scale": guidance} if "guidance_scale" in takes else {})


@dataclass(frozen=True, eq=False)
class Prompted:
    """What `TextModel.prompted` returns."""

    model: TextModel
    prompts: tuple[str, ...]
    negatives: tuple[str, ...] | None
    options: Mapping[str, Any]
    encoded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return self.model.shape

    @property
    def fingerprint(self) -> str:
        """Of the model, the prompts and the guidance."""
        facts = (self.model.fingerprint, self.prompts, self.negatives, sorted(self.options.items()))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of samples."""
        return self.model.decode(x)

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if len(self.prompts) not in (1, len(x)):
            raise ValueError(f"prompts must be one for all or one a sample, {len(x)}; got {len(self.prompts)}")

        def ask(asking: Any, latents: Tensor, rows: Tensor) -> Tensor:
            self.run(asking, len(rows), rows, latents=latents.to(self.model.network.dtype))
            return asking.denoised  # type: ignore[no-any-return]

        return self.model._asked(x, t, ask)

    def run(self, asking: Any, count: int, rows: Tensor | None = None, steps: int = 1, **options: Any) -> Tensor:
        """What the pipeline's own call makes with this scheduler, for the prompts of `rows`, or the first for all."""
        pipe = copy.copy(self.model.pipe)
        encode = pipe.encode_prompt

        def remembered(*args: Any, **kwargs: Any) -> Any:
            asked = repr((args, kwargs))
            if asked not in self.encoded:
                with torch.no_grad():
                    self.encoded[asked] = encode(*args, **kwargs)
            return self.encoded[asked]

        vars(pipe).update(scheduler=asking, encode_prompt=remembered)
        takes = inspect.signature(type(pipe).__call__).parameters
        given = {
            **_of(rows, count, prompt=self.prompts, negative_prompt=self.negatives),
            "guidance_scale": 1.0, "use_resolution_binning": False,
            **self.options, **self.model.call, "num_inference_steps": steps, "output_type": "latent",
            "return_dict": False, **options,
        }  # fmt: skip
        # Without its no_grad, so that gradients can pass; the weights ask for none.
        call = inspect.unwrap(type(pipe).__call__)
        result: Tensor = call(pipe, **{name: value for name, value in given.items() if name in takes})[0]
        return result


@dataclass(frozen=True, eq=False)
class Apart:
    """Samples with a denoiser each, which are asked one by one."""

    denoisers: tuple[Any, ...]

    @property
    def schedule(self) -> Schedule:
        found: Schedule = self.denoisers[0].schedule
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        found: tuple[int, ...] = self.denoisers[0].shape
        return found

    @property
    def fingerprint(self) -> str:
        """Of all of them."""
        return hashlib.sha256(repr([each.fingerprint for each in self.denoisers]).encode()).hexdigest()

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of samples."""
        found: Tensor = self.denoisers[0].decode(x)
        return found

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if len(x) != len(self.denoisers):
            raise ValueError(f"guidance must be one for all or one a sample, {len(x)}; got {len(self.denoisers)}")
        times = t if isinstance(t, Tensor) and t.ndim else [t] * len(x)
        return torch.cat([self.denoisers[i](x[i : i + 1], times[i]) for i in range(len(x))])


def _each(texts: Sequence[Any], count: int) -> Sequence[Any]:
    return texts if len(texts) == count else [texts[0]] * count


def _of(rows: Tensor | None, count: int, **texts: tuple[str, ...] | None) -> dict[str, Any]:
    """The arguments of a pipeline for the texts of these samples: one text of several images, or a list of texts."""
    given = {name: values for name, values in texts.items() if values is not None}
    if rows is None or all(len(values) == 1 for values in given.values()):
        return {**{name: values[0] for name, values in given.items()}, "num_images_per_prompt": count}
    chosen = {name: [values[i if len(values) > 1 else 0] for i in rows.tolist()] for name, values in given.items()}
    return {**chosen, "num_images_per_prompt": 1}


def _texts(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a string, or one a sample; got {given!r}")
    return texts


class LabelModel(PipelineModel):
    """A pipeline that only calls its network: of classes (DiT), or of none (DDPM, DDIM, LDM)."""

    @cached_property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """Their names, or their numbers where the folder tells none."""
        count = getattr(self.network.config, "num_embeds_ada_norm", None) or 0
        return tuple(self.names.get(i, str(i)) for i in range(count))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        size = self.network.config.sample_size
        return (self.network.config.in_channels, *((size, size) if isinstance(size, int) else size))

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of samples, clipped."""
        autoencoder = self.pipe.components.get("vae") or self.pipe.components.get("vqvae")

        def images(latents: Tensor, rows: Tensor) -> Tensor:
            scaled = latents.to(autoencoder.dtype) / autoencoder.config.scaling_factor
            found: Tensor = autoencoder.decode(scaled).sample
            return found

        return (x if autoencoder is None else self._each(x, images)).float().clamp(-1, 1)

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return Labelled(self, torch.tensor(len(self.classes)), 1.0)(x, t)

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Labelled:
        """The denoiser of the classes `labels`, one a sample or one for all; guidance, too, both in one evaluation."""
        return Labelled(self, class_labels(labels, self.classes), self._check_guidance(guidance))


@dataclass(frozen=True, eq=False)
class Labelled:
    """What `LabelModel.conditioned` returns; the label above all others is that of no class."""

    model: LabelModel
    labels: Tensor
    guidance: float | Tensor

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.labels.ndim and self.labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be one for all or one a sample, shape {(len(x),)}; got shape {tuple(self.labels.shape)}"
            )
        labels, scales = self.labels.expand(len(x)), self.guidance
        if isinstance(scales, Tensor) and len(scales) != len(x):
            raise ValueError(f"guidance must be one for all or one a sample, {len(x)}; got {len(scales)}")

        def ask(asking: Any, latents: Tensor, rows: Tensor) -> Tensor:
            scale = scales if isinstance(scales, float) else scales[rows]
            output = self._output(latents, asking.timesteps.to(x.device), labels[rows].to(x.device), scale)
            return asking.answered(output)  # type: ignore[no-any-return]

        return self.model._asked(x, t, ask)

    def _output(self, x: Tensor, timestep: Tensor, labels: Tensor, scale: float | Tensor) -> Tensor:
        network = self.model.network
        x = x.to(network.dtype)
        if not self.model.classes:
            plain: Tensor = network(x, timestep).sample
            return plain
        if isinstance(scale, float) and scale == 1:
            output: Tensor = network(x, timestep=timestep.expand(len(x)), class_labels=labels).sample
            return output[:, : x.shape[1]]  # the rest is a variance
        both = torch.cat([labels, torch.full_like(labels, len(self.model.classes))])
        output = network(torch.cat([x, x]), timestep=timestep.expand(2 * len(x)), class_labels=both).sample
        given, none = output[:, : x.shape[1]].chunk(2)
        guided: Tensor = none + times(scale, given - none, "guidance")
        return guided


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
