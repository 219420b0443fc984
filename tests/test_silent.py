"""Wrong schedules, clocks and scales: each is told or made right; the two that cannot be known are in docs/clocks.md.

The data are N(0, 1/4), the networks exact. A right run leaves their standard deviation; a wrong one that nobody told
of is what this table is against.
"""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import fewstep as fs
from golden import sd_table

STD = 0.5
NOISE = fs.unit_noise(range(64), (64,))
TABLE = sd_table()
# 4,096 numbers know their deviation to 1.1 %: four of those, and as much for what 10 calls leave.
RIGHT = 0.08


def gaussian(schedule, kind):
    """What a network of `kind` predicts for the data, at the schedule's time."""

    def network(x, t):
        _, alpha, sigma = schedule.node(t)
        score = -x / (alpha**2 * STD**2 + sigma**2)
        data, noise = -alpha * STD**2 * score, -sigma * score
        return {"sample": data, "epsilon": noise, "score": score, "flow_prediction": noise - data}[kind]

    return network


def run(denoiser, noise=NOISE, **options):
    return fs.sample(denoiser, noise, nfe=10, **options)


def plain(schedule):
    return lambda x, t: gaussian(schedule, "sample")(x, t)


def forgotten_with_nodes_of_another():
    nodes = fs.karras(fs.VPLinear(), 8)
    return fs.integrate(plain(fs.VPLinear()), NOISE, nodes, schedule=fs.EDM(), solver=fs.DPM2())


def reversed_flow(t_of_data):
    """A network of torchcfm's kind: its time is 1 at the data, to which its velocity points."""
    network = gaussian(fs.Flow(), "flow_prediction")
    return fs.as_denoiser(lambda x, t: -network(x, 1 - t), "flow_prediction", fs.Flow(), data_at=t_of_data)


ALPHAS = np.array(TABLE.alphas_cumprod) / np.array([1.0, *TABLE.alphas_cumprod[:-1]])
TOLD = {
    "no schedule, a plain function": (lambda: run(plain(TABLE)), TypeError, "schedule is needed"),
    "another schedule than the denoiser's": (
        lambda: run(fs.as_denoiser(gaussian(TABLE, "epsilon"), "epsilon", TABLE), schedule=fs.VPLinear()),
        ValueError,
        "a run has one schedule; got VPLinear",
    ),
    "nodes of another schedule": (forgotten_with_nodes_of_another, ValueError, "nodes must hold nodes of EDM"),
    "betas of a table": (lambda: fs.VPLinear(1e-4, 0.02), ValueError, r"VPLinear\(0.1, 20.0\) for 1e-4 to 0.02"),
    "alphas for their products": (lambda: fs.Discrete(ALPHAS), ValueError, "cumulative products"),
    "a table's index on a clock of [0, 1]": (
        lambda: run(plain(fs.VPLinear()), schedule=fs.VPLinear(), grid=[999.0, 500.0, 1.0]),
        ValueError,
        "clock of a table",
    ),
    "a clock of 1,000": (lambda: fs.VPLinear(t_max=1000.0), ValueError, "clock of a table"),
    "noise times sigma": (
        lambda: run(plain(fs.EDM()), NOISE * 80, schedule=fs.EDM()),
        UserWarning,
        "mean square of 79.5",
    ),
    "noise too small": (
        lambda: run(plain(fs.EDM()), NOISE * 0.1, schedule=fs.EDM()),
        UserWarning,
        "mean square of 0.0993",
    ),
    "guidance between two schedules": (
        lambda: fs.guided(
            fs.as_denoiser(gaussian(fs.VPLinear(), "epsilon"), "epsilon", fs.VPLinear()),
            fs.as_denoiser(gaussian(fs.VPCosine(), "epsilon"), "epsilon", fs.VPCosine()),
            2.0,
        ),
        ValueError,
        "a run has one schedule",
    ),
}
MADE_RIGHT = {
    "epsilon of a table, without schedule=": lambda: run(fs.as_denoiser(gaussian(TABLE, "epsilon"), "epsilon", TABLE)),
    "epsilon of VP, without schedule=": lambda: run(
        fs.as_denoiser(gaussian(fs.VPLinear(), "epsilon"), "epsilon", fs.VPLinear())
    ),
    "a score": lambda: run(fs.as_denoiser(gaussian(fs.VPLinear(), "score"), "score", fs.VPLinear())),
    "a reversed clock": lambda: run(reversed_flow(1)),
}
# Nothing in the numbers of a run says so: each is the right run of some other model.
SILENT = {
    "a reversed clock that is not said": lambda: run(reversed_flow(0)),
    "a prediction of another kind": lambda: run(
        fs.as_denoiser(gaussian(fs.VPLinear(), "epsilon"), "v_prediction", fs.VPLinear())
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_told(name):
    act, error, message = TOLD[name]
    with pytest.raises(error, match=message):  # pytest makes errors of warnings
        act()


@pytest.mark.parametrize("name", MADE_RIGHT)
def test_made_right(name):
    assert MADE_RIGHT[name]().std().item() == pytest.approx(STD, rel=RIGHT)


@pytest.mark.parametrize("name", SILENT)
def test_silent_and_named_in_the_docs(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SILENT[name]().std().item() != pytest.approx(STD, rel=2 * RIGHT)
    page = (Path(__file__).parents[1] / "docs" / "clocks.md").read_text(encoding="utf-8")
    assert name in re.sub(r"\s+", " ", page)


def test_at_most_two_are_silent():
    assert len(SILENT) <= 2
    assert len(TOLD) + len(MADE_RIGHT) >= 12
