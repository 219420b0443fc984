"""Networks with smaller numbers: bfloat16, or weights of 8 or 4 bits.

Which layers keep float32 is read off a run, not off names:

- the first and the last layer, which see and make the image;
- norms, and all parameters that are not weights of linear or convolution layers;
- the embedding of the time, the class and the pooled text: layers that are given one vector a sample, (B, C). Rounded
  to 8 bits they make most of the error (PTQ4DM, TFMQ-DM, and docs/cheaper.md). For bfloat16, which rounds less, those
  inside blocks, that project the embedding, are converted: they are a tenth of the weights.

A converted layer casts its input and answers in its own type; sums with float32 are float32.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..files import check_file, write_atomically
from .network import Run, hooked, in_use, network_of, run_of, seen, with_network

__all__ = ["Weights", "half", "load", "quantized", "save"]

M = TypeVar("M")
Weights = Literal["int8", "int4", "int8-dynamic"]
GROUP = 32  # weights that share a scale, of 4 bits
FORMAT = "fewstep.cheaper"  # the key of our own line in a file's metadata
NEEDS = "needs torchao: pip install 'fewstep[cheaper]'"


def half(model: M, *, dtype: torch.dtype = torch.bfloat16, run: Run | None = None) -> M:
    """A copy of `model`, a network or a model with one, whose layers are in half precision.

    Args:
        dtype: bfloat16, or float16, whose range is that of most networks but not of all.
        run: `run(network)` evaluates it as in use, to see what its layers are given; a model has its own.

    Half the memory. Whether it is faster is the machine's: docs/cheaper.md. TypeError for what has no network;
    ValueError where nothing would be converted.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16; got {dtype}")
    network = network_of(model)
    chosen = [each.name for each in seen(network, run_of(model, run)) if not each.alone and not each.end]
    if not chosen:
        raise ValueError(
            "nothing would be converted: no layer between the first and the last is given more than a vector a sample"
        )
    network = copy.deepcopy(network)
    _cast(network, dict.fromkeys(chosen, dtype))
    return with_network(model, network)


def quantized(model: M, weights: Weights = "int8", *, tolerance: float | None = None, run: Run | None = None) -> M:
    """A copy of `model` whose linear layers keep weights of 8 or 4 bits, by torchao.

    Args:
        weights: "int8", a scale for each output; "int4", one for every 32 weights, kept in a byte each by torchao's
            portable format; "int8-dynamic" rounds the inputs too, by scales that it takes from each, for machines with
            fast products of int8. A sample may then depend on its batch mates by the rounding.
        tolerance: calibration. A layer whose answers, on the states of `run`, are off by more than this (root mean
            square, over that of the answers) keeps its numbers.
        run: as for `half`.

    Convolutions stay: torchao quantises linear layers. ValueError where no layer is quantised.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}; got {weights!r}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, such as 0.02; got {tolerance!r}")
    network, given = network_of(model), run_of(model, run)
    make = _rounding(weights)
    between = [each.name for each in seen(network, given) if not each.vector and not each.end]
    chosen = [name for name in between if isinstance(network.get_submodule(name), nn.Linear)]
    if weights == "int4":
        chosen = [name for name in chosen if _inputs(network, name) % GROUP == 0]
    if tolerance is not None:
        off = _off(network, chosen, make, given)
        chosen = [name for name in chosen if off[name] <= tolerance]
    if not chosen:
        raise ValueError(
            "no layer would be quantised: torchao takes linear layers alone, here between the first and the last and "
            "not of the embedding" + (", within the tolerance" if tolerance is not None else "")
        )
    network = copy.deepcopy(network)
    for name in chosen:
        make(network.get_submodule(name))
    return with_network(model, network)


def save(model: Any, path: str | Path) -> None:
    """The network's numbers as safetensors, quantised ones as torchao flattens them; the file appears whole.

    Weights that are tied are kept once, and come back tied.
    """
    try:
        from safetensors.torch import save as to_bytes
    except ImportError as error:
        raise ImportError("saving needs safetensors: pip install 'fewstep[cli]'") from error
    path = Path(path)
    check_file(path, "path")
    network = network_of(model)
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    small = {name: tensor for name, tensor in state.items() if type(tensor) is not Tensor}
    tied = _tied({name: tensor for name, tensor in state.items() if name not in small})
    plain = {name: _own(tensor) for name, tensor in state.items() if name not in small and name not in tied}
    casts = {name: str(dtype) for name, dtype in _casts(network).items()}
    facts = {"casts": casts, "quantised": sorted(small), "tied": tied}
    metadata = {FORMAT: json.dumps(facts)}
    if small:
        flattened, told = _flattening()[0](small)
        plain |= {name: tensor.contiguous() for name, tensor in flattened.items()}
        metadata |= told
    write_atomically(path, to_bytes(plain, metadata))


def load(model: M, path: str | Path) -> M:
    """`model`, of the same architecture in float, with the network that `save` wrote: equal bit for bit."""
    from safetensors import SafetensorError, safe_open

    path, network = Path(path), copy.deepcopy(network_of(model))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): save it again") from error
    if FORMAT not in metadata:
        raise ValueError(f"{path} was not written by fewstep.cheaper.save: it has no {FORMAT} in its metadata")
    facts = json.loads(metadata[FORMAT])
    if facts["quantised"]:
        small, state = _flattening()[1](state, metadata)
        state |= small
    device = next(network.parameters()).device
    strides = {name: tensor.stride() for name, tensor in network.state_dict().items()}
    state = {name: _laid(tensor.to(device), strides.get(name)) for name, tensor in state.items()}
    state |= {name: state[first] for name, first in facts.get("tied", {}).items() if first in state}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another network than this one ({error})") from error
    network.requires_grad_(False)
    _cast(network, {name: getattr(torch, dtype.removeprefix("torch.")) for name, dtype in facts["casts"].items()})
    return with_network(model, network)


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names whose tensors are those of a name before, with that name."""
    firsts: dict[Any, str] = {}
    found = {
        name: firsts.setdefault((each.device, each.data_ptr(), each.dtype, each.shape, each.stride()), name)
        for name, each in state.items()
        if each.numel()
    }
    return {name: first for name, first in found.items() if name != first}


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, and without memory that others see: of a part, safetensors would write the whole or nothing."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _laid(tensor: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """In the memory format that the network has, by which a machine picks its kernels."""
    if type(tensor) is not Tensor or stride is None or tensor.stride() == stride or tensor.ndim != len(stride):
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


class Cast:
    """The hook of a converted layer: its tensors in the layer's type."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            each.to(self.dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in given
        )


