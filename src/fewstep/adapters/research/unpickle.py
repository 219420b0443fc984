"""Reads the network in a pickle of EDM, and executes nothing of it. A program of its own, which `convert` runs:

    python -P unpickle.py net.pkl folder

Such pickles carry the source code of their classes, which their authors' loader executes. Here every name in a pickle
is a stand-in: tensors are put together, everything else is inert, and a name that no such network needs is refused.
Into `folder` go state.safetensors, the tensors of the averaged network ("ema"), and found.json, its arguments. Before a
byte is read, the process leaves the network where the system lets it, and limits its memory by the size of the file.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

USER, NET = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of Linux
COPIES, ROOM = 4, 2**30  # address space: of the file, and beside it
TOLD = ("sigma_data", "sigma_min", "sigma_max", "beta_d", "beta_min", "M")


def leave_network() -> bool:
    """Whether this process has no network from here on. Before any thread is started."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).unshare(USER | NET) == 0)


def limit_memory(size: int) -> bool:
    """Whether the address space is limited to what it is, and some room for a file of this size."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = used + COPIES * size + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        return False
    return True


class Inert:
    """Any object or function that is of no interest: it takes everything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class Module:
    """A module of torch, or one whose code the pickle carries: its attributes."""

    def __init__(self, name: str = "", state: Any = None):
        self.name, self.state = name, state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class EasyDict(dict[str, Any]):
    def __setstate__(self, state: Any) -> None:
        pass


def persistent(meta: Any) -> Module:
    """What the authors' loader executes `module_src` for."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("a persistent object has no class")
    return Module(meta["class_name"], meta.get("state"))


def storage(content: Any) -> Any:
    import torch

    if not isinstance(content, bytes) or content.startswith(b"PK"):  # an archive, which may unpack to any size
        raise pickle.UnpicklingError("a storage is not of torch.save")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    import torch

    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)  # checks its bounds


def parameter(data: Any, *_: Any) -> Any:
    return data


MADE: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent,
    ("torch.storage", "_load_from_bytes"): storage,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): EasyDict,
}
INERT = ("torch", "numpy", "dnnlib", "torch_utils", "_codecs")
PLAIN = ("set", "frozenset", "slice", "complex", "bytearray", "range")


class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in MADE:
            return MADE[module, name]
        if module.startswith("torch.nn.modules."):
            return Module
        if module.split(".")[0] in INERT or (module in ("builtins", "__builtin__") and name in PLAIN):
            return Inert
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no network of EDM needs")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def attributes(module: Any) -> dict[str, Any]:
    if not isinstance(module, Module) or not isinstance(module.state, dict):
        raise ValueError("a module has no attributes")
    return module.state


def tensors(module: Any, prefix: str = "", known: set[int] | None = None) -> dict[str, Any]:
    """Of a module and those in it, by their names, as its `state_dict` has them."""
    import torch

    known = set() if known is None else known
    if id(module) in known:  # in itself, or in so many places that there is no end to them
        raise ValueError(f"{prefix.rstrip('.')} is another of its modules, too")
    known.add(id(module))
    state = attributes(module)
    found = {}
    for kind in ("_parameters", "_buffers"):
        for name, each in (state.get(kind) or {}).items():
            if isinstance(each, torch.Tensor):
                found[prefix + str(name)] = each
            elif each is not None:
                raise ValueError(f"{prefix}{name} is no tensor")
    for name, each in (state.get("_modules") or {}).items():
        if each is not None:
            found |= tensors(each, f"{prefix}{name}.", known)
    return found


def plain(value: Any, nested: bool = False) -> bool:
    """Whether it is a number, a word, or a list of these: lists of lists may hold each other, without end."""
    if isinstance(value, list | tuple) and not nested:
        return all(plain(each, nested=True) for each in value)
    return isinstance(value, bool | int | float | str)


def read(file: Any, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and the tensors of the averaged network in a pickle."""
    content = Reader(file).load()
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Module):
        raise ValueError('it has no network under "ema"')
    outer = content["ema"]
    inner: Any = (attributes(outer).get("_modules") or {}).get("model")
    arguments = {**(attributes(inner).get("_init_kwargs") or {})}
    state = tensors(inner)
    if sum(each.numel() * each.element_size() for each in state.values()) > size:
        raise ValueError("its tensors are larger than the file")
    found = {
        "precond": outer.name,
        "model_type": inner.name,
        "arguments": {name: value for name, value in arguments.items() if plain(value)},
        "told": {name: value for name in TOLD if plain(value := attributes(outer).get(name)) and value is not None},
    }
    return found, {name: each.contiguous().clone() for name, each in state.items()}


def main(path: Path, folder: Path) -> None:
    alone = leave_network()
    with path.open("rb") as file:
        import torch  # noqa: F401, before memory is limited
        from safetensors.torch import save_file

        size = path.stat().st_size
        limited = limit_memory(size)
        found, state = read(file, size)
    save_file(state, folder / "state.safetensors")
    found |= {"alone": alone, "limited": limited}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # of a file that may hold anything
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split())[:500])
