"""Inception Score, KID, precision and recall, by torch-fidelity. Needs the extra `fidelity`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .extractors import INCEPTION, LAYER
from .shards import Batch, Shards

__all__ = ["measures"]

KID_SUBSET = 1000  # torch-fidelity's default; fewer images take subsets of all


class _Images(Dataset[Tensor]):
    """The images of shards one by one, a batch of them in memory."""

    def __init__(self, shards: Shards):
        self.shards, self.parts = shards, [part for shard in shards for part in shards.parts(shard)]
        self.at, self.batch = -1, dict[str, Any]()

    def __len__(self) -> int:
        return len(self.shards.seeds)

    def __getitem__(self, index: int) -> Tensor:
        at, place = divmod(index, self.shards.batch)
        if at != self.at:
            batch: Batch = self.shards.batch_of(self.parts[at])
            self.at, self.batch = at, dict(batch)
        return torch.from_numpy(self.batch["images"][place]).permute(2, 0, 1)


class _Rows(Dataset[Tensor]):
    """Images (N, 3, H, W), one by one."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def measures(
    shards: Shards,
    reference: Tensor | None,
    wanted: Sequence[str],
    weights: str,
    device: str = "cpu",
    extractor: str = INCEPTION,
) -> dict[str, float]:
    """torch-fidelity's metrics under its own names. It keeps the features of all images: 8 KiB an image.

    `extractor` is any that torch-fidelity knows; `reference` images (N, 3, H, W) uint8, for all but "isc".
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise ImportError("these metrics need torch-fidelity: pip install 'fewstep[fidelity]'") from error
    layers = {f"feature_layer_{name}": LAYER for name in ("kid", "prc")}
    count = min(len(shards.seeds), len(reference) if reference is not None else KID_SUBSET)
    found: dict[str, float] = calculate_metrics(
        input1=_Images(shards), input2=None if reference is None else _Rows(reference),
        isc="isc" in wanted, kid="kid" in wanted, prc=bool({"precision", "recall"} & set(wanted)),
        feature_extractor=extractor, feature_extractor_weights_path=weights or None,
        kid_subset_size=min(KID_SUBSET, count), cuda=device != "cpu", save_cpu_ram=True, verbose=False, **layers,
    )  # fmt: skip
    return found
