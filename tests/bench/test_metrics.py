import pytest
import torch

from fewstep.bench.metrics import Moments, frechet_distance


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
