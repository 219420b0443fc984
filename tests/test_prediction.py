import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep import (
    EDM,
    DenoiserError,
    Flow,
    Node,
    VPCosine,
    VPLinear,
    as_denoiser,
    clip,
    from_denoised,
    guided,
    sample,
    threshold,
    to_denoised,
)
from fewstep.prediction import KINDS
from golden import sd_table

EPS = sys.float_info.epsilon
SCHEDULES = [EDM(), VPLinear(), VPCosine(), sd_table(), Flow()]
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)

x_0 = torch.tensor([[-1.0, 0.25, 0.8], [0.0, 1e-3, 3.0]], dtype=torch.float64)
noise = torch.tensor([[0.5, -2.0, 0.01], [1.5, -0.3, 0.9]], dtype=torch.float64)
BIGGEST = 3.0  # of x_0 and noise

# What each kind predicts, from the data and the noise of x = alpha x_0 + sigma noise.
MEANING = {
    "sample": lambda alpha, sigma: x_0,
    "epsilon": lambda alpha, sigma: noise,
    "score": lambda alpha, sigma: -noise / sigma,
    "v_prediction": lambda alpha, sigma: alpha * noise - sigma * x_0,
    "flow_prediction": lambda alpha, sigma: noise - x_0,
}


def nodes(schedule):
    low, high = schedule.lam_range
    return st.floats(low, high).map(lambda lam: schedule.node(min(schedule.time_at(lam), schedule.t_max)))


def close(got, want, size):
    """Equal to a few roundings of the largest number, `size`, that went into it."""
    assert float((got - want).abs().max()) <= 16 * EPS * size


@over_kinds
@over_schedules
@settings(max_examples=40)  # for each of the pairs
@given(data=st.data())
def test_prediction_of_the_definition_is_the_data(kind, schedule, data):
    node = data.draw(nodes(schedule))
    _, alpha, sigma = node
    x, output = alpha * x_0 + sigma * noise, MEANING[kind](alpha, sigma)
    # Only epsilon and score divide by alpha: both of their terms, which nearly cancel, are x / alpha large.
    size = BIGGEST * (1 + sigma / alpha) if kind in ("epsilon", "score") else 2 * BIGGEST * (1 + sigma)
    close(to_denoised(kind, output, x, node), x_0, size)


@over_kinds
@over_schedules
@settings(max_examples=40)  # for each of the pairs
@given(data=st.data())
def test_from_denoised_gives_the_definition(kind, schedule, data):
    node = data.draw(nodes(schedule))
    _, alpha, sigma = node
    output = MEANING[kind](alpha, sigma)
    # (denoised - a x) / b divides by sigma, for the score twice.
    size = 2 * BIGGEST * (1 + sigma) * (1 + 1 / sigma) ** (2 if kind == "score" else 1)
    close(from_denoised(kind, x_0, alpha * x_0 + sigma * noise, node), output, size)


@over_kinds
@over_schedules
@settings(max_examples=40)  # for each of the pairs
@given(data=st.data())
def test_to_and_from_denoised_are_inverse_whatever_the_output(kind, schedule, data):
    node = data.draw(nodes(schedule))
    _, alpha, sigma = node
    x, output = math.hypot(alpha, sigma) * x_0, noise  # not a noisy version of anything
    denoised = to_denoised(kind, output, x, node)
    back = from_denoised(kind, denoised, x, node)
    size = BIGGEST * (1 + 1 / sigma) * (1 + sigma) * (1 + 1 / sigma if kind != "sample" else 1)
    close(back, output, size)


@over_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(kind, dtype):
    node, x = VPLinear().node(0.5), torch.ones(2, 3, 4, dtype=dtype)
    for convert in (to_denoised, from_denoised):
        got = convert(kind, x, x, node)
        half_combined = convert is to_denoised and kind != "sample" and dtype in (torch.float16, torch.bfloat16)
        assert (got.dtype, got.shape) == (torch.float32 if half_combined else dtype, x.shape)


