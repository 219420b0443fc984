"""Data sets of images, from a file or by name."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import read_npz
from ..models import CIFAR10

__all__ = ["CLASSES", "load_images", "resized", "to_unit_range"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_images(source: str | Path = CIFAR10) -> tuple[Tensor, Tensor | None]:
    """uint8 images (N, 3, H, W) and their classes, int64 (N,), if there are any.

    `source` is a data set's name on the Hugging Face hub (its split "train"; needs the package datasets), or an npz
    file with `images` (N, H, W, 3), or with JPEG files one after another in `jpeg` and their `offsets` (N + 1,), and
    with `labels` (N,) if there are classes.
    """
    path = Path(source)
    if path.suffix == ".npz":
        if not path.exists():
            raise FileNotFoundError(f"no file {path}: give an npz file of images, or a name such as {CIFAR10}")
        file = read_npz(path)
        if not {"images", "jpeg"} & set(file):
            raise ValueError(f"{path} holds neither `images` nor `jpeg`, but {', '.join(file)}")
        images = file["images"] if "images" in file else _decoded(path, file)
        labels = file.get("labels")
    else:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ImportError("loading data by name needs datasets: pip install 'fewstep[train]'") from error
        table = load_dataset(str(source), split="train")
        columns = {kind: name for name, feature in table.features.items() for kind in [type(feature).__name__]}
        from ..pictures import rgb

        images = np.stack([rgb(f"{source}: image {i}", image) for i, image in enumerate(table[columns["Image"]])])
        labels = np.asarray(table[columns["ClassLabel"]]) if "ClassLabel" in columns else None
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"{source} must hold uint8 images (N, H, W, 3); got {images.dtype} {images.shape}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{source} must hold one label an image; got {labels.shape} for {len(images)} images")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{source} must hold integers as labels, the numbers of classes; got {labels.dtype}")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def _decoded(path: Path, file: Mapping[str, np.ndarray]) -> np.ndarray:
    from PIL import Image

    content, offsets = file["jpeg"].tobytes(), file.get("offsets")
    if offsets is None:
        raise ValueError(f"{path} must hold `offsets` (N + 1,), where each file in `jpeg` begins; it has none")
    whole = offsets.ndim == 1 and len(offsets) > 1 and np.issubdtype(offsets.dtype, np.integer)
    if not whole or offsets[0] < 0 or offsets[-1] > len(content) or (np.diff(offsets) <= 0).any():
        raise ValueError(
            f"{path}: `offsets` must be rising integers (N + 1,) within the {len(content)} bytes of `jpeg`"
        )
    images = []
    for i, (start, end) in enumerate(pairwise(offsets.tolist())):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(content[start:end])).convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow has for a file that is cut, or none
            raise ValueError(f"{path}: image {i} of `jpeg` is not a whole image file: copy it anew") from error
        if images[i].shape != images[0].shape:
            raise ValueError(f"{path}: image {i} of `jpeg` is {images[i].shape}, those before it {images[0].shape}")
    return np.stack(images)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1], the range of the packaged models."""
    return images.float() / 127.5 - 1


def resized(images: Tensor, side: int) -> Tensor:
    """Square images (N, 3, H, H) at another side: means over squares of pixels; `side` must divide H."""
    if images.shape[-1] != images.shape[-2] or images.shape[-1] % side:
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels cannot be shrunk to {side} x {side}"
        )
    return torch.nn.functional.avg_pool2d(images, images.shape[-1] // side)
