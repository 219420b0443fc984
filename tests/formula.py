"""Weights and inputs by a formula, the same wherever a network is filled with them."""

import zlib

import numpy as np
import torch


def values(name, shape):
    """Numbers in [-1, 1] that depend on nothing but the name and the shape."""
    count = int(np.prod(shape))
    start = zlib.crc32(name.encode()) % 1000
    return torch.from_numpy(np.sin(1.7 * np.arange(count) + start).reshape(shape)).float()


def fill(network):
    """Every parameter by its name; filters that are constants stay."""
    state = network.state_dict()
    for name, each in state.items():
        if name.rpartition(".")[2] in ("resample_filter", "sigmas"):
            continue
        size = 0.2 if each.ndim > 1 else 0.5
        lift = 1.0 if each.ndim == 1 and name.endswith("weight") else 0.0
        each.copy_(lift + size * values(name, each.shape))
    return network
