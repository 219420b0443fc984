"""Each kind of guidance against its definition, computed here on single samples in float64."""

import math
import pickle

import pytest
import torch

import fewstep as fs
from fewstep import EDM, Batched, apg, as_denoiser, classifier_guided, guidance_interval, guided, rescaled

T = 0.7
EPS = torch.finfo(torch.float64).eps
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.VPCosine(), fs.Flow(shift=3.0)]
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cond(x, t):
    return 0.8 * x + 0.3


def uncond(x, t):
    return x.sin() - t


def log_prob(x, t):
    """log p(y | x) = -|x - 1|^2 / (2 (1 + t)), of gradient (1 - x) / (1 + t)."""
    return -(x - 1).square().flatten(1).sum(1) / (2 * (1 + t))


def images(count=4, dtype=torch.float64):
    return (2 * torch.randn(count, 3, 5, dtype=torch.float64)).to(dtype)


def carrying(function, schedule=None):
    return as_denoiser(function, "sample", schedule or EDM())


KINDS = {
    "guided": lambda scale: guided(carrying(cond), uncond, scale),
    "rescaled": lambda scale: rescaled(carrying(cond), uncond, scale, 0.4),
    "rescaled v": lambda scale: rescaled(carrying(cond), uncond, scale, 0.4, of="v_prediction"),
    "interval": lambda scale: guidance_interval(guided(carrying(cond), uncond, scale), cond, 0.1, 2.0),
    "apg": lambda scale: apg(carrying(cond), uncond, scale, norm_limit=1.5, parallel=0.2),
    "classifier": lambda scale: classifier_guided(carrying(cond), log_prob, scale),
}
over_kinds = pytest.mark.parametrize("kind", KINDS)


# Definitions


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_is_equation_16(share):
    x, scale = images(), 6.0
    got = rescaled(cond, uncond, scale, share)(x, T)
    for i, each in enumerate(x):
        positive, negative = cond(each, T), uncond(each, T)
        strong = negative + scale * (positive - negative)
        expected = share * strong * positive.std() / strong.std() + (1 - share) * strong
        torch.testing.assert_close(got[i], expected, rtol=0, atol=64 * EPS * float(strong.abs().max()))


