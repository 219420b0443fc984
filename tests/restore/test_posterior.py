"""Posteriors that are known: what each method gives exactly, and where it does not."""

import pytest
import torch

import fewstep as fs
from benchmarks.problems.mixtures import GaussianMixture
from benchmarks.restore import exact
from fewstep.restore import Linear, Spectrum, deblurring, inpainting, posterior, red_diff, superresolution
from fewstep.restore.posterior import METHODS
from gaussians import normal

COUNT = 100
LAW = exact.gaussian()
GAUSSIANS = {problem.name: problem for problem in exact.gaussians()}
ALONE = [fs.EDM(data_std=0.5), fs.VPLinear(data_std=0.5), fs.Flow(data_std=0.5)]


def whitened():
    """COUNT draws whose mean is 0 and whose covariance is 1, exactly: what their images miss, the method does."""
    z = normal((COUNT, LAW.means.shape[1]), seed=0)
    z = z - z.mean(0)
    root = torch.linalg.cholesky(torch.cov(z.T))
    return torch.linalg.solve_triangular(root, z.T, upper=False).T.reshape(-1, *exact.SHAPE)


def elementwise(x, t):
    """A denoiser whose answers do not depend on their batch in any bit."""
    return x * (0.3 / (0.3 + t * t))


# Samples


@pytest.mark.parametrize(("nfe", "low", "high"), [(10, 0.95, 1.05), (6, 0.8, 1.25)])
@pytest.mark.parametrize("problem", GAUSSIANS.values(), ids=GAUSSIANS)
def test_moment_matching_samples_gaussian_posteriors(problem, nfe, low, high):
    """Their mean within 3 standard errors of 1,000 samples, and that share of the variance."""
    found = exact.found(fs.sample(problem.given(), whitened(), nfe=nfe), problem.law)
    assert found.bias < 3 / 1000**0.5
    assert low < found.variance < high


@pytest.mark.parametrize("method", ["dps", "pigdm", "proximal"])
def test_the_others_are_biased_however_many_calls(method):
    """Of images whose pixels are not alike: at noise 0.05, by more than 3 standard errors of 1,000 samples."""
    problem = GAUSSIANS["mask, noise 0.05"]
    for nfe in (10, 25):
        samples = fs.sample(problem.given(method=method), whitened(), nfe=nfe)
        assert exact.found(samples, problem.law).bias > 3 / 1000**0.5


def test_moment_matching_has_a_limit_on_mixtures_that_calls_do_not_mend():
    """The weights of the components are off, though the posterior's own denoiser has them in as many calls."""
    problem, count = exact.mixtures()[1], 200
    truth = float(problem.law.weights[0])
    for nfe in (10, 25):
        ideal, moment = (exact.measured(problem, name, nfe, count) for name in (exact.IDEAL, exact.MOMENT))
        three = 3 * (truth * (1 - truth) / count) ** 0.5
        assert abs(ideal.first - truth) < three < abs(moment.first - truth)


# Answers


@pytest.mark.parametrize("schedule", ALONE, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_of_pixels_that_are_alike_and_apart_every_method_is_exact(method, schedule):
    """V = r^2 I, and A A^T = I where something is seen: what each takes for granted; on any schedule's scale."""
    size = LAW.means.shape[1]
    one = torch.ones(1, size, dtype=torch.float64)
    prior = GaussianMixture(one[:, 0], 0.3 * one, 0.25 * one, torch.eye(size, dtype=torch.float64)[None], exact.SHAPE)
    operator = exact.operators()["mask"]
    y = operator.A(normal((1, *exact.SHAPE), seed=1))
    law = exact.conditioned(prior, operator, y, 0.2)
    given = posterior(prior.denoiser(schedule), operator, y, noise=0.2, method=method, tolerance=1e-9)
    x = normal((3, *exact.SHAPE), seed=2)
    for u in (0.1, 0.5, 0.9):
        t = schedule.ramp(u)
        assert torch.allclose(given(x, t), law.denoised(x, schedule.node(t)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"method": "proximal", "spectrum": exact.spectrum()}], ids=str)
