"""A model folder small enough to evaluate in milliseconds, and the ways in which a folder can be damaged."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fewstep.adapters.unet2d_network import UNet2D

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = ["circle", "square", "star"]
SIDE = 8


CONFIG = {
    "_class_name": "UNet2DModel", "sample_size": SIDE, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 4, "norm_eps": 1e-5, "attention_head_dim": 8, "add_attention": False, "freq_shift": 0,
    "flip_sin_to_cos": True, "resnet_time_scale_shift": "default",
}  # fmt: skip


def save_model(folder: Path, classes: Sequence[str] = CLASSES, **config: Any) -> Path:
    """An untrained class-conditional network with the files of a packaged model; with `dropout`, of diffusers'."""
    config = {**CONFIG, "num_class_embeds": len(classes) + 1, **config}
    torch.manual_seed(0)
    network = UNet2D(config)
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / WEIGHTS)
    card = {"classes": list(classes), "null_label": len(classes), "sigma_max": 20.0}
    for name, content in (("config.json", config), ("fewstep.json", card)):
        (folder / name).write_text(json.dumps(content))
    return folder


def _edit(name, **changes):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return damage


def _truncate(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _drop_a_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("conv_in.weight")
    save_file(tensors, folder / WEIGHTS)


def _poison(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0] = math.inf
    save_file(tensors, folder / WEIGHTS)


# What is done to the folder, and what the message must say.
DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "config cut off": (
        lambda folder: (folder / "config.json").write_text('{"_class_'),
        "config.json is not valid JSON",
    ),
    "config not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"), "is not valid JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[1]"), "must hold a JSON object; got list"),
    "another class": (_edit("config.json", _class_name="AutoencoderKL"), "a UNet2DModel; got 'AutoencoderKL'"),
    "no size": (_edit("config.json", sample_size=None), "has no sample_size"),
    "another width": (_edit("config.json", block_out_channels=[16, 8]), "does not hold a whole UNet2DModel"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "weights cut off": (_truncate, "does not hold a whole UNet2DModel"),
    "weights overwritten": (lambda folder: (folder / WEIGHTS).write_bytes(b"no" * 50), "does not hold a whole"),
    "a tensor missing": (_drop_a_tensor, "conv_in.weight"),
    "another preconditioning": (_edit("fewstep.json", preconditioning="vp"), "preconditioning must be 'edm'; got 'vp'"),
    "a word for a number": (
        _edit("fewstep.json", sigma_data="half"),
        "sigma_data must be a positive number; got 'half'",
    ),
    "data without spread": (_edit("fewstep.json", sigma_data=0), "sigma_data must be a positive number; got 0"),
    "data of negative spread": (
        _edit("fewstep.json", sigma_data=-0.5),
        "sigma_data must be a positive number; got -0.5",
    ),
    "data of no spread known": (
        _edit("fewstep.json", sigma_data=math.nan),
        "sigma_data must be a positive number; got nan",
    ),
    "levels not told": (_edit("fewstep.json", noise_scale=0), "noise_scale must be a positive number; got 0"),
    "no end of noise": (_edit("fewstep.json", sigma_max=math.inf), "sigma_max must be a positive number; got inf"),
    "classes a string": (_edit("fewstep.json", classes="cat"), "classes must be a list of names; got 'cat'"),
    "classes numbers": (_edit("fewstep.json", classes=[1, 2]), "classes must be a list of names; got [1, 2]"),
    "too many classes": (_edit("fewstep.json", classes=list("abcde")), "classes must be at most 4, which the network"),
    "null label above": (_edit("fewstep.json", null_label=4), "null_label must be one of the 4 labels of the network"),
    "null label below": (_edit("fewstep.json", null_label=-1), "null_label must be one of the 4 labels of the network"),
    "null label a word": (_edit("fewstep.json", null_label="no"), "null_label must be an integer, or null; got 'no'"),
    "null label broken": (_edit("fewstep.json", null_label=0.5), "null_label must be an integer, or null; got 0.5"),
    "a word misspelt": (
        _edit("fewstep.json", sigma_dat=0.3),
        "'sigma_dat' is not known; there are preconditioning, sig",
    ),
    "a patch that does not fit": (_edit("fewstep.json", patch=2), "patch must be an integer whose square divides 3"),
    "no patch": (_edit("fewstep.json", patch=0), "patch must be an integer of at least 1; got 0"),
    "a size in words": (_edit("config.json", sample_size="8"), "sample_size must be the side of the images"),
    "three sizes": (_edit("config.json", sample_size=[8, 8, 8]), "sample_size must be the side of the images"),
    "no size at all": (_edit("config.json", sample_size=0), "sample_size must be the side of the images"),
    "too many layers": (
        _edit("config.json", layers_per_block=10**7),
        "the configuration has 20000000 layers, the weights 103 tensors",
    ),
    "layers without end": (
        _edit("config.json", block_out_channels=[10**6, 10**6]),
        "class_embedding.weight is (4, 32) in the weights, (4, 4000000) in the configuration",
    ),
    "weights not finite": (_poison, "mid_block.resnets.0.conv1.weight holds NaN or inf as torch.float32"),
    "levels reversed": (_edit("fewstep.json", sigma_max=1e-3), "EDM needs 0 < sigma_min < sigma_max"),
}