@over_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_combined_in_float32(kind, dtype):
    """The result is that of the same half-precision inputs in float64, to a few roundings of float32."""
    node = VPLinear().node(1.0)
    x, output = x_0.to(dtype), noise.to(dtype)
    exact = to_denoised(kind, output.double(), x.double(), node)
    size = (x.double().abs() + output.double().abs()) / node.alpha
    assert ((to_denoised(kind, output, x, node) - exact).abs() <= 4 * 2.0**-24 * size).all()


@over_kinds
@over_schedules
def test_as_denoiser_gives_the_network_its_clock_and_returns_the_data(kind, schedule):
    seen = []
    time = schedule.t_min + 0.25 * (schedule.t_max - schedule.t_min)
    node = schedule.node(time)
    x = node.alpha * x_0 + node.sigma * noise

    def network(given_x, t):
        seen.append((given_x, t))
        return MEANING[kind](node.alpha, node.sigma)

    denoised = as_denoiser(network, kind, schedule)(x, time)
    assert torch.equal(denoised, to_denoised(kind, MEANING[kind](node.alpha, node.sigma), x, node))
    assert len(seen) == 1
    assert torch.equal(seen[0][0], x)
    assert seen[0][1] == time


@over_kinds
def test_as_denoiser_takes_a_network_that_works_in_place(kind):
    x, schedule = torch.randn(2, 3, dtype=torch.float64), VPLinear()
    got = as_denoiser(lambda x, t: x.mul_(t), kind, schedule)(x, 0.5)
    assert torch.equal(got, to_denoised(kind, x * 0.5, x, schedule.node(0.5)))


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_pure_noise_still_tells_the_data(kind):
    node = Flow().node(1.0)
    close(to_denoised(kind, MEANING[kind](0.0, 1.0), noise, node), x_0, 2 * BIGGEST)


@over_kinds
@over_schedules
def test_clean_data_is_its_own_denoised_image(kind, schedule):
    node = schedule.node(schedule.t_clean)
    output = x_0 if kind == "sample" else 7 * noise  # what a network says there is not heard
    assert torch.equal(to_denoised(kind, output, x_0, node), x_0)


