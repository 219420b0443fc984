"""The architectures against their authors' code (read on 2026-11-29: NVlabs/edm 008a4e5, openai/guided-diffusion
22e0df8, yang-song/score_sde_pytorch cb1f359), which was run elsewhere; its numbers are in `published/`.

- names.json: of the published configurations, how many tensors and numbers, a digest of all names and shapes, some of
  them spelled out. The parameter counts are those that the papers and model cards tell: 55.7 M for EDM on CIFAR-10,
  296 M on ImageNet-64, 553.8 M for ADM at 256 x 256, 61.8 M for DDPM++, 106.6 M for deep DDPM++.
- networks.json: answers of small networks, whose weights are `formula.fill`'s, in float32.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from fewstep.adapters.research.folder import compared, read_fields
from fewstep.adapters.research.networks.adm import ADMClassifier, ADMConfig, ADMUNet, ClassifierConfig
from fewstep.adapters.research.networks.edm import DHARIWAL, EDMUNet, UNetConfig
from fewstep.adapters.research.networks.score_sde import NCSNpp, NCSNppConfig
from formula import fill, values

PUBLISHED = Path(__file__).parent / "published"
NAMES = json.loads((PUBLISHED / "names.json").read_text())
ANSWERS = json.loads((PUBLISHED / "networks.json").read_text())
MILLIONS = {
    "edm-cifar10-32x32-cond-vp": 55.7, "edm-imagenet-64x64-cond-adm": 295.9, "256x256_diffusion": 553.8,
    "256x256_classifier": 54.1, "vp/cifar10_ddpmpp_continuous": 61.8, "vp/cifar10_ddpmpp_deep_continuous": 106.6,
}  # fmt: skip


def listed(text):
    return [int(each) for each in text.split(",")]


def from_flags(flags):
    """guided-diffusion's flags as our configuration."""
    flags = dict(flags)
    if flags.pop("class_cond", False):
        flags["num_classes"] = 1000
    for name in ("channel_mult", "attention_resolutions"):
        if name in flags:
            flags[name] = listed(flags[name])
    return flags


def from_classifier_flags(flags):
    own = {
        name.removeprefix("classifier_"): value
        for name, value in flags.items()
        if name not in ("classifier_pool", "classifier_use_fp16")
    }
    return own | {"attention_resolutions": listed(own["attention_resolutions"])}


def from_config(config):
    return {name: value for name, value in config.items() if name in NCSNppConfig.__dataclass_fields__}


FAMILIES = {
    "edm": (
        EDMUNet,
        UNetConfig,
        lambda row: (DHARIWAL if row["config"]["model_type"] == "DhariwalUNet" else {}) | row["config"],
    ),
    "adm": (ADMUNet, ADMConfig, lambda row: from_flags(row.get("flags") or row["config"])),
    "adm-classifier": (
        ADMClassifier,
        ClassifierConfig,
        lambda row: from_classifier_flags(row["flags"]) if "flags" in row else row["config"],
    ),
    "score-sde": (NCSNpp, NCSNppConfig, lambda row: from_config(row["config"])),
}
ROWS = [(family, name) for family, rows in NAMES.items() for name in rows]


def made(family, row):
    network, config, of = FAMILIES[family]
    return network(read_fields(config, of(row), family))


@pytest.mark.parametrize(("family", "name"), ROWS, ids=[name for _, name in ROWS])
def test_names_and_shapes_are_the_published_ones(family, name):
    row = NAMES[family][name]
    with torch.device("meta"):
        network = made(family, row)
    found = {key: list(each.shape) for key, each in network.state_dict().items()}
    for key, shape in row["rows"].items():
        assert found[key] == shape
    assert len(found) == row["tensors"]
    assert sum(each.numel() for each in network.state_dict().values()) == row["numbers"]
    assert sum(each.numel() for each in network.parameters()) == row["parameters"]
    text = "".join(f"{key} {shape}\n" for key, shape in sorted(found.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == row["digest"]
    if name in MILLIONS:
        assert round(row["parameters"] / 1e6, 1) == MILLIONS[name]


@pytest.mark.parametrize("index", range(len(ANSWERS)), ids=[row["family"] for row in ANSWERS])
def test_answers_are_the_authors(index):
    row = ANSWERS[index]
    network = fill(made(row["family"], row)).eval()
    side = row["config"].get("img_resolution") or row["config"]["image_size"]
    told = [2 * values("x", (2, 3, side, side)), torch.tensor(row["level"])]
    if row["family"] == "edm":
        count = row["config"].get("label_dim", 0)
        told.append(one_hot(torch.tensor(row["labels"]), max(count, 1)).float()[:, :count])
    elif row["family"] == "adm" and network.config.num_classes:
        told.append(torch.tensor(row["labels"]))
    with torch.no_grad():
        answer = network(*told)
    assert list(answer.shape) == row["shape"]
    flat = answer.double().flatten()
    found = flat[:: max(1, len(flat) // 24)]
    expected = torch.tensor(row["values"], dtype=torch.float64)
    # Both in float32, in sums of up to some thousand numbers of size 1: a hundredth of 1e-5 was seen, and on one
    # processor (AMD EPYC, AVX-512), whose convolutions sum otherwise, 1e-5.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * row["largest"])


def test_weights_of_another_network_are_named():
    row = ANSWERS[0]
    stored = {name: tuple(each.shape) for name, each in made("edm", row).state_dict().items()}
    bias = "dec.4x4_in0.norm0.bias"
    config = read_fields(UNetConfig, row["config"], "config")
    with pytest.raises(ValueError, match=rf"^{bias} is \(7,\) in the weights, \(32,\) in the configuration$"):
        compared(EDMUNet, config, {**stored, bias: (7,)})
    with pytest.raises(ValueError, match=r"^other.weight is \(1,\) in the weights, not in the configuration$"):
        compared(EDMUNet, config, {**stored, "other.weight": (1,)})
    deeper = read_fields(UNetConfig, {**row["config"], "num_blocks": 2}, "config")
    with pytest.raises(ValueError, match=r"^dec.4x4_block1\S+ is .* in the configuration; and \d+ more$"):
        compared(EDMUNet, deeper, stored)
