import pytest
import torch

import fewstep as fs
from fewstep.solvers.stork import STAGES, gegenbauer


def b(j):
    return 1.0 if j == 0 else 1 / 3 if j == 1 else 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))


def by_hand(y, before, f, h, places):
    """Skaras et al.'s rule of second order on y' = f(place), a step of h; `before` is f(0)."""
    older, newer = y, y + 6 / ((STAGES + 4) * (STAGES - 1)) * h * before
    for j in range(2, STAGES + 1):
        mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
        slope = mu * 6 / ((STAGES + 4) * (STAGES - 1))
        pull = -slope * (1 - j * (j + 1) * b(j - 1) / 2)
        moved = mu * newer + nu * older + (1 - mu - nu) * y + h * (slope * f(places(j - 1)) + pull * before)
        older, newer = newer, moved
    return newer


def right(j):
    return max(j**2 + 3 * j - 4, 6) / (STAGES**2 + 3 * STAGES - 4)


def published(j):
    return (4 / 3 if j == 1 else j**2 + j - 2) / (STAGES**2 + STAGES - 2)


@pytest.mark.parametrize("derivatives", [1, 2])
def test_order_2_is_the_rule_of_50_stages(derivatives):
    schedule = fs.Flow(shift=3.0)
    nodes = fs.time_uniform(schedule, 5)
    stage = fs.STORK(2, derivatives, "velocity").plan(schedule, nodes)[3]
    x, *v = torch.randn(2 + derivatives, 6, dtype=torch.float64)
    times = [node.sigma for node in nodes]

    def extrapolated(w):
        at = times[3] + w * (times[4] - times[3])
        points = times[3 - derivatives : 4][::-1]
        return sum(
            each * torch.tensor([(at - q) / (p - q) for q in points if q != p], dtype=torch.float64).prod()
            for p, each in zip(points, v, strict=True)
        )

    want = by_hand(x, v[0], extrapolated, times[4] - times[3], right)
    torch.testing.assert_close(stage.move.apply(x, v), want, rtol=0, atol=1e-13)


def test_what_its_quadrature_makes_of_powers():
    """Exact for a line; of a square the rule of second order makes nearly 1/4. As published, 0.4896 of a line's 1/2."""
    for power, exact in ((1, 0.5), (2, None)):
        of_ours = gegenbauer(power)
        assert of_ours == pytest.approx(by_hand(0.0, 0.0, lambda w, p=power: w**p, 1.0, right), rel=1e-12)
        assert exact is None or of_ours == pytest.approx(exact, rel=1e-12)
    assert gegenbauer(2) == pytest.approx(0.2494, abs=1e-4)
    assert by_hand(0.0, 0.0, lambda w: w, 1.0, published) == pytest.approx(0.4896, abs=1e-4)


@pytest.mark.parametrize(("order", "derivatives"), [(2, 1), (4, 1), (4, 2)])
def test_is_adams_bashforth_by_another_name(order, derivatives):
    schedule = fs.Flow(shift=3.0)
    nodes = fs.time_uniform(schedule, 6)
    ours = fs.STORK(order, derivatives, "velocity").plan(schedule, nodes)
    theirs = fs.IPNDM(derivatives + 1, True, "velocity").plan(schedule, nodes)
    for a, other in zip(ours, theirs, strict=True):
        assert a.move.weights == pytest.approx(other.move.weights, abs=1e-14)


@pytest.mark.parametrize("solver", [fs.STORK(), fs.CAB(), fs.DEIS(2)])
def test_from_pure_noise_the_noise_has_no_step(solver):
    with pytest.raises(ValueError, match=r'the noise field has no step away from alpha = 0 .* use field="velocity"'):
        solver.plan(fs.Flow(), fs.time_uniform(fs.Flow(), 4))
