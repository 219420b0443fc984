"""Our small UNet is diffusers' UNet2DModel: the same tensors, the same answers."""

import json
from itertools import product

import pytest
import torch

from fewstep.adapters.unet2d_network import FIXED, UNet2D, covers
from fewstep.models import MODELS

UNet2DModel = pytest.importorskip("diffusers", reason="needs the extra diffusers").UNet2DModel
PACKAGED = json.loads((MODELS / "cifar32" / "config.json").read_text())
DEEP = {
    "block_out_channels": [16, 32, 24, 40],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}
KINDS = [
    DEEP | {"resnet_time_scale_shift": shift, "layers_per_block": layers, "attention_head_dim": head} | rest
    for shift, layers, head, rest in product(
        ("default", "scale_shift"),
        (1, 3),
        (8, None),
        ({"num_class_embeds": None, "flip_sin_to_cos": False, "freq_shift": 1}, {"add_attention": False}),
    )
]


def pair(config):
    theirs = UNet2DModel.from_config(config).eval().requires_grad_(False)  # whose numbers are drawn
    ours = UNet2D(config).eval().requires_grad_(False)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def asked(config):
    x = torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor(3.7), None if config["num_class_embeds"] is None else torch.tensor([0, 4, 10])


def test_packaged_network_answers_as_diffusers_bit_for_bit():
    ours, theirs = pair(PACKAGED)
    x, time, labels = asked(PACKAGED)
    assert covers(PACKAGED)
    assert torch.equal(ours(x, time, labels), theirs(x, time, class_labels=labels).sample)


@pytest.mark.parametrize("change", KINDS)
def test_other_networks_answer_as_diffusers(change):
    config = PACKAGED | change
    assert covers(config)
    ours, theirs = pair(config)
    x, time, labels = asked(config)
    # In float64, so that what is left is rounding: of some 1e2 operations one after another, each of 1e-16.
    ours, theirs, x = ours.double(), theirs.double(), x.double()
    torch.testing.assert_close(
        ours(x, time, labels), theirs(x, time, class_labels=labels).sample, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "gelu"},
        {"time_embedding_type": "fourier"},
        {"new": 1},
        {"dropout": 0.1},
        {"attention_head_dim": 36},
        {"block_out_channels": [96, 160]},
        {"norm_eps": "1e-5"},
        {"norm_eps": -1.0},
        {"norm_num_groups": True},
        {"attention_head_dim": 8.0},
        {"freq_shift": None},
        {"flip_sin_to_cos": "false"},
    ],
)
def test_other_configurations_are_left_to_diffusers(change):
    assert not covers(PACKAGED | change)


def test_a_configuration_that_leaves_out_what_must_be_known_is_left_to_diffusers():
    for key in PACKAGED.keys() - FIXED.keys():
        if not key.startswith("_"):
            assert not covers({name: value for name, value in PACKAGED.items() if name != key})


def test_labels_are_asked_for_where_there_are_classes():
    x, time, labels = asked(PACKAGED)
    with pytest.raises(ValueError, match="class_labels"):
        UNet2D(PACKAGED)(x, time)
    with pytest.raises(ValueError, match="class_labels"):
        UNet2D(PACKAGED | {"num_class_embeds": None})(x, time, labels)
