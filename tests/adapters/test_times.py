"""Every family of models answers images in different phases of their runs, with times (B,), as it does each alone."""

from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep.adapters.locality import Local
from fewstep.adapters.research.adm import ADMCard, ADMNetwork
from fewstep.adapters.research.edm import EDMCard, EDMNetwork
from fewstep.adapters.research.score_sde import ScoreSDECard, ScoreSDENetwork

SHAPE = (3, 4, 4)


class Network(torch.nn.Module):
    """Of nothing but its own image, what it is told of the level, and the label; in operations that round alike."""

    def __init__(self, channels=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.repeat = channels // 3

    def forward(self, x, level, label=None):
        told = level / (1 + level.abs())
        if label is not None:
            told = told + label.reshape(len(x), -1)[:, 0]
        return (self.weight * x + told.reshape(-1, 1, 1, 1)).repeat(1, self.repeat, 1, 1)


def edm(preconditioning):
    card = EDMCard(SimpleNamespace(label_dropout=0.1), preconditioning)
    return EDMNetwork(Network(), card, SHAPE, fs.EDM(), ("a", "b"), None).conditioned(1, 2.0)


def score_sde(sde, centered=True):
    schedule = fs.VPLinear() if sde == "vpsde" else fs.EDM(0.02, 50.0)
    return ScoreSDENetwork(Network(), ScoreSDECard(SimpleNamespace(centered=centered), sde), SHAPE, schedule, (), None)


def adm():
    schedule = fs.Discrete([0.999 * 0.99**i for i in range(1000)])
    card = ADMCard(SimpleNamespace(num_classes=2))
    return ADMNetwork(Network(6), card, SHAPE, schedule, ("a", "b"), None).conditioned(1)


def local():
    images = torch.randn(20, *SHAPE)
    return Local(images, torch.cov(images.double().flatten(1).T), labels=torch.arange(20) % 2).conditioned(1)


MODELS = {
    "EDM": lambda: edm("edm"),
    "EDM, VP": lambda: edm("vp"),
    "EDM, VE": lambda: edm("ve"),
    "ScoreSDE, VP": lambda: score_sde("vpsde"),
    "ScoreSDE, VE": lambda: score_sde("vesde"),
    "ScoreSDE, VE of [0, 1]": lambda: score_sde("vesde", centered=False),
    "ADM": adm,
    "images": local,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_one_call_with_times_of_each_image_is_as_many_calls_apart(make):
    model = make()
    x = torch.randn(4, *SHAPE)
    t = torch.tensor([model.schedule.ramp(u) for u in (0.9, 0.5, 0.2, 0.05)], dtype=torch.float64)
    apart = torch.cat([model(x[i : i + 1], time) for i, time in enumerate(t.tolist())])
    for got, want in zip(model(x, t), apart, strict=True):
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()
    assert (model(x, t) - model(x, t.flip(0))).abs().max() > 1e-3
