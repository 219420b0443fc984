import math

import pytest
import torch

from fewstep.bench.metrics import Moments, frechet_distance, gains, interval, resamples, rmse, rmses


def moments(seed, d=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return Moments(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T)


def test_a_shift_costs_its_square():
    a = moments(0)
    b = Moments(a.mean + torch.arange(6.0), a.covariance)
    # Eigenvalues of size 30 in float64; the distance is a difference of traces of that size.
    assert frechet_distance(a, b) == pytest.approx(55, abs=1e-12 * 100)


def test_covariances_that_commute_cost_the_squares_of_the_differences_of_deviations():
    a, b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.0, 5.0]).double()
    zero = torch.zeros(3).double()
    got = frechet_distance(Moments(zero, torch.diag(a**2)), Moments(zero, torch.diag(b**2)))
    assert got == pytest.approx((a - b).square().sum().item(), abs=1e-12)


def test_it_is_a_distance():
    a, b = moments(1), moments(2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * 100)
    # Both orders take roots of the same spectrum: rounding of traces of size 50, and of square roots near zero.
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-8)
    assert frechet_distance(a, b) > 0


def test_it_agrees_with_the_root_of_the_product_of_the_covariances():
    linalg = pytest.importorskip("scipy.linalg", reason="needs the extra bench")
    a, b = moments(3), moments(4)
    root = linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)


def test_moments_are_the_samples():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
    got = Moments.of(features)
    assert got.mean.dtype == torch.float64
    torch.testing.assert_close(got.mean, features.double().mean(0))
    torch.testing.assert_close(got.covariance, features.double().T.cov())


def test_moments_of_images_do_not_depend_on_batches():
    class Flat:
        def features(self, x):
            return x.flatten(1)[:, :4]

    images = torch.randn(17, 3, 4, 4)
    a, b = (Moments.of_images(images, Flat(), batch) for batch in (5, 100))
    assert torch.equal(a.covariance, b.covariance)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3), torch.zeros(4)])
def test_moments_need_a_sample(wrong):
    with pytest.raises(ValueError, match=r"features must be \(N, d\) with N of 2 or more"):
        Moments.of(wrong)


def test_features_must_agree():
    with pytest.raises(ValueError, match="dimensions 6 and 4"):
        frechet_distance(moments(0), moments(0, 4))


def test_rmses_and_gains_are_of_each_sample():
    exact = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stretch = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    images = exact * stretch + 7
    torch.testing.assert_close(gains(images, exact), stretch.flatten(), rtol=1e-12, atol=0)
    assert rmses(images, exact)[1] == pytest.approx(7, rel=1e-14)
    # float32 images are compared in float64: a difference of 1e-9 is not lost to them.
    assert rmse(images, exact) == pytest.approx(rmses(images, exact).square().mean().sqrt().item(), rel=1e-14)
    assert rmses(exact.float(), exact.float().double() + 1e-9) == pytest.approx([1e-9] * 3, rel=1e-6)


def test_a_gain_ignores_what_is_unrelated_to_the_solution():
    exact, other = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    assert gains(0.8 * exact + 3 * other, exact).item() == pytest.approx(0.8, rel=1e-6)


def test_moments_through_a_linear_map_are_those_of_the_mapped_features():
    features = torch.randn(50, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    turn = torch.randn(5, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    got, want = Moments.of(features).through(lambda rows: rows @ turn), Moments.of(features @ turn)
    torch.testing.assert_close(got.mean, want.mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(got.covariance, want.covariance, rtol=0, atol=1e-12)


def test_resamples_are_the_same_every_time_and_draw_with_replacement():
    a = resamples(20, 1000)
    assert torch.equal(a, resamples(20, 1000))
    assert a.shape == (1000, 20)
    # A share 1/e of the samples is left out of each draw; 20000 draws scatter it by 0.003.
    left_out = sum(20 - len(row.unique()) for row in a) / a.numel()
    assert left_out == pytest.approx((1 - 1 / 20) ** 20, abs=0.015)


def test_an_interval_is_about_the_value_and_as_wide_as_the_logarithms():
    logs = torch.linspace(4, 6, 2001, dtype=torch.float64)  # 95 % of them lie within 0.95 of their mean
    low, high = interval(2.0, logs)
    assert (low, high) == pytest.approx((2 * math.exp(-0.95), 2 * math.exp(0.95)), rel=1e-9)
