"""Files of images as measurements, and restorations beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..bench.metrics import psnr
from ..files import sha256_of
from ..pictures import alpha, check_opaque, headed, opened, pixels
from ..restore import Linear, Spectrum, deblurring, inpainting, superresolution
from ..sampling import unit_noise

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'fewstep[cli]'") from error

__all__ = ["Degraded", "Task", "degraded", "image_files", "mask_of", "spectrum_of"]

ROWS, COLUMNS = 16, 8  # images of the picture, and restorations of each
MIDDLE = 128  # of 255
LEAST_BLUR = 0.1  # a neighbour's weight is exp(-50), which float32 loses beside 1
LONGEST = 200  # bytes of a name, of 255: the seed has up to 19 digits, and a file being written a suffix


class Task(NamedTuple):
    """What degraded an image, by the options of `fewstep restore`."""

    name: str
    mask: Path | None
    factor: int
    blur: float
    noise: float
    degrade: bool


@dataclass(frozen=True, eq=False)
class Degraded:
    """Measurements y (K, *) of K images by `operators`; and the images, `truth` (K, C, H, W), if they are known."""

    y: Tensor
    operators: Sequence[Linear]
    truth: Tensor | None
    noise: float

    def operator(self, images: Sequence[int]) -> Linear:
        """Of a batch (B, C, H, W) of these images."""
        chosen = [self.operators[k] for k in images]
        if all(each is chosen[0] for each in chosen):
            return chosen[0]
        return Linear(
            lambda x: torch.cat([each.A(one[None]) for each, one in zip(chosen, x, strict=True)]), chosen[0].shape
        )

    def figures(self, restored: Mapping[int, Mapping[int, np.ndarray]]) -> dict[str, float]:
        """Of restorations, (H, W, 3) uint8 by image and seed: what they leave of y, over its noise; PSNR in dB for a
        range of 2, of each and of an image's mean."""
        left, each, of_mean = [], [], []
        for k, by_seed in restored.items():
            x = torch.stack([_tensor(array, self.y.shape[1]) for array in by_seed.values()])
            operator = self.operators[k]
            seen = operator.A(torch.ones_like(x)) > 0
            left.append((self.y[k] - operator.A(x))[seen].square().mean())
            if self.truth is not None:
                each += list(psnr(x, self.truth[k]))
                of_mean.append(psnr(x.mean(0), self.truth[k]))
        found = {"residual": torch.stack(left).mean().sqrt() / self.noise} if left else {}
        if each:
            found |= {"psnr": torch.stack(each).mean(), "psnr_of_mean": torch.stack(of_mean).mean()}
        return {name: round(float(value), 3) for name, value in found.items()}

    def picture(self, restored: Mapping[int, Mapping[int, np.ndarray]], seeds: Sequence[int]) -> np.ndarray:
        """A row an image: y, its restorations by seed, and the truth."""
        shown, rows = list(seeds)[:COLUMNS], list[np.ndarray]()
        for k, by_seed in list(restored.items())[:ROWS]:
            like, y = next(iter(by_seed.values())), pixels(self.y[[k]])[0]
            rows.append(y.repeat(len(like) // len(y), 0).repeat(len(like) // len(y), 1))
            rows += [by_seed.get(seed, np.full_like(like, 255)) for seed in shown]
            rows += [] if self.truth is None else [pixels(self.truth[[k]])[0]]
        names = ["measured", *(f"seed {seed}" for seed in shown), *(["truth"] if self.truth is not None else [])]
        return headed(np.stack(rows), names)


def image_files(path: Path) -> list[Path]:
    """The file, or the images in the folder, by name."""
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: give an image, or a folder of images")
    if not path.is_dir():
        return [_storable(path)]
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    seen = (each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    found = sorted(each for each in seen if each.suffix.lower() in known)
    if not found:
        raise FileNotFoundError(f"no images in {path}: give an image, or a folder of images")
    stems = [each.stem for each in found]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(f"{path} has several images of the name {min(twice)}: rename or move one")
    return list(map(_storable, found))


def _storable(file: Path) -> Path:
    """If its restorations can have its name, which is then a line of SHA256SUMS."""
    try:
        length = len(file.stem.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{file.name!a} is no name in UTF-8: rename it") from None
    if "\\" in file.stem or len(f"{file.stem}.".splitlines()) > 1:
        raise ValueError(f"{file.name!a} has a backslash or the end of a line in its name: rename it")
    if length > LONGEST:
        raise ValueError(f"{file.name!a} has a name of {length} bytes, of which {LONGEST} are left to it: shorten it")
    return file


def mask_of(file: Path, mask: Path | None) -> Path | None:
    """The file of an image's mask, out of a folder of them: of its name, or of its stem."""
    if mask is None or not mask.is_dir() or (mask / file.name).is_file():
        return mask / file.name if mask is not None and mask.is_dir() else mask
    for each in image_files(mask):
        if each.stem == file.stem:
            return each
    raise FileNotFoundError(f"no mask of {file.name} in {mask}: give an image of the name {file.stem}")


def degraded(files: Sequence[Path], task: Task, shape: tuple[int, ...]) -> Degraded:
    """Of images that are degraded such of `shape`, (C, H, W), or, if `task.degrade`, that are whole."""
    channels, height, width = shape
    shrunk = task.factor if task.name == "superres" else 1
    if task.name == "superres":
        with _option("--factor"):
            operators = [superresolution(task.factor, shape)] * len(files)
    elif task.name == "deblur":
        if 0 < task.blur < LEAST_BLUR:
            raise ValueError(f"--blur: {task.blur} pixels are no blur: give {LEAST_BLUR} or more")
        with _option("--blur"):
            operators = [deblurring(task.blur, shape)] * len(files)
    wanted = (width, height) if task.degrade else (width // shrunk, height // shrunk)
    remedy = "--degrade if it is whole, or crop or resize it" if shrunk > 1 else "crop or resize it"
    images, seen = [], []
    for file in files:
        image = opened(file)
        if image.size != wanted:
            raise ValueError(
                f"{file} has {_size(image.size)} pixels; this model restores {_size((width, height))}, for which it "
                f"must have {_size(wanted)}: {remedy}"
            )
        images.append(_tensor(np.asarray(image.convert("RGB")), channels))
        if task.name == "inpaint":
            seen.append(_seen(file, image, task))
        if task.name != "inpaint" or task.degrade:
            check_opaque(file, image)
        elif task.mask is not None:
            check_opaque(file, image, seen[-1])
    if task.name == "inpaint":
        operators = [inpainting(torch.from_numpy(each)[None].float(), shape) for each in seen]
    stack = torch.stack(images)
    if not task.degrade:
        pairs = zip(operators, stack, strict=True)
        y = torch.stack([each.A(image[None])[0] if task.name == "inpaint" else image for each, image in pairs])
        return Degraded(y, operators, None, task.noise)
    clean = torch.cat([each.A(image[None]) for each, image in zip(operators, stack, strict=True)])
    # Seeds that are of the files alone, and of no restoration.
    y = clean + task.noise * unit_noise([int(sha256_of(file)[:15], 16) for file in files], clean.shape[1:])
    if task.name == "inpaint":
        y = torch.cat([each.A(one[None]) for each, one in zip(operators, y, strict=True)])
    return Degraded(y, operators, stack, task.noise)


def spectrum_of(files: Sequence[Path], shape: tuple[int, ...]) -> Spectrum:
    """Of images of `shape`, (C, H, W)."""
    channels, height, width = shape
    images = []
    for file in files:
        image = opened(file)
        if image.size != (width, height):
            raise ValueError(
                f"--spectrum: {file} has {_size(image.size)} pixels, and this model's images {_size((width, height))}: "
                "crop or resize it"
            )
        with _option("--spectrum"):
            check_opaque(file, image)
        images.append(_tensor(np.asarray(image.convert("RGB")), channels))
    if len(images) < 2:
        raise ValueError(f"--spectrum: {files[0]} is one image, which varies by nothing: give a folder of two or more")
    return Spectrum.of(torch.stack(images))


@contextmanager
def _option(name: str) -> Iterator[None]:
    """Errors name the option."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _seen(file: Path, image: Image.Image, task: Task) -> np.ndarray:
    """Where the image is seen, (H, W)."""
    size = image.size
    if (mask := mask_of(file, task.mask)) is not None:
        drawn = opened(mask)
        if drawn.size != size:
            raise ValueError(
                f"{mask} has {_size(drawn.size)} pixels, and {file} {_size(size)}: a mask must have its image's size"
            )
        if drawn.has_transparency_data:
            clear = drawn.convert("RGBA")
            drawn = Image.alpha_composite(Image.new("RGBA", size, "black"), clear)
        grey = np.asarray(drawn.convert("L"))
        seen = grey < MIDDLE
        if seen.all():
            raise ValueError(
                f"{mask} leaves nothing to fill in, its lightest pixel is {grey.max()} of 255: make it white, {MIDDLE} "
                "or more, where to fill in"
            )
    elif task.degrade:
        seen = np.tile(np.arange(size[0]) < size[0] // 2, (size[1], 1))
    else:
        seen = alpha(image) >= MIDDLE
        if seen.all():
            raise ValueError(
                f"{file} is nowhere transparent, by half or more: give a --mask, white where to fill in, or make it "
                "transparent there"
            )
    if not seen.any():
        raise ValueError(f"{mask or file}: the mask leaves nothing seen: give one that fills in less")
    return seen


def _tensor(array: np.ndarray, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1] of (H, W, 3) uint8; of one colour, their mean."""
    x = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
    return x if channels == 3 else x.mean(0, keepdim=True)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
