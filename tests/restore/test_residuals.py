"""Systems in a batch: exact in as many iterations as dimensions, alone as in company, and never worse than nothing."""

import pytest
import torch

from fewstep.restore.gradients import conjugate_gradients
from fewstep.restore.residuals import conjugate_residuals

SIZE = 6


def systems(count=5, skewed=0.0):
    draw = torch.Generator().manual_seed(0)
    root, b = (torch.randn(count, SIZE, *more, generator=draw, dtype=torch.float64) for more in ((SIZE,), ()))
    matrices = root @ root.mT + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    return matrices + skewed * (root - root.mT), b


def product(matrices):
    return lambda u: torch.einsum("bij,bj->bi", matrices, u)


@pytest.mark.parametrize(
    ("solve", "skewed"), [(conjugate_residuals, 0.0), (conjugate_residuals, 1.0), (conjugate_gradients, 0.0)]
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


def test_gradients_err_least_in_the_norm_of_the_system_and_residuals_in_what_is_left():
    matrices, b = systems()
    exact = torch.linalg.solve(matrices, b)
    for most in range(1, SIZE):
        by_gradients, by_residuals = (
            solve(product(matrices), b, 1e-9, most) for solve in (conjugate_gradients, conjugate_residuals)
        )
        errors = [
            ((found.u - exact) * product(matrices)(found.u - exact)).sum(1) for found in (by_gradients, by_residuals)
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-9)).all()
        assert (by_residuals.residual <= by_gradients.residual * (1 + 1e-9)).all()
        left = (b - product(matrices)(by_gradients.u)).norm(dim=1) / b.norm(dim=1)
        assert torch.allclose(by_gradients.residual, left, rtol=1e-9)


@pytest.mark.parametrize("solve", [conjugate_residuals, conjugate_gradients])
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
