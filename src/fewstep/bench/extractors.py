"""What sees the images: networks whose features Fréchet distances are measured in, and what those are to.

An extractor takes uint8 pixels (B, 3, H, W) and returns features (B, d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import read_npz, sha256_of
from ..models import MODELS
from .images import load_images, to_unit_range
from .metrics import Moments, Running

__all__ = ["Extractor", "Reference", "load_extractor", "load_reference"]

CLASSIFIER = "cifar32-classifier"
PACKAGED = MODELS / CLASSIFIER / "moments.npz"
BATCH = 250
INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of TensorFlow's FID
INCEPTION_SHA256 = "6726825d"  # begins so; the file of torch-fidelity's release v0.2.0 is named after it
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION_SHA256}.pth"
LAYER = "2048"  # of Inception, for FID


@dataclass(frozen=True)
class Extractor:
    """`title` names the distance in reports; `identity` tells what the features depend on."""

    title: str
    identity: str
    features: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        found = torch.cat([self.features(part) for part in images.split(BATCH)])
        if found.ndim != 2 or len(found) != len(images):
            raise ValueError(f"{self.identity} must return features ({len(images)}, d); got {tuple(found.shape)}")
        return found


@dataclass(frozen=True)
class Reference:
    """The moments that distances are to, and the images (N, 3, H, W) uint8 that they are of, if those are known."""

    identity: str
    moments: Moments
    images: Tensor | None = None


def load_extractor(name: str, weights: str = "", device: str = "cpu") -> Extractor:
    """The packaged "classifier"; "inception", with torch-fidelity and its weights; else a file or a function.

    A file is TorchScript (.pt, .ts, .torchscript) or ONNX (.onnx); a function is given as `module:function`, and takes
    the pixels. ImportError and FileNotFoundError say what to install and which file to get.
    """
    if name == "classifier":
        return _classifier(device)
    if name == "inception":
        return _inception(weights, device)
    path = Path(name)
    if path.suffix in (".pt", ".ts", ".torchscript", ".onnx"):
        if not path.is_file():
            raise FileNotFoundError(f"no extractor {path}: give a TorchScript or ONNX file, or 'classifier'")
        made = _onnx(path) if path.suffix == ".onnx" else _torchscript(path, device)
        return Extractor(f"Fréchet distance in {path.stem}", f"{path.name} sha256:{sha256_of(path)}", made)
    if ":" in name:
        from .subjects import imported

        return Extractor(f"Fréchet distance in {name}", name, imported(name))
    raise ValueError(
        f"no extractor {name!r}; choose from classifier, inception, a .torchscript or .onnx file, or module:function"
    )


def load_reference(path: str, extractor: Extractor) -> Reference:
    """From an npz file: moments (`mu`, `sigma`), features (`pool_3`), or images as `load_images` reads them.

    Without a path, of the packaged classifier, those of its training data.
    """
    if not path:
        if not extractor.identity.startswith(CLASSIFIER):
            raise ValueError(f"a {extractor.title} is to something: give a reference, an npz file of images or moments")
        path = str(PACKAGED)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no reference {path}: give an npz file of images, features or moments")
    identity, arrays = f"{Path(path).name} sha256:{sha256_of(Path(path))}", read_npz(Path(path))
    try:
        if {"mu", "sigma"} <= set(arrays):
            mean, covariance = (torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in ("mu", "sigma"))
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise ValueError(f"mu and sigma are of {tuple(mean.shape)} and {tuple(covariance.shape)}")
            return Reference(identity, Moments(mean, covariance))
        running = Running()
        if "pool_3" in arrays:
            for part in torch.from_numpy(arrays["pool_3"]).flatten(1).split(BATCH):
                running.add(part)
            return Reference(identity, running.moments())
        images, _ = load_images(path)
    except ValueError as error:
        raise ValueError(f"{path} is no reference ({error}): give images, or mu and sigma") from error
    for part in images.split(BATCH):
        running.add(extractor(part).cpu())
    return Reference(identity, running.moments(), images)


def _classifier(device: str) -> Extractor:
    from .classifier import FOLDER, WEIGHTS, load_classifier

    network = load_classifier(device=device)

    def features(images: Tensor) -> Tensor:
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(
                f"the classifier sees 3 x 32 x 32 pixels, not {tuple(images.shape[1:])}: give an extractor"
            )
        return network.features(to_unit_range(images.to(device)))

    title = f"Fréchet distance in {CLASSIFIER}, which is not FID"
    return Extractor(title, f"{CLASSIFIER} sha256:{sha256_of(FOLDER / WEIGHTS)}", features)


def _inception(weights: str, device: str) -> Extractor:
    path = Path(weights)
    if not weights or not path.is_file():
        raise FileNotFoundError(
            f"no weights of Inception{f' at {path}' if weights else ''}: get {INCEPTION_FILE} of torch-fidelity's "
            "release v0.2.0 from GitHub, and give its path as weights"
        )
    found = sha256_of(path)
    if not found.startswith(INCEPTION_SHA256):
        raise ValueError(f"{path} has SHA-256 {found}, and {INCEPTION_FILE} has another: download it again")
    network = fidelity_network(INCEPTION, weights, device)
    return Extractor("FID", f"{INCEPTION} sha256:{found}", lambda images: network(images.to(device))[0])


def fidelity_network(name: str, weights: str, device: str) -> Any:
    """A feature extractor that torch-fidelity knows by `name`, for the layer of FID."""
    try:
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as error:
        raise ImportError("Inception needs torch-fidelity: pip install 'fewstep[fidelity]'") from error
    return create_feature_extractor(
        name, [LAYER], cuda=device != "cpu", feature_extractor_weights_path=weights or None, verbose=False
    )


def _torchscript(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is not a whole TorchScript file: save one with torch.jit.save") from error
    return lambda images: network(images.to(device))


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an ONNX extractor needs onnxruntime: pip install onnxruntime") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has its own kinds
        raise ValueError(f"{path} is not a whole ONNX file ({error}): export it again") from error
    given = session.get_inputs()[0]
    kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
    return lambda images: torch.from_numpy(session.run(None, {given.name: images.cpu().numpy().astype(kind)})[0])
