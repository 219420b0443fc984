"""From the files that authors published to folders that `load_model` reads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models import read_json
from . import unpickle
from .adm import ADMCard
from .edm import EDMCard
from .folder import CLASSIFIER, CONFIG, NETWORK, compared, read_fields, write_folder
from .networks.adm import ADMClassifier, ADMUNet
from .networks.edm import DHARIWAL, EDMUNet
from .networks.score_sde import NCSNpp
from .published import ADM, ADM_CLASSIFIERS, SCORE_SDE
from .score_sde import ScoreSDECard
from .torch_files import plain_tensors, read_torch_file

__all__ = ["convert_adm", "convert_edm", "convert_score_sde"]

SECONDS = 3600  # a pickle of any size is read in
KEPT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "WINDIR", "TMPDIR", "TEMP", "TMP")  # of the environment
PRECONDITIONING = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}


def convert_edm(path: Path, out: Path, *, trust_pickle: bool) -> str:
    """A network of EDM as a folder; what was done for safety, in words.

    Its file is a pickle, which can execute anything where it is opened the usual way. Here it is read by a process of
    its own that executes nothing of it (`unpickle`), without this one's environment and, where the system lets it,
    without a network. ValueError, or PermissionError without `trust_pickle`.
    """
    if not trust_pickle:
        raise PermissionError(
            f"{path} is a pickle, a program that runs when it is opened. fewstep reads it without running it, in a "
            "process of its own; if you trust its source all the same, add --trust-pickle"
        )
    _check_target(path, out)
    with tempfile.TemporaryDirectory(prefix="fewstep-convert-") as own:
        found = _read_apart(path, Path(own))
        card = _edm_card(found, path)
        from safetensors.torch import load_file

        state = load_file(Path(own) / "state.safetensors")
        _write(out, "edm", card, {NETWORK: (EDMUNet, card.network, state)}, path)
    alone = "without network" if found["alone"] else "with network, which this system does not let a user take away"
    memory = "memory limited" if found["limited"] else "memory not limited on this system"
    return f"read by a process of its own that runs nothing of the file; no secrets inherited, {alone}, {memory}"


def _read_apart(path: Path, own: Path) -> dict[str, Any]:
    """Let the other process read into `own`."""
    import safetensors

    command = [sys.executable, "-P", "-s", str(Path(unpickle.__file__).resolve()), str(path.resolve()), str(own)]
    libraries = dict.fromkeys(str(Path(str(each.__file__)).parents[1]) for each in (torch, np, safetensors))
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"HOME": str(own), "PYTHONPATH": os.pathsep.join(libraries)}
    try:
        done = subprocess.run(
            command, cwd=own, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{path} was not read within {SECONDS} s: it is refused") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise ValueError(f"{path} is not a network of EDM ({lines[-1]}): it is refused")
    return read_json(own / "found.json")


def _edm_card(found: Mapping[str, Any], path: Path) -> EDMCard:
    kind = PRECONDITIONING.get(found["precond"])
    if kind is None:
        known = ", ".join(PRECONDITIONING)
        raise ValueError(f"{path}: its class must be one of {known}; got {found['precond']!r}")
    arguments, told = dict(found["arguments"]), found["told"]
    network = (DHARIWAL if found["model_type"] == "DhariwalUNet" else {}) | arguments
    # EDM's own range is [0, inf]; the authors sample in [0.002, 80] of it.
    low, high = (0.002, 80.0) if kind == "edm" else (told["sigma_min"], told["sigma_max"])
    facts = {
        **{name: told[name] for name in ("sigma_data", "beta_d", "beta_min", "M") if name in told},
        "network": {**network, "model_type": found["model_type"]}, "preconditioning": kind, "sigma_min": low,
        "sigma_max": high, "source": path.name,
    }  # fmt: skip
    card: EDMCard = read_fields(EDMCard, facts, str(path))
    return card


def convert_adm(path: Path, out: Path, *, classifier: Path | None = None, config: str | None = None) -> str:
    """A network of guided diffusion, and its classifier if there is one, as a folder.

    config: a JSON file with the fields of `ADMCard`, or one of the published names; without, that of the file. The
    classifier's is found by its file's name, or is under "classifier" in a JSON file.
    """
    _check_target(path, out)
    facts = _facts(config or path.stem, ADM)
    if classifier is None:
        facts.pop("classifier", None)
    elif "classifier" not in facts:
        facts["classifier"] = _facts(classifier.stem, ADM_CLASSIFIERS)
    card: ADMCard = read_fields(ADMCard, {**facts, "source": path.name}, config or path.stem)
    card.betas()
    parts = {NETWORK: (ADMUNet, card.network, plain_tensors(read_torch_file(path), path))}
    if classifier is not None:
        state = plain_tensors(read_torch_file(classifier), classifier)
        parts[CLASSIFIER] = (ADMClassifier, card.classifier, state)  # type: ignore[assignment]
    _write(out, "adm", card, parts, path)
    return "read as tensors alone"


def convert_score_sde(path: Path, out: Path, *, config: str | None = None) -> str:
    """A checkpoint of score_sde_pytorch, its averaged weights, as a folder.

    config: a JSON file with the fields of `ScoreSDECard`, or one of the published configurations, which is also found
    by the folders of the file.
    """
    _check_target(path, out)
    name = config or next((each for each in SCORE_SDE if str(path.resolve().parent).endswith(each)), path.parent.name)
    facts = _facts(name, SCORE_SDE)
    card: ScoreSDECard = read_fields(ScoreSDECard, {**facts, "source": path.name}, name)
    state = averaged(read_torch_file(path), path)
    _write(out, "score-sde", card, {NETWORK: (NCSNpp, card.network, state)}, path)
    return "read as tensors alone, the averaged ones"


def averaged(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint's "model", each parameter replaced by its average, which "ema" lists in order.

    Averages are of what was trained: not of the levels, nor of the frequencies of a Fourier embedding.
    """
    try:
        model, shadows = content["model"], content["ema"]["shadow_params"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f'{path} is no checkpoint of score_sde_pytorch: it has no "model" and "ema"') from error
    state = {name.removeprefix("module."): each for name, each in plain_tensors(model, path).items()}
    trained = [name for name in state if name not in ("sigmas", "all_modules.0.W")]
    if not isinstance(shadows, list) or len(shadows) != len(trained):
        raise ValueError(f"{path}: its averages do not fit its {len(trained)} parameters: copy it again")
    averages = plain_tensors(dict(zip(trained, shadows, strict=True)), path)
    for name, each in averages.items():
        if each.shape != state[name].shape:
            raise ValueError(
                f"{path}: the average of {name} is of shape {tuple(each.shape)}, the parameter of "
                f"{tuple(state[name].shape)}: copy it again"
            )
    return state | averages