@over_schedules
@pytest.mark.parametrize("of", ["epsilon", "v_prediction"])
def test_rescaled_of_what_the_network_predicts_is_diffusers(schedule, of):
    """rescale_noise_cfg on the networks' outputs, as pipelines call it."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    x, scale, share, node = images(), 5.0, 0.6, schedule.node(T)
    denoisers = as_denoiser(cond, of, schedule), as_denoiser(uncond, of, schedule)
    got = rescaled(*denoisers, scale, share, of=of)(x, T)
    strong = uncond(x, T) + scale * (cond(x, T) - uncond(x, T))
    expected = fs.to_denoised(of, rescale_noise_cfg(strong, cond(x, T), share), x, node)
    # Through the denoised x and back: two divisions by alpha or sigma, some twenty roundings of numbers this large.
    size = float(expected.abs().max() + strong.abs().max()) * max(1 / node.alpha, node.alpha / node.sigma, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=256 * EPS * size)


def test_full_rescaling_gives_the_spread_of_the_conditional():
    x = images()
    got = rescaled(cond, uncond, 9.0, 1.0)(x, T)
    torch.testing.assert_close(got.flatten(1).std(1), cond(x, T).flatten(1).std(1), rtol=32 * EPS, atol=0)


@over_schedules
def test_an_interval_is_one_of_noise_to_signal(schedule):
    asked = []

    def spy(name):
        return lambda x, t: asked.append(name) or x

    low, high = 0.5, 2.0
    denoiser = guidance_interval(carrying(spy("guided"), schedule), spy("plain"), low, high)
    nodes = [schedule.node(schedule.time_at(-math.log(n))) for n in (0.2, 0.49, 0.51, 1.0, 1.99, 2.01, 9.0)]
    for node in nodes:
        denoiser(images(), node.time)
    assert asked == ["plain", "plain", "guided", "guided", "guided", "plain", "plain"]


def test_the_interval_is_open_below_and_closed_above():
    inside, outside = torch.ones_like, torch.zeros_like
    denoiser = guidance_interval(carrying(lambda x, t: inside(x)), lambda x, t: outside(x), 0.5, 2.0)
    times = (0.5, math.nextafter(0.5, 1), 2.0, math.nextafter(2.0, 3))
    assert [float(denoiser(images(), t).mean()) for t in times] == [0, 1, 1, 0]


@pytest.mark.parametrize(("norm_limit", "parallel"), [(math.inf, 0.0), (1.5, 0.0), (1.5, 0.3), (1e6, 1.0)])
def test_apg_is_algorithm_1_without_momentum(norm_limit, parallel):
    x, scale = images(), 8.0
    got = apg(cond, uncond, scale, norm_limit=norm_limit, parallel=parallel)(x, T)
    for i, each in enumerate(x):
        positive, change = cond(each, T), cond(each, T) - uncond(each, T)
        change = change * min(1.0, norm_limit / float(change.norm()))
        unit = positive / positive.norm()
        along = (change * unit).sum() * unit
        expected = positive + (scale - 1) * (change - along + parallel * along)
        size = scale * float(change.abs().max() + positive.abs().max())
        torch.testing.assert_close(got[i], expected, rtol=0, atol=128 * EPS * size)


def test_apg_without_its_parts_is_classifier_free_guidance():
    x = images()
    # A dozen roundings of numbers below 8 max |D - D_uncond|.
    atol = 128 * EPS * 8 * float((cond(x, T) - uncond(x, T)).abs().max())
    torch.testing.assert_close(
        apg(cond, uncond, 8.0, parallel=1.0)(x, T), guided(cond, uncond, 8.0)(x, T), rtol=0, atol=atol
    )


@over_schedules
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_guidance_changes_epsilon_by_sigma_times_the_gradient(schedule, scale):
    """Algorithm 2 of Dhariwal & Nichol, with the gradient by hand."""
    x, node = images(), schedule.node(T)
    got = classifier_guided(as_denoiser(cond, "epsilon", schedule), log_prob, scale)(x, T)
    epsilon = cond(x, T) - node.sigma * scale * (1 - x) / (1 + T)
    expected = (x - node.sigma * epsilon) / node.alpha
    size = float(x.abs().max() + epsilon.abs().max() + 1) * (1 + node.sigma + node.sigma**2) / node.alpha
    torch.testing.assert_close(got, expected, rtol=0, atol=32 * EPS * size)


def test_classifier_guidance_is_bayes_rule_of_a_gaussian():
    """Data N(0, 1) and a label observed with variance v: D of x alone, guided by p(y | x_t), is E[x_0 | x_t, y]."""
    v, y, schedule = 0.3, 0.7, fs.VPLinear()
    _, alpha, sigma = schedule.node(T)
    shrink, rest = alpha / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)

    def about(x, t):  # y | x_t ~ N(shrink x, rest + v)
        return -(y - shrink * x).square().flatten(1).sum(1) / (2 * (rest + v))

    x = images()
    got = classifier_guided(as_denoiser(lambda x, t: shrink * x, "sample", schedule), about)(x, T)
    # The posterior of x_0 given x_t has variance rest; then y is an observation of x_0.
    expected = shrink * x + rest / (rest + v) * (y - shrink * x)
    torch.testing.assert_close(got, expected, rtol=0, atol=64 * EPS * float(x.abs().max() + 1))


# What all share


@over_kinds
def test_a_scale_each_is_that_scale_alone(kind):
    x, scales = images(), [1.0, 0.0, 7.5, 2.0]
    got = KINDS[kind](torch.tensor(scales))(x, T)
    for i, scale in enumerate(scales):
        assert torch.equal(got[i : i + 1], KINDS[kind](scale)(x[i : i + 1], T))
    with pytest.raises(ValueError, match="scale must be one for all or one a sample, 4; got 2"):
        KINDS[kind](torch.tensor([1.0, 2.0]))(x, T)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "classifier"])
def test_scale_1_is_no_guidance(kind):
    x = images()
    got = KINDS[kind](1.0)(x, T)
    if kind == "rescaled v":  # through v and back, some ten roundings
        torch.testing.assert_close(got, cond(x, T), rtol=0, atol=64 * EPS * float(x.abs().max() + 1))
    else:
        torch.testing.assert_close(got, cond(x, T), rtol=4 * EPS, atol=0)


@over_kinds
@over_dtypes
def test_the_answer_has_the_type_of_x_and_knows_no_batch_mates(kind, dtype):
    x = images(5, dtype)
    denoiser = KINDS[kind](3.0)
    together = denoiser(x, T)
    assert (together.dtype, together.shape) == (dtype, x.shape)
    assert torch.equal(together, torch.cat([denoiser(each, T) for each in x.split(1)]))


@over_kinds
def test_one_call_with_times_of_each_sample_is_as_many_calls_apart(kind):
    def each(function):
        return lambda x, t: function(x, torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)))

    def single(x, t):
        return log_prob(x, torch.as_tensor(t, dtype=x.dtype))

    x, t = images(), torch.tensor([0.05, T, 1.9, 3.0], dtype=torch.float64)  # outside, inside, inside, outside
    model, plain = carrying(each(cond)), each(uncond)
    denoiser = {
        "guided": lambda: guided(model, plain, 3.0),
        "rescaled": lambda: rescaled(model, plain, 3.0, 0.4),
        "rescaled v": lambda: rescaled(model, plain, 3.0, 0.4, of="v_prediction"),
        "interval": lambda: guidance_interval(guided(model, plain, 3.0), model, 0.1, 2.0),
        "apg": lambda: apg(model, plain, 3.0, norm_limit=1.5, parallel=0.2),
        "classifier": lambda: classifier_guided(model, single, 3.0),
    }[kind]()
    apart = torch.cat([denoiser(x[i : i + 1], time) for i, time in enumerate(t.tolist())])
    # The sine of an element is that of its place in a vector, to a rounding.
    torch.testing.assert_close(denoiser(x, t), apart, rtol=0, atol=64 * EPS * float(apart.abs().max()))


BASE = carrying(cond)
MODULE_LEVEL = {  # made of what can be pickled
    "guided": guided(BASE, uncond, 2.0),
    "rescaled": rescaled(BASE, uncond, torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "rescaled v": rescaled(BASE, uncond, 2.0, of="v_prediction"),
    "interval": guidance_interval(guided(BASE, uncond, 2.0), BASE, 0.1, 2.0),
    "apg": apg(BASE, uncond, 2.0, norm_limit=1.0),
    "classifier": classifier_guided(BASE, log_prob, 2.0),
}


@pytest.mark.parametrize("kind", MODULE_LEVEL)
def test_it_can_be_pickled_and_carries_its_schedule(kind):
    made, x = MODULE_LEVEL[kind], images()
    there = pickle.loads(pickle.dumps(made))
    assert there.schedule == made.schedule == EDM()
    assert torch.equal(there(x, T), made(x, T))


@over_kinds
def test_a_run_takes_it(kind):
    x = torch.randn(2, 3, 5)
    got = fs.sample(KINDS[kind](1.5), x, nfe=5)
    assert got.shape == x.shape
    assert bool(got.isfinite().all())


# One evaluation for both


class Network:
    """Remembers how many samples each evaluation had."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x, t, condition):
        self.sizes.append(len(x))
        return 0.8 * x + condition.reshape(-1, 1, 1).to(x)


