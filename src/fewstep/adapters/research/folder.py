"""The folder of a converted network: config.json, which says what it is, and safetensors of its weights.

    {"format": "fewstep-network", "family": "edm", "network": {...}, ...}
    network.safetensors, and of a classifier classifier.safetensors

No name in a file is ever a path, and nothing is built before its sizes have been compared with those of the weights.
"""

from __future__ import annotations

import json
import math
import reprlib
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from ...files import appearing, check_writable, write_all
from ...models import read_json

__all__ = ["FORMAT", "build", "read_config", "read_fields", "shapes", "write_folder"]

FORMAT = "fewstep-network"
CONFIG, NETWORK, CLASSIFIER = "config.json", "network.safetensors", "classifier.safetensors"
LARGEST = 2**20  # of an integer of a configuration: pixels, channels, labels
LONGEST = 2**12  # of its lists


def read_config(folder: Path) -> dict[str, Any]:
    """The facts of a folder, without `format`; ValueError if it is another's."""
    facts = read_json(folder / CONFIG)
    if facts.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / CONFIG} is not of a converted network: `fewstep convert` makes such folders")
    return facts


def read_fields(kind: type[Any], facts: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` of JSON's values; ValueError that names the field for what it cannot be.

    Lists become tuples, objects the dataclasses that a field has as its type; a `CHOICES` of the class says which words
    a field may be. Integers are at most 2^20, lists at most 4,096 long.
    """
    if not isinstance(facts, Mapping):
        raise ValueError(f"{where} must be an object; got {type(facts).__name__}")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}
    if unknown := facts.keys() - known.keys():
        raise ValueError(f"{where}: {min(unknown)!r} is not known; there are {', '.join(known)}")
    for name, each in known.items():
        if name not in facts and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where}: {name} is missing")
    read = {name: _read(hints[name], value, f"{where}: {name}") for name, value in facts.items()}
    for name, choices in getattr(kind, "CHOICES", {}).items():
        if name in read and read[name] not in choices:
            raise ValueError(f"{where}: {name} must be one of {', '.join(choices)}; got {read[name]!r}")
    return kind(**read)


def _read(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is UnionType:  # a type or None
        hint = next(each for each in get_args(hint) if each is not type(None))
        if value is None:
            return None
    if is_dataclass(hint):
        return read_fields(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or len(value) > LONGEST:
            raise ValueError(f"{where} must be a list of at most {LONGEST:,}; got {_short(value)}")
        return tuple(_read(get_args(hint)[0], each, where) for each in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, int) and -1 <= value <= LARGEST,
        float: number and math.isfinite(value),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }[hint]
    if not fits:
        limit = f"an integer of at most {LARGEST:,}" if hint is int else f"a {hint.__name__}"
        raise ValueError(f"{where} must be {limit}; got {_short(value)}")
    return hint(value)


def _short(value: Any) -> str:
    return reprlib.repr(value)  # which does not spell out what is long


def write_folder(folder: Path, facts: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """config.json of `facts`, and a file of each of `weights`, by its name.

    The configuration comes last: without it a folder is none.
    """
    from safetensors.torch import save_file

    check_writable(folder, "out")
    for name, tensors in weights.items():
        with appearing(folder / name) as temporary:
            save_file({key: each.contiguous() for key, each in tensors.items()}, temporary)
    write_all(folder, {CONFIG: (json.dumps({"format": FORMAT, **facts}, indent=1) + "\n").encode()})


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes in the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, not a dict


def compared(make: Callable[[Any], nn.Module], config: Any, stored: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """The network of `config`, without memory; ValueError unless its tensors have the names and shapes of `stored`."""
    if config.layers > len(stored):  # before the network without memory, which takes its time too
        raise ValueError(f"the configuration has {config.layers:,} layers, the weights {len(stored):,} tensors")
    with torch.device("meta"):
        network = make(config)
    wanted = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    wrong = [name for name in sorted(wanted.keys() | stored.keys()) if wanted.get(name) != stored.get(name)]
    if wrong:
        told = "; ".join(
            f"{name} is {stored.get(name, 'not')} in the weights, {wanted.get(name, 'not')} in the configuration"
            for name in wrong[:3]
        )
        raise ValueError(told + (f"; and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""))
    return network


def build(
    make: Callable[[Any], nn.Module], config: Any, path: Path, device: str | torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network of `config` with the weights of `path`, ready to be called; they are in memory once."""
    from safetensors import safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: convert the network again")
    try:
        network = compared(make, config, shapes(path))
        with safe_open(path, framework="pt") as file:
            state = {name: _placed(file.get_tensor(name), device, dtype) for name in network.state_dict()}
        network.load_state_dict(state, assign=True)
    except Exception as error:  # a corrupt header, missing or misshapen tensors, an impossible configuration
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{path} does not hold the network of its {CONFIG} ({reason})") from error
    for name, each in state.items():
        if not bool(each.isfinite().all()):
            raise ValueError(f"{path}: {name} holds NaN or inf as {each.dtype}: convert the network again")
    return network.eval().requires_grad_(False)


def _placed(tensor: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """In its final form at once, in which convolutions are faster, so that two copies of the weights never meet."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, dtype, memory_format=layout)