@pytest.mark.parametrize("problem", GAUSSIANS.values(), ids=GAUSSIANS)
def test_of_gaussian_images_the_answer_is_the_posterior_mean_at_every_level(problem, options):
    given = problem.given(tolerance=1e-9, iterations=64, **options)
    x = normal((3, *exact.SHAPE), seed=2)
    for sigma in (0.01, 0.3, 2.0, 80.0):
        off = given(x, sigma) - problem.law.denoised(x, exact.SCHEDULE.node(sigma))
        # Of a residual of at most 80 / 0.05^2 a share of 1e-9.
        assert float(off.abs().max()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_of_the_image_is_left_the_answer_is_that_of_the_level_before(method):
    """Flow's first level has alpha = 0, where a Jacobian says nothing of the image."""
    schedule, operator = fs.Flow(data_std=0.32), exact.operators()["blur"]
    y = operator.A(LAW.means.reshape(1, *exact.SHAPE)) + 0.5
    given = posterior(LAW.denoiser(schedule), operator, y, noise=0.2, method=method)
    x = normal((3, *exact.SHAPE), seed=2)
    before = schedule.time_at(schedule.lam_range[0])
    assert torch.allclose(given(x, 1.0), given(x, before), rtol=0, atol=1e-2)
    assert given(x, 1.0).isfinite().all()


def test_a_measurement_that_is_not_linear_is_taken_as_it_is_near_the_answer():
    """Of a function that is linear, as a linear one; of one that is not, samples agree with what was seen."""
    problem = GAUSSIANS["downsampling, noise 0.2"]
    plain = posterior(*problem.denoisers, problem.operator.A, problem.y, noise=0.2)
    x = normal((3, *exact.SHAPE), seed=2)
    assert torch.allclose(plain(x, 0.7), problem.given()(x, 0.7), rtol=0, atol=1e-12)

    def curved(x):
        return x.tanh()

    y = curved(exact.drawn(LAW, 1, seed=3))
    samples = fs.sample(posterior(*problem.denoisers, curved, y, noise=0.05), whitened()[:20], nfe=10)
    # Given y the spread of A(x) is less than the noise, wherever A is nearly linear over it.
    assert (curved(samples) - y).square().mean().sqrt() < 0.05
    assert (curved(exact.drawn(LAW, 20, seed=4)) - y).square().mean().sqrt() > 0.3


SIZE = (3, 8, 6)
SEEN = (torch.arange(3 * 8 * 6).reshape(SIZE) * 7 % 5 < 3).double()
KNOWN = {
    "mask": inpainting(SEEN[0], SIZE),
    "mask of each channel": inpainting(SEEN, SIZE),
    "all": inpainting(torch.ones(1), SIZE),
    "none": inpainting(torch.zeros(1), SIZE),
    "downsampling": superresolution(2, SIZE),
    "blur": deblurring(1.2, SIZE),
    "blur without channels": deblurring(1.2, SIZE[1:]),
}


TURN = torch.linalg.qr(normal((3, 3), 5)).Q
COLOURED = {"method": "proximal", "spectrum": Spectrum(normal(SIZE, seed=4).exp(), TURN)}


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        pytest.param(operator, dict(options), id=f"{name}, {label}")
        for name, operator in KNOWN.items()
        for label, options in [("spectrum", COLOURED), ("flat", {"method": "proximal"}), ("pigdm", {"method": "pigdm"})]
        if options is not COLOURED or operator.shape == SIZE
    ],
)
def test_what_is_known_of_an_operator_saves_work_alone(operator, options):
    """The answer is that of its two functions, of which nothing is known."""
    y = operator.A(normal((2, *operator.shape), seed=1)) + 0.1
    options |= {"noise": 0.3, "schedule": fs.EDM(), "tolerance": 1e-12, "iterations": 200}
    plain = Linear(operator.function, operator.shape, operator.adjoint)
    found, due = (posterior(elementwise, each, y, **options) for each in (operator, plain))
    x = normal((2, *operator.shape), seed=2)
    for sigma in (0.1, 2.0):
        assert torch.allclose(found(x, sigma), due(x, sigma), rtol=0, atol=1e-9)


