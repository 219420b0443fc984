"""The network inside a model, another one in its place, and what its layers see in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..sampling import sample, unit_noise

__all__ = ["Run", "Seen", "hooked", "in_use", "network_of", "run_of", "seen", "weight_bytes", "with_network"]

Run = Callable[[nn.Module], object]
"""Evaluates a network on inputs as they come in use: states along a run, of several noise levels."""
M = TypeVar("M")

SEEDS, CALLS = 4, 6  # of the run on which layers are looked at
OWN = torch.float64, torch.bfloat16, torch.float16  # types of whole networks; the rest is asked in float32
WEIGHTED = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d


def network_of(model: Any, *, compiled: bool = False) -> nn.Module:
    """The torch module that does the work: `model` itself, or its field `network`; TypeError if there is none.

    One that is `compiled` may be looked at, but not changed: what was compiled would not see it.
    """
    network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"model must be a torch network, or a model with one as its field network; got {type(model).__name__}: "
            "give the network, and make the model with what is returned"
        )
    made = hasattr(network, "_orig_mod") or network._compiled_call_impl is not None  # of torch.compile, Module.compile
    if made and not compiled:
        raise TypeError("the network is compiled, and what is changed inside would not be seen: compile it afterwards")
    return network


def with_network(model: M, network: nn.Module) -> M:
    """`model` with another network."""
    if isinstance(model, nn.Module):
        return network  # type: ignore[return-value]
    if hasattr(model, "with_network"):
        return model.with_network(network)  # type: ignore[no-any-return]
    if not dataclasses.is_dataclass(model):
        raise TypeError(f"{type(model).__name__} is no dataclass: give its network, and make the model with the answer")
    return dataclasses.replace(model, network=network)  # type: ignore[type-var]


def run_of(model: Any, run: Run | None) -> Run:
    """`run`, or for a model with shape and schedule EVODiff's own run of a few samples."""
    if run is not None:
        return run
    if isinstance(model, nn.Module) or not all(hasattr(model, name) for name in ("shape", "schedule")):
        raise TypeError(
            "run is needed for a network alone: a function run(network) that evaluates it on states of a few noise "
            "levels, as in use; a model with shape and schedule has one"
        )

    def own(network: nn.Module) -> None:
        weight = next(network.parameters())
        dtype = weight.dtype if weight.dtype in OWN else torch.float32
        noise = unit_noise(range(SEEDS), model.shape, dtype=dtype, device=weight.device)
        sample(with_network(model, network), noise, nfe=CALLS)

    return own


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed when the block ends, however it ends."""
    with ExitStack() as until:
        for handle in handles:
            until.enter_context(handle)
        yield


@contextmanager
def in_use(network: nn.Module) -> Iterator[None]:
    """The network as in use, in eval mode and without gradients, so that a run leaves nothing in it."""
    training = [module for module in network.modules() if module.training]
    try:
        network.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Seen(NamedTuple):
    """A linear or convolution layer, and whether all that it was given is a vector for each sample.

    `alone`: all that its parent module computes is so, as in the embedding of the time. `end`: it is the first or the
    last of those that are given more.
    """

    name: str
    vector: bool
    alone: bool
    end: bool


def seen(network: nn.Module, run: Run) -> list[Seen]:
    """The linear and convolution layers in the order in which `run` first calls them; ValueError if it calls none."""
    ranks: dict[str, int] = {}
    names = {module: name for name, module in network.named_modules()}

    def hear(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            ranks.setdefault(names[module], given[0].ndim)

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(hear) for module in leaves if module is not network]
    with hooked(handles), in_use(network):
        run(network)
    weighted = [name for name in ranks if isinstance(network.get_submodule(name), WEIGHTED)]
    if not weighted:
        raise ValueError("the run called no linear or convolution layer of the network: give the network that it calls")

    def vectors(parent: str) -> bool:
        return all(rank <= 2 for name, rank in ranks.items() if not parent or name.startswith(f"{parent}."))

    ends = [name for name in weighted if ranks[name] > 2][:: max(1, sum(ranks[name] > 2 for name in weighted) - 1)]
    return [Seen(name, ranks[name] <= 2, vectors(name.rpartition(".")[0]), name in ends) for name in weighted]


def weight_bytes(network: nn.Module) -> int:
    """What the parameters and buffers take, quantised ones as they are kept."""
    total = 0
    for tensor in {**dict(network.named_buffers()), **network.state_dict()}.values():
        parts = [tensor]
        if hasattr(tensor, "tensor_data_names"):  # torchao's
            names = [*tensor.tensor_data_names, *getattr(tensor, "optional_tensor_data_names", [])]
            parts = [part for name in names if isinstance(part := getattr(tensor, name), Tensor)]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total