def made_of(kind, denoiser, uncond):
    return {
        "guided": lambda: guided(denoiser, uncond, 3.0),
        "rescaled": lambda: rescaled(denoiser, uncond, 3.0),
        "apg": lambda: apg(denoiser, uncond, 3.0),
    }[kind]()


@pytest.mark.parametrize("kind", ["guided", "rescaled", "apg"])
@pytest.mark.parametrize("labels", [[2.0], [1.0, 2.0, 3.0, 4.0]])
def test_two_conditions_of_one_network_are_one_evaluation(kind, labels):
    network, x = Network(), images()
    given, none = Batched(network, torch.tensor(labels)), Batched(network, torch.tensor([0.0]))
    got = made_of(kind, given, none)(x, T)
    assert network.sizes == [8]
    apart = made_of(kind, lambda x, t: given(x, t), lambda x, t: none(x, t))(x, T)
    assert network.sizes == [8, 4, 4]
    torch.testing.assert_close(got, apart, rtol=0, atol=8 * EPS * 30)


def test_conditions_of_two_networks_are_two_evaluations():
    first, second, x = Network(), Network(), images()
    guided(Batched(first, torch.tensor([1.0])), Batched(second, torch.tensor([0.0])), 2.0)(x, T)
    assert (first.sizes, second.sizes) == ([4], [4])