class Uncast:
    """The hook of what is not converted and has parameters, such as norms: its tensors in theirs."""

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = next(module.parameters()).dtype
        return Cast(dtype)(module, given)


def _cast(network: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, dtype in dtypes.items():
        layer = network.get_submodule(name)
        layer.to(dtype)
        layer.register_forward_pre_hook(Cast(dtype))
    if dtypes:
        for module in network.modules():
            own = next(module.parameters(recurse=False), None)
            plain = not isinstance(module, nn.Embedding) and not list(module.children())
            if plain and own is not None and own.dtype in (torch.float32, torch.float64):
                module.register_forward_pre_hook(Uncast())


def _casts(network: nn.Module) -> dict[str, torch.dtype]:
    return {
        name: hook.dtype
        for name, module in network.named_modules()
        for hook in module._forward_pre_hooks.values()
        if type(hook) is Cast
    }


def _rounding(weights: Weights) -> Callable[[nn.Module], None]:
    """What quantises a linear layer in place."""
    try:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            IntxWeightOnlyConfig,
            PerGroup,
            quantize_,
        )
    except ImportError as error:
        raise ImportError(f"quantisation {NEEDS}") from error
    config = {
        "int8": lambda: Int8WeightOnlyConfig(set_inductor_config=False),
        "int4": lambda: IntxWeightOnlyConfig(weight_dtype=getattr(torch, weights), granularity=PerGroup(GROUP)),
        "int8-dynamic": lambda: Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
    }[weights]()
    return lambda layer: quantize_(layer, config)


def _inputs(network: nn.Module, name: str) -> int:
    layer: Any = network.get_submodule(name)
    return int(layer.in_features)


def _off(network: nn.Module, names: list[str], make: Callable[[nn.Module], None], run: Run) -> dict[str, float]:
    """How far the answer of each layer is off, over the run, by its own rounding alone."""
    rounded, sums = {}, {name: [0.0, 0.0] for name in names}
    for name in names:
        rounded[name] = copy.deepcopy(network.get_submodule(name))
        make(rounded[name])

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hear(module: nn.Module, given: tuple[Any, ...], answer: Tensor) -> None:
            sums[name][0] += float((rounded[name](*given) - answer).square().sum())
            sums[name][1] += float(answer.square().sum())

        return hear

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with hooked(handles), in_use(network):
        run(network)
    return {name: (error / size) ** 0.5 if size else 0.0 for name, (error, size) in sums.items()}


def _flattening() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from torchao.prototype.safetensors import safetensors_support as support
    except ImportError as error:
        raise ImportError(f"quantised weights {NEEDS}") from error
    return support.flatten_tensor_state_dict, support.unflatten_tensor_state_dict
