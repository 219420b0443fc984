import pytest
import torch

import fewstep as fs
from fewstep.bench.problems import gaussian
from fewstep.schedule import Node
from golden import arrays, problem


def test_the_denoiser_equals_an_independent_computation():
    z = arrays("problem")
    for sigma, x, want in zip(z["check_sigma"], z["check_x"], z["check_D"], strict=True):
        got = problem().denoised(torch.tensor(x), Node(float(sigma), 1.0, float(sigma)))
        torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=1e-12)


def test_the_denoiser_is_the_posterior_mean():
    """Monte Carlo at one point: the mean of x_0 given x, by weighting prior samples."""
    mixture = gaussian(shape=(1, 1, 2), components=2)
    node, x = fs.EDM().node(0.8), torch.tensor([[[[0.3, -0.4]]]], dtype=torch.float64)
    n = 400_000
    k = torch.randint(2, (n,))
    standard = torch.randn(n, 2, dtype=torch.float64) * mixture.variances[k].sqrt()
    x0 = torch.einsum("nde,ne->nd", mixture.vectors[k], standard) + mixture.means[k]
    weights = (-(x.reshape(1, 2) - x0).square().sum(1) / (2 * node.sigma**2)).softmax(0)
    mean = (weights[:, None] * x0).sum(0)
    error = ((weights[:, None] * (x0 - mean)).square().sum(0)).sqrt()
    assert ((mixture.denoised(x, node).reshape(2) - mean).abs() < 4 * error).all()


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=["edm", "vp", "flow"])
def test_the_solution_solves_the_ode(schedule):
    """d(x / sigma) = D d(alpha / sigma), by a central difference along the solution."""
    p = gaussian()
    s, t = schedule.node(schedule.time_at(-2.0)), schedule.time_at(0.5)
    x = torch.randn(3, *p.shape, dtype=torch.float64)
    a, b = schedule.node(schedule.time_at(0.5 - 1e-4)), schedule.node(schedule.time_at(0.5 + 1e-4))
    slope = (p.solution(x, s, b) / b.sigma - p.solution(x, s, a) / a.sigma) / (1 / b.nsr - 1 / a.nsr)
    node = schedule.node(t)
    # The difference quotient is accurate to h^2 = 1e-8 and rounds at 1e-16 / 1e-4.
    torch.testing.assert_close(slope, p.denoised(p.solution(x, s, node), node), rtol=0, atol=1e-6)


def test_only_one_component_has_a_known_solution():
    p = gaussian(components=2)
    with pytest.raises(ValueError, match="known for one component; this mixture has 2"):
        p.solution(torch.zeros(1, *p.shape), fs.EDM().node(1.0), fs.EDM().node(0.5))


def test_problems_are_reproducible():
    assert torch.equal(gaussian(seed=3).means, gaussian(seed=3).means)
    assert not torch.equal(gaussian(seed=3).means, gaussian(seed=4).means)
