import dataclasses

import pytest
import torch

import fewstep as fs
from benchmarks.problems import (
    PROBLEMS,
    SPLITS,
    ClassGaussians,
    Empirical,
    GaussianMixture,
    Source,
    fitted,
    gaussian,
    suite,
)
from benchmarks.problems.network import Reclocked
from fewstep.adapters import load_model
from fewstep.adapters.locality import THRESHOLD, Local
from fewstep.bench.metrics import Moments
from fewstep.schedule import Node
from fewstep.table import SOLVERS
from golden import arrays, problem
from smooth import smooth_pictures


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


NODES = [Node(0.0, 1.0, 0.3), Node(0.0, 0.6, 0.8), Node(0.0, 0.0, 1.0), Node(0.0, 1.0, 0.01)]
SCHEDULES = {"edm": fs.EDM(), "vp": fs.VPLinear(), "flow": fs.Flow()}


def randn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("node", NODES)
def test_blurred_images_are_a_mixture_of_equal_gaussians(node):
    images, blur = randn(5, 3, 2, 2) / 2, 0.2
    d = images[0].numel()
    mixture = GaussianMixture(
        torch.full((5,), 0.2, dtype=torch.float64),
        images.flatten(1),
        torch.full((5, d), blur**2, dtype=torch.float64),
        torch.eye(d, dtype=torch.float64).expand(5, d, d),
        (3, 2, 2),
    )
    x = randn(4, 3, 2, 2, seed=1)
    law = Empirical(images, blur)
    # Both round |x|^2 / (2 sigma^2), up to 1e6, in the exponent.
    torch.testing.assert_close(law.denoised(x, node), mixture.denoised(x, node), rtol=0, atol=1e-8)
    for ours, theirs in zip(vars(law.moments()).values(), vars(mixture.moments()).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_the_ideal_denoiser_is_the_mean_in_pure_noise_and_the_nearest_image_without():
    law = Empirical(randn(6, 3, 2, 2))
    x = randn(4, 3, 2, 2, seed=1)
    mean = law.images.mean(0).expand_as(x)
    torch.testing.assert_close(law.denoised(x, Node(1.0, 0.0, 1.0)), mean, rtol=0, atol=1e-15)
    nearest = law.images[law.nearest(x)]
    assert len(law.nearest(x).unique()) > 1
    for sigma in (1e-9, 1e-200, 0.0):
        assert torch.equal(law.denoised(x, Node(0.0, 1.0, sigma)), nearest)


@pytest.mark.parametrize("node", NODES)
def test_the_local_denoiser_of_pixels_that_are_all_alike_is_the_ideal_one(node):
    """Each then depends on every other as on itself: the mask is 1 / (1 + 0.1^2) throughout."""
    images, x = randn(6, 3, 2, 2), randn(4, 3, 2, 2, seed=1)
    law = Local(images, torch.ones(12, 12, dtype=torch.float64))
    noisier = node._replace(sigma=node.sigma * (1 + THRESHOLD**2) ** 0.5)
    torch.testing.assert_close(law.denoised(x, node), Empirical(images).denoised(x, noisier), rtol=0, atol=1e-8)


def test_the_local_denoiser_of_pixels_without_correlation_looks_at_one_at_a_time():
    law = Local(randn(6, 3, 2, 2), torch.eye(12, dtype=torch.float64))
    x = randn(1, 3, 2, 2, seed=1)
    moved = x.clone()
    moved[..., 0, 0] += 1
    change = (law.denoised(moved, NODES[0]) - law.denoised(x, NODES[0])).abs()
    assert (change[..., 0, 0] > 1e-3).all()
    change[..., 0, 0] = 0
    assert change.max() == 0


def test_the_local_denoiser_is_finite_at_both_ends():
    population = randn(40, 3, 2, 2)
    law = Local.of(population[:6], population)
    x = randn(4, 3, 2, 2, seed=1)
    mean = law.images.mean(0).expand_as(x)
    torch.testing.assert_close(law.denoised(x, Node(1.0, 0.0, 1.0)), mean, rtol=0, atol=1e-15)
    assert law.denoised(x, Node(0.0, 1.0, 0.0)).isfinite().all()


def test_a_reclocked_network_is_asked_about_x_over_alpha_within_its_range():
    asked = []
    law = Reclocked(lambda x, t: asked.append((x, t)) or x, fs.EDM(0.01, 10.0))
    x = torch.full((1, 1, 1, 1), 0.5)
    for node in (Node(0.0, 0.5, 0.2), Node(0.0, 0.5, 0.001), Node(0.0, 0.0, 1.0), Node(0.0, 0.01, 0.2)):
        law.denoised(x, node)
    # The level itself; the cleanest; the noisiest, of noise at that level; the same at a finite level beyond.
    assert [(round(y.item(), 6), pytest.approx(t)) for y, t in asked] == [(1, 0.4), (1, 0.01), (5, 10), (25, 10)]


def test_each_sample_has_the_gaussian_of_its_class():
    mixture = gaussian(components=2)
    law = ClassGaussians(mixture, (1, 0, 1))
    x = randn(3, *mixture.shape)
    s, t = fs.EDM().node(5.0), fs.EDM().node(0.1)
    for i, k in enumerate(law.members):
        part = mixture.component(k)
        torch.testing.assert_close(law.denoised(x, s)[i], part.denoised(x[i : i + 1], s)[0])
        torch.testing.assert_close(law.solution(x, s, t)[i], part.solution(x[i : i + 1], s, t)[0])


def test_a_fitted_mixture_has_the_moments_of_its_groups():
    groups = [randn(30, 2, 2, 2), randn(90, 2, 2, 2, seed=1) * 2 + 1]
    mixture = fitted(groups)
    for k, images in enumerate(groups):
        part = mixture.component(k).moments()
        torch.testing.assert_close(part.mean, images.flatten(1).mean(0), rtol=0, atol=1e-14)
        torch.testing.assert_close(part.covariance, images.flatten(1).T.cov(), rtol=0, atol=1e-13)
    assert mixture.weights.tolist() == [0.25, 0.75]
    # Of all images, whose covariance divides by the sizes of the groups less one each.
    torch.testing.assert_close(mixture.moments().mean, torch.cat(groups).flatten(1).mean(0), rtol=0, atol=1e-14)
    within = sum(w * images.flatten(1).T.cov() for w, images in zip((0.25, 0.75), groups, strict=True))
    apart = groups[0].mean(0).flatten() - groups[1].mean(0).flatten()
    between = 0.25 * 0.75 * torch.outer(apart, apart)
    torch.testing.assert_close(mixture.moments().covariance, within + between, rtol=0, atol=1e-13)


def test_the_splits_share_neither_classes_nor_seeds():
    dev, report = SPLITS["dev"], SPLITS["report"]
    assert not set(dev.classes) & set(report.classes)
    assert dev.first_seed + max(64, 1000) <= report.first_seed


@pytest.fixture
def small(monkeypatch):
    """A source of smooth pictures at 16 x 16, and fewer of them."""
    monkeypatch.setattr(suite, "IDEAL_IMAGES", 100)
    monkeypatch.setattr(suite, "LOCAL_IMAGES", 50)
    monkeypatch.setattr(suite, "STATISTICS_IMAGES", 20)
    return Source(*smooth_pictures(), SPLITS["report"], None)


@pytest.mark.parametrize("name", [name for name, entry in PROBLEMS.items() if entry.group == "exact"])
def test_a_sample_does_not_depend_on_its_batch(small, name):
    problem = PROBLEMS[name].make(name, small)
    seeds = problem.seeds(4)
    assert seeds == range(10_000, 10_004)
    x = problem.noise(seeds)
    together = problem.denoiser(fs.EDM(), seeds)(x, 1.0)
    for i, seed in enumerate(seeds):
        alone = problem.denoiser(fs.EDM(), [seed])(problem.noise([seed]), 1.0)
        # Sums of products in another order, in an exponent.
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_gaussians_closed_form_is_where_many_steps_lead(small, schedule):
    problem = PROBLEMS["gaussian"].make("gaussian", small)
    seeds = problem.seeds(2)
    exact = problem.solution(SCHEDULES[schedule], seeds)
    stepped = dataclasses.replace(problem, steps=128).solution(SCHEDULES[schedule], seeds)
    assert (exact - stepped).abs().max() < 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["mixture", "ideal", "blurred-0.05", "blurred-0.3", "local"])