def _facts(name: str, published: Mapping[str, Any]) -> dict[str, Any]:
    if name in published:
        return dict(published[name])
    if name.endswith(".json"):
        return read_json(Path(name))
    raise ValueError(
        f"no configuration {name!r}: give --config, a JSON file or one of the published, {', '.join(published)}"
    )


def _check_target(path: Path, out: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (out / CONFIG).exists():
        raise FileExistsError(f"{out} holds a model already: choose another folder, or remove it")


Part = tuple[Callable[[Any], nn.Module], Any, dict[str, Tensor]]


def _write(out: Path, family: str, card: Any, parts: Mapping[str, Part], source: Path) -> None:
    """The folder of weights that fit their configuration, or ValueError that names those that do not."""
    for file, (make, config, state) in parts.items():
        try:
            compared(make, config, {name: tuple(each.shape) for name, each in state.items()})
        except Exception as error:  # an impossible configuration may fail in any way
            raise ValueError(f"{source}: {file} does not fit its configuration ({error})") from error
        bad = next((name for name, each in state.items() if not bool(each.isfinite().all())), None)
        if bad is not None:
            raise ValueError(f"{source}: {bad} holds NaN or inf: copy it again")
    write_folder(out, {"family": family, **asdict(card)}, {file: state for file, (_, _, state) in parts.items()})
