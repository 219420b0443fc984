"""CIFAR-10's training images, from a file or by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["CLASSES", "load_cifar10", "to_unit_range"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUB_NAME = "uoft-cs/cifar10"


def load_cifar10(source: str | Path = HUB_NAME) -> tuple[Tensor, Tensor]:
    """The 50,000 training images, uint8 (N, 3, 32, 32), and their classes, int64 (N,), numbered as `CLASSES`.

    `source` is the data set's name on the Hugging Face hub (needs the package datasets), or an npz file with
    `labels` (N,) and either `images` (N, 32, 32, 3) or JPEG files one after another in `jpeg` with their `offsets`
    (N + 1,).
    """
    path = Path(source)
    if path.suffix == ".npz":
        if not path.exists():
            raise FileNotFoundError(f"no file {path}: give an npz file of CIFAR-10, or the name {HUB_NAME!r}")
        with np.load(path, allow_pickle=False) as file:
            images = file["images"] if "images" in file else _decoded(file["jpeg"].tobytes(), file["offsets"])
            labels = file["labels"]
    else:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ImportError("loading data by name needs datasets: pip install 'fewstep[train]'") from error
        table = load_dataset(str(source), split="train")
        images = np.stack([np.asarray(image) for image in table["img"]])
        labels = np.asarray(table["label"])
    if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(f"{source} must hold uint8 images (N, 32, 32, 3); got {images.dtype} {images.shape}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def _decoded(content: bytes, offsets: np.ndarray) -> np.ndarray:
    from PIL import Image

    files = (content[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1], the range of the packaged models."""
    return images.float() / 127.5 - 1
