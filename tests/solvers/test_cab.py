from itertools import pairwise

import pytest
import torch

import fewstep as fs
from peers import rational_model


def by_hand(model, x, sigmas, order, theta):
    """The update of generate_cab.py of the authors' repository, without churn; not the step to sigma = 0."""
    d, h = [], []
    for s, t in pairwise(sigmas):
        d.insert(0, (x - model(x, s[None])) / s)
        h.insert(0, t - s)
        if len(d) == 1:
            x = x + h[0] * d[0]
            continue
        r = h[0] / h[1]
        move = (1 + r / 2) * d[0] - r / 2 * d[1]
        if len(d) > 2:
            a, b = h[1], h[2]
            if order == 3:
                first = (h[0] ** 2 / 3 + h[0] * (2 * a + b) / 2 + a * (a + b)) / (a * (a + b))
                second = -h[0] * (2 * h[0] + 3 * a + 3 * b) / (6 * a * b)
                third = h[0] * (2 * h[0] + 3 * a) / (6 * b * (a + b))
                move = first * d[0] + second * d[1] + third * d[2]
            move = move + theta * (d[0] - (1 + a / b) * d[1] + a / b * d[2])
        x = x + h[0] * move
    return x


@pytest.mark.parametrize("theta", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("order", [2, 3])
def test_equals_the_authors_update(order, theta):
    """On the last of its steps to sigma = 0 the authors' code extrapolates as on any other; ours returns the image."""
    model, start, nodes, sigmas = rational_model()
    got = fs.integrate(model.denoiser, start, nodes[:-1], solver=fs.CAB(order, theta), schedule=fs.EDM())
    torch.testing.assert_close(got, by_hand(model, start, sigmas[:-1], order, theta), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_theta_0_is_adams_bashforth_with_the_steps_as_they_are(order):
    nodes = fs.karras(fs.EDM(), 9, to_zero=True)
    for ours, theirs in zip(
        fs.CAB(order, 0.0).plan(fs.EDM(), nodes), fs.IPNDM(order, True).plan(fs.EDM(), nodes), strict=True
    ):
        assert ours.move.weights == pytest.approx((*theirs.move.weights, 0.0, 0.0)[: len(ours.move.weights)], abs=1e-12)


def test_on_a_flow_the_first_prediction_counts():
    nodes = fs.time_uniform(fs.Flow(), 4)
    stages = fs.CAB(field="velocity").plan(fs.Flow(), nodes)
    assert [len(stage.move.weights) for stage in stages] == [1, 2, 3, 1]


def test_refuses():
    with pytest.raises(ValueError, match=r"theta must be finite and at least 0; got theta=-0.1"):
        fs.CAB(theta=-0.1)
