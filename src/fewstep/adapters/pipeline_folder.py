"""The folder of a pipeline of diffusers, read without running anything in it, and built when it is known to fit.

Every class must be one of diffusers or transformers, every name stay in the folder, and all weights be safetensors.
Before a network is built, it is laid out without memory and compared with the headers of its files, so that neither
time nor memory can be asked for that the files are not the size of.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as hooks

from ..models import read_json

__all__ = ["load_part", "load_pipeline", "quiet"]

INDEX = "model_index.json"
OURS = "fewstep.integrations.diffusers"  # of pipelines that were saved with EVODiffScheduler
# The stems of weights' files, in diffusers and transformers.
STEMS = ("diffusion_pytorch_model", "model")
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5")
# Parameters for each number and each tensor of a file: shared ones are stored once, and may be laid out twice.
SHARED = 2
# Modules for each tensor of a file: published networks have up to 2, most of them blocks and activations.
MODULES = 50
# Numbers in tables that a network computes for itself: positions, frequencies. The largest published have 6e7.
TABLES = 2**28


def load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline in `folder`, on the CPU, its networks in `dtype`; ValueError or FileNotFoundError in one line."""
    try:
        import diffusers
        import safetensors  # noqa: F401
        import transformers
        from accelerate import init_empty_weights  # noqa: F401, with which weights are loaded without a second copy
    except ImportError as error:
        raise ImportError(f"loading a pipeline needs {error.name}: pip install 'fewstep[pipelines]'") from error
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    with quiet(diffusers, transformers):  # of what they miss that nothing here needs
        return _pipeline(folder, dtype)


@contextmanager
def quiet(*libraries: Any) -> Iterator[None]:
    """Without the libraries' warnings, of which those that matter are errors here."""
    levels = [library.utils.logging.get_verbosity() for library in libraries]
    for library in libraries:
        library.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.utils.logging.set_verbosity(level)


def _pipeline(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    index = read_json(folder / INDEX)
    kind = _class_of(folder, "diffusers", index.get("_class_name"))
    if not issubclass(kind, diffusers.DiffusionPipeline):
        raise ValueError(f"{folder / INDEX} must describe a pipeline of diffusers; got {kind.__name__}")
    takes = set(inspect.signature(kind.__init__).parameters) - {"self"}
    given = {name: value for name, value in index.items() if name in takes}
    classes = {name: _part_class(folder, name, value) for name, value in given.items() if isinstance(value, list)}
    missing = sorted(
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name in takes - given.keys() and parameter.default is inspect.Parameter.empty
    )
    if missing:
        raise ValueError(f"{folder / INDEX} has no {missing[0]!r}, which {kind.__name__} needs: copy it again")
    for name, part in classes.items():  # all that is missing is told before the first is loaded
        if part is not None:
            _check_files(folder / name, part)
    loaded = {name: None if part is None else load_part(folder / name, part, dtype) for name, part in classes.items()}
    return kind(**{**given, **loaded})


def _part_class(folder: Path, name: str, value: list[Any]) -> Any:
    if value[:1] == [None] or value == []:
        return None
    if len(value) != 2 or not name.isidentifier():
        raise ValueError(f"{folder / INDEX}: {name!r} must name a library and a class; got {value!r}")
    from diffusers import DiffusionPipeline

    kind = _class_of(folder, *value)
    if issubclass(kind, DiffusionPipeline):  # it would read its folder in its own way
        raise ValueError(f"{folder / INDEX}: {name!r} is a pipeline in a pipeline, which is not supported")
    return kind


def _class_of(folder: Path, library: object, name: object) -> Any:
    """A class that can be loaded from a folder without its running code."""
    import diffusers
    import transformers

    known = (
        diffusers.DiffusionPipeline, diffusers.ModelMixin, diffusers.SchedulerMixin, transformers.PreTrainedModel,
        transformers.PreTrainedTokenizerBase, transformers.ImageProcessingMixin, transformers.FeatureExtractionMixin,
        transformers.ProcessorMixin,
    )  # fmt: skip
    found: Any = None
    if isinstance(library, str) and isinstance(name, str) and name.isidentifier():
        if library == OURS:
            from ..integrations.diffusers import EVODiffScheduler

            found = EVODiffScheduler if name == "EVODiffScheduler" else None
        elif library in ("diffusers", "transformers"):
            found = getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
        elif library.isidentifier():  # a pipeline's own folder in diffusers, such as stable_diffusion
            found = getattr(getattr(diffusers.pipelines, library, None), name, None)
    if not inspect.isclass(found) or not issubclass(found, known):
        here = f"diffusers {diffusers.__version__} or transformers {transformers.__version__}"
        raise ValueError(
            f"{folder / INDEX} names {library}.{name}, which is no class of the installed {here}: code that comes "
            "with a model is not run; install what it needs"
        )
    return found


def _is_network(kind: Any) -> bool:
    return issubclass(kind, torch.nn.Module)


def _check_files(folder: Path, kind: Any) -> None:
    """FileNotFoundError that says which file is missing, and where it goes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: it is the folder of a {kind.__name__}, which {INDEX} names")
    if _is_network(kind):
        read_json(folder / "config.json")
        _weights(folder)
    elif issubclass(kind, _scheduler()):
        read_json(folder / "scheduler_config.json")
    elif files := getattr(kind, "vocab_files_names", None):
        whole, parts = files.get("tokenizer_file"), [files[name] for name in files if name != "tokenizer_file"]
        have = {path.name for path in folder.iterdir()}
        if whole not in have and not set(parts) <= have:
            wanted = " and ".join(parts) + (f", or {whole}" if whole else "")
            raise FileNotFoundError(f"{folder} must hold {wanted}, of a {kind.__name__}: copy them there")


def _scheduler() -> Any:
    from diffusers import SchedulerMixin

    return SchedulerMixin


def _weights(folder: Path) -> tuple[list[Path], str | None]:
    """The files of a network's weights, and the variant that they are of, if there are no others."""
    names = sorted(path.name for path in folder.iterdir())
    for stem in STEMS:
        for variant in (None, "fp16", "bf16", "fp32"):
            single = f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors"
            shards = f"{stem}.safetensors.index.json" if variant is None else f"{stem}.safetensors.index.{variant}.json"
            if single in names:
                return [folder / single], variant
            if shards in names:
                return _shards(folder, shards), variant
    pickled = [name for name in names if name.endswith(PICKLED)]
    wanted = f"{folder / STEMS[0]}.safetensors or {STEMS[1]}.safetensors"
    if pickled:
        raise ValueError(
            f"{folder} has its weights as {pickled[0]}, a format that can run code when it is opened: save the model "
            f"with safe_serialization=True, or put its safetensors there ({wanted})"
        )
    raise FileNotFoundError(f"{folder} has no weights: put {wanted} there")


def _shards(folder: Path, index: str) -> list[Path]:
    places = read_json(folder / index).get("weight_map")
    files = set(places.values()) if isinstance(places, dict) else set()
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{folder / index} names {file!r}, which is no safetensors file of that folder")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: {index} names it, copy it there")
    if not files:
        raise ValueError(f"{folder / index} names no files: copy it again")
    return [folder / file for file in sorted(files)]