def test_twice_the_steps_change_the_solution_by_a_twentieth_of_the_least_error_of_twenty_calls(small, name, schedule):
    problem, clock = PROBLEMS[name].make(name, small), SCHEDULES[schedule]
    seeds = problem.seeds(4)
    taken = problem.solution(clock, seeds)
    twice = dataclasses.replace(problem, steps=2 * problem.steps).solution(clock, seeds)
    errors = []
    for peer in ("dpmpp-3m", "unipc-3", "ipndm-4"):
        solver = SOLVERS[peer].on_flow if schedule == "flow" else SOLVERS[peer].solver
        for grid in (fs.log_snr, fs.karras):
            images = fs.sample(
                problem.denoiser(clock, seeds), problem.noise(seeds), nfe=20, solver=solver, schedule=clock, grid=grid
            )
            errors.append((images - twice).square().mean().sqrt())
    assert (taken - twice).square().mean().sqrt() < min(errors) / 20


def test_too_few_images_of_a_class_are_refused(small):
    with pytest.raises(ValueError, match="class 3 needs 61 images; the data hold 60: use a larger set"):
        small.of_class(3, 8, 61)


def test_a_networks_own_distribution_is_of_other_noise_than_the_samples(monkeypatch):
    for name, few in (("OWN_IMAGES", 3), ("OWN_STEPS", 4), ("STATISTICS_IMAGES", 10)):
        monkeypatch.setattr(suite, name, few)
    pixels, labels = smooth_pictures()
    enlarged = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    source = Source(enlarged, labels, SPLITS["report"], lambda: load_model("cifar32"))
    found = PROBLEMS["model"].make("model", source)
    own, seeds = found.targets["network"](), range(suite.OWN_SEED, suite.OWN_SEED + 3)
    expected = Moments.of(found.features(dataclasses.replace(found, steps=4).solution(fs.EDM(), seeds)))
    torch.testing.assert_close(own.mean, expected.mean, rtol=0, atol=0)
    torch.testing.assert_close(own.covariance, expected.covariance, rtol=0, atol=0)
    for split in SPLITS.values():
        assert set(range(split.first_seed, split.first_seed + found.many)).isdisjoint(seeds)