# Costs


@pytest.mark.parametrize(("method", "gradients"), [("moment", None), ("pigdm", 1), ("dps", 1), ("proximal", 0)])
def test_calls_gradients_and_iterations_are_counted(method, gradients):
    problem, pulled, solves = GAUSSIANS["downsampling, noise 0.05"], [], []

    class Pulled(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            pulled.append(len(v))
            return v

    called = []

    def denoiser(x, t):
        called.append(t)
        return problem.denoisers[0](Pulled.apply(x), t)

    given = posterior(
        denoiser,
        problem.operator,
        problem.y,
        noise=problem.noise,
        schedule=exact.SCHEDULE,
        method=method,
        callback=solves.append,
    )
    fs.sample(given, whitened()[:4], nfe=5)
    assert called == [solve.node.time for solve in solves]
    assert len(called) == 5
    assert pulled == [4] * sum(solve.gradients for solve in solves)
    for solve in solves:
        assert solve.iterations.shape == solve.residual.shape == (4,)
        if method == "moment":
            assert solve.gradients == 1 + int(solve.iterations.max())
            assert (solve.residual <= 1e-2).all()
        else:
            assert solve.gradients == gradients
        if method == "dps":
            assert (solve.iterations == 0).all()


# Batches and seeds


@pytest.mark.parametrize("method", [*METHODS, "spectrum", "red_diff"])
@pytest.mark.parametrize(
    "operator",
    [inpainting(torch.arange(64).reshape(8, 8) % 3 > 0, (3, 8, 8)), superresolution(2, (3, 8, 8)),
     deblurring(1.0, (3, 8, 8))],
    ids=["mask", "downsampling", "blur"],
)  # fmt: skip
def test_a_sample_does_not_depend_on_its_batch(method, operator):
    """Each with a measurement of its own, one of which is soon solved; with a solver that draws, by its seeds."""
    y = operator.A(normal((3, 3, 8, 8), seed=1)) * torch.tensor([1e-4, 1.0, 30.0]).reshape(3, 1, 1, 1)

    def drawn(rows):
        if method == "red_diff":
            return red_diff(elementwise, operator, y[rows], noise=0.1, schedule=fs.EDM(), seeds=rows, nfe=6)
        options = {"method": method}
        if method == "spectrum":
            options = {"method": "proximal", "spectrum": Spectrum.of(normal((20, 3, 8, 8), seed=3))}
        given = posterior(elementwise, operator, y[rows], noise=0.1, schedule=fs.EDM(), **options)
        noise = fs.unit_noise(rows, (3, 8, 8), dtype=torch.float64)
        return fs.sample(given, noise, solver=fs.DDIM(eta=1.0), nfe=6, seeds=rows)

    together = drawn([0, 1, 2])
    for row in range(3):
        assert torch.equal(drawn([row])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept_and_sums_are_in_float32_or_better(dtype):
    operator = superresolution(2, (3, 8, 8))
    y = operator.A(normal((1, 3, 8, 8), seed=1))
    x = normal((2, 3, 8, 8), seed=2)
    for method in METHODS:
        given = posterior(elementwise, operator, y, noise=0.1, schedule=fs.EDM(), method=method)
        answer = given(x.to(dtype), 1.0)
        assert answer.dtype == dtype
        # Rounded in and out, and in the residual over 0.1: thirty roundings are more than it takes.
        assert torch.allclose(answer.double(), given(x, 1.0), rtol=0, atol=30 * torch.finfo(dtype).eps)


# At the door


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "proximal", "spectrum": 1.0}, r"spectrum must be a restore\.Spectrum; got float"),
        ({"callback": 3}, "callback must be a function of a Solve, or None; got callback=3"),
    ],
)
def test_options_of_a_wrong_type_are_refused(options, told):
    with pytest.raises(TypeError, match=told):
        GAUSSIANS["mask, noise 0.05"].given(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "mmps"}, "method must be one of moment, pigdm, dps, proximal; got 'mmps'"),
        ({"spectrum": exact.spectrum()}, "spectrum is for method='proximal'"),
        ({"tolerance": 0.0}, r"tolerance must lie in \(0, 1\)"),
        ({"iterations": 0}, "iterations must be an integer of at least 1"),
        ({"iterations": True}, "iterations must be an integer of at least 1"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        GAUSSIANS["mask, noise 0.05"].given(**options)


def test_what_does_not_fit_is_refused_before_or_at_the_first_call():
    operator = superresolution(2, (3, 8, 8))
    y = operator.A(normal((2, 3, 8, 8), seed=1))
    with pytest.raises(TypeError, match="schedule is needed"):
        posterior(elementwise, operator, y, noise=0.1)
    given = posterior(elementwise, operator, y, noise=0.1, schedule=fs.EDM())
    with pytest.raises(ValueError, match="y must be one for all or one a sample, 3; got 2"):
        given(normal((3, 3, 8, 8), seed=1), 1.0)
    with pytest.raises(ValueError, match=r"x must have the shape that the operator takes, \(3, 8, 8\)"):
        given(normal((2, 3, 16, 16), seed=1), 1.0)
    flattened = posterior(elementwise, lambda x: x.flatten(1), y, noise=0.1, schedule=fs.EDM())
    with pytest.raises(ValueError, match=r"y must have the shape of A\(x\), \(2, 192\)"):
        flattened(normal((2, 3, 8, 8), seed=1), 1.0)
    with pytest.raises(TypeError, match="denoiser must be a function"):
        posterior(Linear(elementwise, (3, 8, 8)), operator, y, noise=0.1, schedule=fs.EDM())


def hidden(x, t):
    with torch.no_grad():
        return elementwise(x, t)


def inference(x, t):
    with torch.inference_mode():
        return elementwise(x, t)


@pytest.mark.parametrize("denoiser", [hidden, inference, lambda x, t: elementwise(x, t).detach()])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "proximal"])
def test_a_denoiser_that_hides_its_derivative_is_refused_as_y_would_be_lost(denoiser, method):
    operator, x = Linear(lambda x: x[:, :2], (4,)), normal((1, 4), seed=1)
    given = posterior(denoiser, operator, x[:, :2], noise=0.1, schedule=fs.EDM(), method=method)
    with pytest.raises(ValueError, match=r"the denoiser hides its derivative.*proximal"):
        given(x, 1.0)