def load_part(folder: Path, kind: Any, dtype: torch.dtype = torch.float32) -> Any:
    """What `kind`, a class of diffusers or transformers, makes of a folder of its own; ValueError in one line."""
    try:
        if _is_network(kind):
            return _network(folder, kind, dtype)
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever libraries make of damage
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise ValueError(f"{folder} does not hold a whole {kind.__name__} ({reason}): copy it again") from error


def _network(folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    import transformers

    files, variant = _weights(folder)
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise ValueError("its weights are quantized, which is not supported: take the ones that are not")
    if (folder / "adapter_config.json").exists():  # which transformers would load, too
        raise ValueError("there are weights of an adapter beside it: merge them, or take adapter_config.json away")
    if code := next(_kernels(config), None):
        raise ValueError(f"it asks for {code!r}, code from the hub, which is not run: take that out of config.json")
    _check_sizes(kind, config, files)
    types = {"dtype" if issubclass(kind, transformers.PreTrainedModel) else "torch_dtype": dtype}
    network, told = kind.from_pretrained(
        folder, **types, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{missing[0]} is not in the weights")
    for name, tensor in network.state_dict().items():
        # The extremes of what holds NaN are NaN; unlike isfinite() they take no memory.
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
            raise ValueError(f"{name} holds NaN or inf as {tensor.dtype}")
    return network


def _kernels(config: Any) -> Iterator[str]:
    """The names of kernels, OWNER/NAME, that transformers would fetch and run for a configuration."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(key, str) and key.endswith("_implementation") and "/" in str(value):
            yield str(value)
        yield from _kernels(value)


def _check_sizes(kind: Any, config: Mapping[str, Any], files: list[Path]) -> None:
    """ValueError if the network of `config` is larger than what the headers of `files` say; nothing is built."""
    import transformers
    from safetensors import safe_open

    tensors, numbers = 0, 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                tensors, numbers = tensors + 1, numbers + _product(file.get_slice(name).get_shape())
    with torch.device("meta"), _at_most(tensors):
        if issubclass(kind, transformers.PreTrainedModel):
            network = kind(kind.config_class.from_dict(dict(config)))
        else:
            network = kind.from_config(dict(config))
    wanted = sum(each.numel() for each in network.parameters())
    if wanted > SHARED * numbers:
        raise ValueError(f"the configuration is of {wanted:,} numbers, the weights are {numbers:,}")
    tables = sum(each.numel() for each in network.buffers())
    if tables > numbers + TABLES:
        raise ValueError(f"the configuration asks for tables of {tables:,} numbers, the weights are {numbers:,}")


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Stop a network from being laid out that has more parameters than `tensors`, or modules without end."""
    parameters, modules = 0, 0

    def parameter(*_: Any) -> None:
        nonlocal parameters
        parameters += 1
        if parameters > SHARED * tensors:
            raise ValueError(f"the configuration has more layers than the weights, which are {tensors} tensors")

    def module(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > MODULES * (tensors + 1):
            raise ValueError(f"the configuration has more layers than the weights, which are {tensors} tensors")

    handles = (
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_module_registration_hook(module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