def test_a_condition_of_another_number_is_refused():
    for labels in (torch.ones(3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="condition must be one for all or one a sample, 1 or 4; got shape"):
            Batched(Network(), labels)(images(), T)


def test_conditions_of_two_shapes_are_two_evaluations():
    sizes = []

    def network(x, t, condition):
        sizes.append(tuple(condition.shape))
        return 0.8 * x + condition.mean(1).reshape(-1, 1, 1).to(x)

    long, short, x = Batched(network, torch.ones(1, 5)), Batched(network, torch.zeros(1, 3)), images()
    got = guided(long, short, 2.0)(x, T)
    assert sizes == [(4, 5), (4, 3)]
    torch.testing.assert_close(got, 0.8 * x + 2.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": None}, "network must be a function"),
        ({"condition": [1.0]}, "condition must be a tensor .*; got list"),
        ({"batch": 0}, "batch must be an integer of at least 1, .*; got 0"),
        ({"batch": 2.5}, "batch must be an integer of at least 1, .*; got 2.5"),
    ],
)
def test_parts_that_cannot_be_batched_are_refused_at_the_door(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Batched(**{"network": Network(), "condition": torch.ones(1), **wrong})


# Errors


@pytest.mark.parametrize("kind", ["guided", "rescaled", "apg"])
def test_what_is_no_function_is_refused_at_the_door(kind):
    own = fs.as_denoiser(lambda x, t: x, "sample", EDM())
    for parts in ((own, None), (None, own)):
        with pytest.raises(TypeError, match=r"denoiser must be a function denoiser\(x, t\); got NoneType"):
            made_of(kind, *parts)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
@over_kinds
def test_scale_must_be_finite(kind, scale):
    with pytest.raises(ValueError, match=r"^scale must be finite"):
        KINDS[kind](scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rescaled(cond, uncond, 2.0, 1.1), r"share must lie in \[0, 1\]; got share=1.1"),
        (lambda: rescaled(cond, uncond, 2.0, of="v_prediction"), "needs denoisers that carry their schedule"),
        (lambda: rescaled(cond, uncond, 2.0, of="v"), "of must be one of sample, epsilon"),
        (lambda: apg(cond, uncond, 2.0, norm_limit=0.0), "norm_limit must be positive; got norm_limit=0.0"),
        (lambda: apg(cond, uncond, 2.0, parallel=math.nan), "parallel must be finite"),
        (lambda: guidance_interval(carrying(cond), cond, 2.0, 1.0), "needs 0 <= low < high; got low=2.0, high=1.0"),
        (lambda: guidance_interval(cond, cond, 1.0, 2.0), "needs denoisers that carry their schedule"),
        (lambda: classifier_guided(cond, log_prob), "needs a denoiser that carries its schedule"),
    ],
)
def test_wrong_arguments_are_refused_at_the_door(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_classifier_that_returns_logits_is_told_what_to_return():
    with pytest.raises(
        fs.DenoiserError, match=r"the classifier returned shape \(4, 10\) at time 0.7; it must return log p"
    ):
        classifier_guided(carrying(cond), lambda x, t: torch.zeros(len(x), 10))(images(), T)


def test_a_classifier_at_pure_noise_is_refused():
    with pytest.raises(ValueError, match="says nothing at alpha = 0"):
        classifier_guided(as_denoiser(cond, "flow_prediction", fs.Flow()), log_prob)(images(), 1.0)


@pytest.mark.parametrize("weight", [torch.ones(()), torch.ones((), requires_grad=True)])
def test_a_classifier_without_a_derivative_by_x_is_told(weight):
    """Whether or not it has one by its own weights."""
    blind = classifier_guided(carrying(cond), lambda x, t: weight * x.detach().flatten(1).sum(1))
    with pytest.raises(fs.DenoiserError, match=r"answer at time 0.7 has no derivative by x: leave out no_grad"):
        blind(images(), T)
    with pytest.raises(TypeError, match=r"classifier must be a function classifier\(x, t\); got NoneType"):
        classifier_guided(carrying(cond), None)