@pytest.mark.parametrize("kind", ["eps", "epsilon ", "", None])
def test_unknown_kind_is_named(kind):
    message = rf"^kind must be one of sample, epsilon, score, v_prediction, flow_prediction; got {kind!r}$"
    for convert in (to_denoised, from_denoised):
        with pytest.raises(ValueError, match=message):
            convert(kind, x_0, x_0, Node(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        as_denoiser(lambda x, t: x, kind, EDM())


@pytest.mark.parametrize("kind", ["epsilon", "score"])
def test_epsilon_and_score_say_nothing_at_pure_noise(kind):
    for convert in (to_denoised, from_denoised):
        with pytest.raises(ValueError, match=rf"^{kind} .* alpha = 0 \(time 1\.0\): start the grid below pure noise"):
            convert(kind, noise, noise, Flow().node(1.0))


@pytest.mark.parametrize("kind", ["epsilon", "score", "v_prediction", "flow_prediction"])
def test_nothing_but_the_sample_can_be_read_off_clean_data(kind):
    with pytest.raises(ValueError, match=rf"^{kind} cannot be read off .* sigma = 0 \(time 0\.0\)$"):
        from_denoised(kind, x_0, x_0, EDM().node(0.0))
    assert torch.equal(from_denoised("sample", x_0, x_0, EDM().node(0.0)), x_0)


# Reversed clocks, carried schedules, and outputs that are no tensors like x


@pytest.mark.parametrize("schedule", [Flow(), VPLinear(), VPCosine()], ids=repr)
@over_kinds
def test_a_network_whose_data_are_at_time_1_is_told_its_own_time(kind, schedule):
    """And its flow prediction is the velocity on its own clock, to the data."""
    seen, node = [], schedule.node(0.25)
    sign = -1 if kind == "flow_prediction" else 1
    output = MEANING[kind](node.alpha, node.sigma)
    x = node.alpha * x_0 + node.sigma * noise
    denoiser = as_denoiser(lambda x, t: seen.append(t) or sign * output, kind, schedule, data_at=1)
    assert torch.equal(denoiser(x, 0.25), to_denoised(kind, output, x, node))
    assert seen == [0.75]


@pytest.mark.parametrize("schedule", [EDM(), sd_table(), VPLinear(t_max=2.0)], ids=lambda s: type(s).__name__)
def test_only_clocks_of_0_to_1_run_the_other_way(schedule):
    with pytest.raises(ValueError, match=r"data_at=1 needs a clock of \[0, 1\], as Flow's; got"):
        as_denoiser(lambda x, t: x, "sample", schedule, data_at=1)
    with pytest.raises(ValueError, match="data_at must be 0 or 1"):
        as_denoiser(lambda x, t: x, "sample", schedule, data_at=2)


def test_a_network_is_a_function():
    with pytest.raises(TypeError, match=r"network must be a function network\(x, t\); got NoneType"):
        as_denoiser(None, "sample", EDM())


@pytest.mark.parametrize("wrong", ["edm", EDM, None])
def test_a_schedule_is_one(wrong):
    with pytest.raises(TypeError, match=r"schedule must be a schedule such as EDM\(\); got"):
        as_denoiser(lambda x, t: x, "sample", wrong)


def test_a_denoiser_carries_its_schedule():
    assert as_denoiser(lambda x, t: x, "epsilon", VPCosine()).schedule == VPCosine()


IMAGES = torch.ones(2, 3, 4, 4)


class Output:
    sample = IMAGES


class Jax:
    def __dlpack__(self):
        raise NotImplementedError


WRONG = {
    "one channel": (
        IMAGES[:, :1],
        r"shape \(2, 1, 4, 4\) for x of shape \(2, 3, 4, 4\) at time 0\.5.*the shape it was",
    ),
    "a scalar": (IMAGES.sum(), r"shape \(\) for x of shape \(2, 3, 4, 4\)"),
    "one sample": (IMAGES[:1], r"shape \(1, 3, 4, 4\) for x"),
    "learned variance": (torch.ones(2, 6, 4, 4), r".*learned variance.*output\.chunk\(2, 1\)\[0\]"),
    "an output object": (Output(), r"Output at time 0\.5.*must return a tensor \(its \.sample\?\)"),
    "a tuple": ((IMAGES,), r"tuple .*\(the first of these\? or torch\.stack, torch\.as_tensor\)"),
    "a list": ([[1.0]], r"list .*torch\.as_tensor\)"),
    "numpy": (IMAGES.numpy(), r"ndarray .*\(torch\.from_numpy\)"),
    "JAX": (Jax(), r"Jax .*\(torch\.from_dlpack\)"),
    "integers": (IMAGES.int(), r"torch\.int32 at time 0\.5"),
    "elsewhere": (IMAGES.to("meta"), "a tensor on meta for x on cpu"),
    "nothing": (None, "NoneType at time"),
}
over_wrong = pytest.mark.parametrize(("output", "message"), WRONG.values(), ids=WRONG.keys())


@over_wrong
@over_kinds
def test_outputs_that_are_no_tensors_like_x_are_named(kind, output, message):
    with pytest.raises(DenoiserError, match="the network returned " + message):
        as_denoiser(lambda x, t: output, kind, VPLinear())(IMAGES, 0.5)
    with pytest.raises(DenoiserError, match="the network returned " + message):
        as_denoiser(lambda x, t: output, kind, Flow(), data_at=1)(IMAGES, 0.5)


@over_wrong
def test_denoisers_made_of_such_are_named_in_the_same_words(output, message):
    def wrong(x, t):
        return output

    def right(x, t):
        return x

    for denoiser in (guided(wrong, right, 2.0), clip(wrong), threshold(wrong)):
        with pytest.raises(DenoiserError, match="the denoiser returned " + message):
            denoiser(IMAGES, 0.5)
    with pytest.raises(DenoiserError, match="the unconditional denoiser returned " + message):
        guided(right, wrong, 2.0)(IMAGES, 0.5)
    with pytest.raises(DenoiserError, match=r"the denoiser returned .* at call 0 \(time 80, sigma 80\)"):
        sample(wrong, IMAGES, schedule=EDM())


# Times (B,), one a sample


def spread_times(schedule, count):
    """From the noisy end to the clean one, but for pure noise, of which epsilon says nothing."""
    return torch.tensor([schedule.ramp(u) for u in torch.linspace(0.99, 0.01, count).tolist()], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@over_kinds
@over_schedules
def test_one_call_with_times_of_each_sample_is_as_many_calls_apart(kind, schedule, dtype, exact):
    t = spread_times(schedule, 5)
    x = torch.randn(5, 2, 3, 4, dtype=dtype)

    def network(x, t):  # no sample knows of another; the clock in it makes a wrong time count
        return x.tanh() + torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1) / schedule.t_max

    denoiser = as_denoiser(network, kind, schedule)
    one, apart = denoiser(x, t), torch.cat([denoiser(x[i : i + 1], time) for i, time in enumerate(t.tolist())])
    for got, want in zip(one, apart, strict=True):  # each by its own size: at high noise epsilon is large
        assert (got - want).abs().max() <= exact * want.abs().max()
    assert one.dtype == dtype


@over_kinds
@over_schedules
def test_from_denoised_inverts_at_levels_of_each_sample(kind, schedule):
    nodes = [schedule.node(time) for time in spread_times(schedule, 3).tolist()]
    x, output = torch.randn(2, 3, 2, 4, dtype=torch.float64).unbind()
    back = from_denoised(kind, to_denoised(kind, output, x, nodes), x, nodes)
    for i, node in enumerate(nodes):
        alone = from_denoised(kind, to_denoised(kind, output[i : i + 1], x[i : i + 1], node), x[i : i + 1], node)
        torch.testing.assert_close(back[i : i + 1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_times_of_each_sample_is_combined_in_float32(dtype):
    schedule = VPLinear()
    nodes = [schedule.node(1.0), schedule.node(0.1)]
    x, output = x_0.to(dtype), noise.to(dtype)
    exact = to_denoised("epsilon", output.double(), x.double(), nodes)
    got = to_denoised("epsilon", output, x, nodes)
    size = (x.double().abs() + output.double().abs()) / torch.tensor([[node.alpha] for node in nodes])
    assert got.dtype == torch.float32
    assert ((got - exact).abs() <= 4 * 2.0**-24 * size).all()


def test_a_network_whose_data_are_at_time_1_is_told_each_samples_own_time():
    seen, schedule = [], Flow()
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    output = -(noise - x_0)
    x = torch.stack([(1 - s) * a + s * n for s, a, n in zip(t, x_0, noise, strict=True)])
    denoiser = as_denoiser(lambda x, t: seen.append(t) or output, "flow_prediction", schedule, data_at=1)
    close(denoiser(x, t), x_0, 2 * BIGGEST)
    assert seen[0].tolist() == [0.75, 0.5]


def test_times_that_are_not_one_a_sample_are_named():
    denoiser = as_denoiser(lambda x, t: x, "epsilon", EDM())
    with pytest.raises(ValueError, match=r"times must be one for all or one a sample, shape \(2,\); got 3"):
        denoiser(x_0, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"time must be finite and lie in \[0, inf\] for EDM.*got -1"):
        denoiser(x_0, torch.tensor([1.0, -1.0]))
    wrong = as_denoiser(lambda x, t: x[:1], "epsilon", EDM())
    with pytest.raises(DenoiserError, match=r"shape \(1, 3\) for x of shape \(2, 3\) at time 1, 0\.5;"):
        wrong(x_0, torch.tensor([1.0, 0.5]))
