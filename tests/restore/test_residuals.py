"""Systems in a batch: exact in as many iterations as dimensions, alone as in company, and never worse than nothing."""

import pytest
import torch

from fewstep.restore.residuals import conjugate_residuals
from fewstep.restore.symmetric import symmetric_residuals
from fewstep.solvers.core.inner import SPLIT_SUM

SIZE = 6


def systems(count=5, skewed=0.0):
    draw = torch.Generator().manual_seed(0)
    root, b = (torch.randn(count, SIZE, *more, generator=draw, dtype=torch.float64) for more in ((SIZE,), ()))
    matrices = root @ root.mT + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    return matrices + skewed * (root - root.mT), b


def product(matrices):
    return lambda u: torch.einsum("bij,bj->bi", matrices, u)


@pytest.mark.parametrize(
    ("solve", "skewed"), [(conjugate_residuals, 0.0), (conjugate_residuals, 1.0), (symmetric_residuals, 0.0)]
)
def test_a_system_is_solved_in_as_many_iterations_as_it_has_dimensions(solve, skewed):
    matrices, b = systems(skewed=skewed)
    found = solve(product(matrices), b, 1e-9, SIZE)
    assert torch.allclose(found.u, torch.linalg.solve(matrices, b), rtol=1e-6)
    assert found.iterations.max() <= SIZE
    assert (found.residual <= 1e-9).all()


def test_what_is_left_is_said_and_shrinks():
    matrices, b = systems(skewed=1.0)
    matrices = matrices - 2 * torch.eye(SIZE, dtype=torch.float64)  # not positive any more
    before = torch.ones(len(b), dtype=torch.float64)
    for most in range(1, SIZE):
        found = conjugate_residuals(product(matrices), b, 1e-9, most)
        left = (b - product(matrices)(found.u)).norm(dim=1) / b.norm(dim=1)
        assert torch.allclose(found.residual, left, rtol=1e-9)
        assert (found.residual <= before).all()
        before = found.residual


def test_of_a_symmetric_system_the_last_pair_will_do():
    matrices, b = systems()
    for most in range(1, SIZE):
        of_all, of_one = (
            solve(product(matrices), b, 1e-9, most) for solve in (conjugate_residuals, symmetric_residuals)
        )
        assert torch.allclose(of_one.u, of_all.u, rtol=1e-7)
        left = (b - product(matrices)(of_one.u)).norm(dim=1) / b.norm(dim=1)
        assert torch.allclose(of_one.residual, left, rtol=1e-7)


@pytest.mark.parametrize("least", [1e-4, 1e-12, 1e-37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_that_is_hardly_seen_does_no_harm_to_the_rest(dtype, least):
    """As a measurement that is not empty where nothing is seen: what is seen is solved beside it."""
    seen = torch.arange(100) % 2 == 0
    variances = torch.where(seen, torch.logspace(-1, 1, 100, dtype=dtype), 0)
    b = torch.randn(1, 100, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = symmetric_residuals(lambda u: u * (variances + least), b, 1e-2, 20)
    off = (found.u * variances - b * seen).norm() / b.norm()
    assert off < 0.1
    assert found.residual[0] <= 1


@pytest.mark.parametrize("solve", [conjugate_residuals, symmetric_residuals])
def test_each_stops_at_its_own_tolerance_and_does_not_depend_on_the_others(solve):
    matrices, b = systems()
    matrices[0], matrices[1] = torch.eye(SIZE), torch.diag(torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]))
    b[2] = 0
    found = solve(product(matrices), b, 1e-6, 50)
    assert found.iterations[:3].tolist() == [1, 2, 0]
    assert found.u[2].eq(0).all()
    for i in range(len(b)):
        alone = solve(product(matrices[i : i + 1]), b[i : i + 1], 1e-6, 50)
        assert torch.equal(alone.u[0], found.u[i])
        assert alone.iterations[0] == found.iterations[i]
        assert alone.residual[0] <= 1e-6


@pytest.mark.parametrize("solve", [conjugate_residuals, symmetric_residuals])
def test_long_systems_do_not_depend_on_the_others(solve, two_threads):
    """Of a system alone a sum is split over threads, of several it is not."""
    weights, b = torch.rand(3, 6 * SPLIT_SUM, generator=torch.Generator().manual_seed(0)).split([1, 2])
    found = solve(lambda u: u * (weights + 0.1), b, 1e-3, 2)
    assert torch.equal(solve(lambda u: u * (weights + 0.1), b[:1], 1e-3, 2).u[0], found.u[0])


@pytest.mark.parametrize("solve", [conjugate_residuals, symmetric_residuals])
def test_what_is_not_finite_stays_with_its_system(solve):
    """And is not said to be solved."""
    matrices, b = systems()
    wanted = solve(product(matrices), b, 1e-6, 50)
    b[1, 2] = torch.nan
    found = solve(product(matrices), b, 1e-6, 50)
    others = [0, 2, 3, 4]
    assert torch.equal(found.u[others], wanted.u[others])
    assert torch.equal(found.residual[others], wanted.residual[others])
    assert found.residual[1].isnan()


@pytest.mark.parametrize("solve", [conjugate_residuals, symmetric_residuals])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_system_does_not_see_is_left(solve, dtype):
    """A null space, as of an operator whose noise is too little to count: no division by zero, the rest is solved."""
    scales = torch.tensor([[2.0, 1.0, 0.0, 0.0, 3.0, 1.0]], dtype=dtype)
    b = torch.tensor([[1.0, -2.0, 0.5, 0.25, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]], dtype=dtype)
    found = solve(lambda u: u * scales, b, 1e-6, 50)
    assert found.u.isfinite().all()
    assert found.u[1].eq(0).all()
    assert found.residual[1] == 1
    least = b[:1, 2:4].norm() / b[:1].norm()
    assert found.residual[0] >= least * (1 - 1e-6)
