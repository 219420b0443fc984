import math
import pickle
from itertools import pairwise

import pytest
import torch

import fewstep as fs
from fewstep.grid import entropic

GAUSSIAN = fs.Gamma.gaussian(0.25, points=4001, end=12.0)


def entropy(node, variance=0.25):
    """Of x_0 given x, per element, up to a constant: half the log of the posterior variance of a Gaussian."""
    return 0.5 * math.log(variance * node.sigma**2 / (node.alpha**2 * variance + node.sigma**2))


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=["edm", "vp", "flow"])
def test_steps_take_equal_shares_of_the_entropy_of_a_gaussian(schedule):
    nodes = entropic(schedule, 7, statistics=GAUSSIAN, to_zero=False)
    shares = [entropy(s) - entropy(t) for s, t in pairwise(nodes)]
    whole = entropy(nodes[0]) - entropy(nodes[-1])
    # A density on 4,001 points, of a table of 4,001.
    assert shares == pytest.approx([whole / 7] * 7, rel=1e-3)


def test_a_low_power_tends_to_even_steps_in_log_snr():
    got = entropic(fs.EDM(), 6, statistics=GAUSSIAN, power=1e-9)
    assert [node.lam for node in got] == pytest.approx([node.lam for node in fs.log_snr(fs.EDM(), 6)], rel=1e-6)


def test_measured_on_a_model_it_is_that_of_the_model():
    def denoiser(x, time):
        return x * (0.25 / (0.25 + time**2))

    images = 0.5 * torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    measured = fs.estimate_gamma(denoiser, fs.EDM(), images, points=60)
    want = entropic(fs.EDM(), 6, statistics=GAUSSIAN)
    got = entropic(fs.EDM(), 6, statistics=measured)
    # 16,384 values at a level: their mean square is right to 1 %, and linear between 60 levels.
    assert [node.lam for node in got] == pytest.approx([node.lam for node in want], abs=0.1)


def test_can_be_pickled_and_given_to_a_run():
    made = entropic(statistics=GAUSSIAN)
    again = pickle.loads(pickle.dumps(made))
    assert again(fs.EDM(), 5) == made(fs.EDM(), 5)
    x = torch.randn(1, 3, 4, 4)
    assert fs.sample(lambda x, t: x / (1 + t * t), x, nfe=5, grid=made, schedule=fs.EDM()).isfinite().all()


def test_refuses():
    with pytest.raises(
        TypeError, match=r"statistics must be fewstep.Gamma, measured by fewstep.estimate_gamma; got Non"
    ):
        entropic(fs.EDM(), 5)
    with pytest.raises(ValueError, match=r"power must be positive and finite; got power=0"):
        entropic(fs.EDM(), 5, statistics=GAUSSIAN, power=0)
    lam = torch.tensor([-10.0, 10.0])
    with pytest.raises(ValueError, match="finds nothing to be decided"):
        entropic(fs.EDM(), 5, statistics=fs.Gamma(lam, torch.ones(2)))