@pytest.mark.parametrize(("function", "told"), [(torch.round, "leave the rounding out"), (torch.detach, "hides its")])
def test_a_function_without_a_derivative_is_refused(function, told):
    x = normal((1, 4), seed=1)
    for method in METHODS:
        with pytest.raises(ValueError, match=f"operator's function.*{told}"):
            posterior(elementwise, function, x, noise=0.1, schedule=fs.EDM(), method=method)(x, 1.0)
    with pytest.raises(ValueError, match=f"operator's function.*{told}"):
        red_diff(elementwise, function, x, noise=0.1, schedule=fs.EDM(), seeds=[0], start=x, nfe=3)


class InPlace:
    def A(self, x):
        return x.mul_(torch.tensor([1.0, 0.0, 2.0, 1.0]).to(x))

    A_adjoint = A


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operator", [InPlace(), Linear(InPlace().A, (4,)), InPlace().A], ids=["object", "Linear", "A"])
def test_an_operator_may_work_in_place(operator, method):
    x, y = normal((1, 4), seed=1), normal((1, 4), seed=2)
    plain = Linear(lambda x: x * torch.tensor([1.0, 0.0, 2.0, 1.0]).to(x), (4,))
    options = {"noise": 0.1, "schedule": fs.EDM()}
    found, due = (posterior(elementwise, each, y, method=method, **options)(x, 1.0) for each in (operator, plain))
    assert torch.allclose(found, due, rtol=0, atol=1e-12)
    found, due = (red_diff(elementwise, each, y, seeds=[0], start=x, nfe=3, **options) for each in (operator, plain))
    assert torch.allclose(found, due, rtol=0, atol=1e-12)
