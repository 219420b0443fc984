import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fewstep as fs
from fewstep import EDM, as_denoiser, clip, guided, sample, threshold

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cond(x, t):
    return 2 * x - t


def uncond(x, t):
    return x.sin() + t


def same(x, t):
    return x


def images(*shape, dtype=torch.float64, size=3.0):
    return (size * torch.randn(*shape, dtype=torch.float64)).to(dtype)


def strongly_guided(denoiser):
    return guided(denoiser, uncond, 7.5)


@over_dtypes
def test_scale_1_is_the_denoiser_to_the_bit(dtype):
    x = images(3, 4, 5, dtype=dtype)
    assert torch.equal(guided(cond, uncond, 1.0)(x, 0.5), cond(x, 0.5))


@over_dtypes
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 7.5])
def test_guidance_between_equals_is_none(dtype, scale):
    x = images(3, 4, 5, dtype=dtype)
    assert torch.equal(guided(cond, cond, scale)(x, 0.5), cond(x, 0.5))


@given(scale=st.floats(-20, 20))
def test_guidance_is_the_line_through_both_denoisers(scale):
    x, eps = images(3, 4, 5), torch.finfo(torch.float64).eps
    d, u = cond(x, 0.5), uncond(x, 0.5)
    # Four operations on numbers of at most (|scale| + 1) (|d| + |u|).
    atol = 4 * eps * (abs(scale) + 1) * float((d.abs() + u.abs()).max())
    torch.testing.assert_close(guided(cond, uncond, scale)(x, 0.5), u + scale * (d - u), rtol=0, atol=atol)


def test_guidance_asks_each_denoiser_once_with_the_same_arguments():
    seen = []

    def spy(x, t):
        seen.append((x, t))
        return x

    x = images(2, 3)
    guided(spy, spy, 2.0)(x, 0.5)
    assert len(seen) == 2
    assert all(torch.equal(given_x, x) and t == 0.5 for given_x, t in seen)


@pytest.mark.parametrize("of", ["sample", "epsilon", "v_prediction"])
def test_rescaling_takes_an_unconditional_model_that_works_in_place(of):
    x = images(2, 3)

    def careless(x, t):
        answered = uncond(x, t)
        x.zero_()
        return answered

    first, plain, second = (fs.as_denoiser(each, "sample", fs.EDM()) for each in (cond, uncond, careless))
    assert torch.equal(
        fs.rescaled(first, second, 3.0, of=of)(x.clone(), 0.5), fs.rescaled(first, plain, 3.0, of=of)(x, 0.5)
    )


def test_guidance_takes_models_that_work_in_place_and_answer_in_one_buffer():
    x, buffer = images(3, 4, 5), torch.empty(3, 4, 5, dtype=torch.float64)
    got = guided(lambda x, t: buffer.copy_(x.mul_(t)), lambda x, t: buffer.copy_(x), 7.5)(x.clone(), 0.5)
    assert torch.equal(got, guided(lambda x, t: x * t, same, 7.5)(x, 0.5))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scale_must_be_finite(scale):
    with pytest.raises(ValueError, match=f"^scale must be finite, .*; got scale={scale}$"):
        guided(cond, uncond, scale)


@given(
    quantile=st.floats(0.01, 1.0),
    floor=st.floats(0.1, 2.0),
    shape=st.sampled_from([(1, 1), (2, 2), (3, 7), (2, 3, 5, 5)]),
)
def test_threshold_is_the_definition(quantile, floor, shape):
    x = images(*shape)
    limit = torch.quantile(x.flatten(1).abs(), quantile, dim=1).clamp_min(floor).reshape(-1, *[1] * (x.ndim - 1))
    expected = x.clamp(-limit, limit) * floor / limit
    # torch.quantile places the quantile to a rounding of the count, between statistics at most max |x| apart.
    eps = torch.finfo(torch.float64).eps
    atol = 8 * eps * x[0].numel() * float(x.abs().max())
    torch.testing.assert_close(threshold(same, quantile, floor)(x, 0.5), expected, rtol=8 * eps, atol=atol)


@over_dtypes
@pytest.mark.parametrize("floor", [0.1, 1.0, 3.0])
def test_threshold_leaves_images_within_the_floor_alone(dtype, floor):
    x = images(4, 3, 5, dtype=dtype).clamp(-0.99 * floor, 0.99 * floor)
    assert torch.equal(threshold(same, floor=floor)(x, 0.5), x)


@over_dtypes
@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_threshold_ends_within_the_floor(dtype, floor):
    x = images(4, 3, 5, dtype=dtype, size=50.0)
    bound = floor * (1 + torch.finfo(dtype).eps)
    assert float(threshold(same, floor=floor)(x, 0.5).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_threshold_of_half_precision_rounds_once(dtype):
    x = images(4, 3, 5, dtype=dtype)
    denoise = threshold(same, 0.9)
    assert torch.equal(denoise(x, 0.5), denoise(x.float(), 0.5).to(dtype))


@pytest.mark.parametrize("wrap", [threshold, clip, strongly_guided])
@over_dtypes
def test_an_image_does_not_depend_on_its_batch_mates(wrap, dtype):
    x = images(7, 3, 5, 5, dtype=dtype)
    denoise = wrap(same)
    together, alone = denoise(x, 0.5), torch.cat([denoise(image, 0.5) for image in x.split(1)])
    assert (together.dtype, together.shape) == (dtype, x.shape)
    assert torch.equal(together, alone)


def test_threshold_takes_more_pixels_than_torch_quantile():
    n = 2**24 + 1
    x = torch.linspace(0, 4, n)[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.5, dim=1)
    # The median is the middle element.
    assert torch.equal(threshold(same, 0.5)(x, 0.5), (x / x[0, n // 2]).clamp(max=1))


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.1, math.nan])
def test_quantile_must_be_a_share(quantile):
    with pytest.raises(ValueError, match=rf"^quantile must lie in \(0, 1\]; got quantile={quantile}$"):
        threshold(same, quantile)


@pytest.mark.parametrize("floor", [0.0, -1.0, math.inf, math.nan])
def test_floor_must_be_positive(floor):
    with pytest.raises(ValueError, match=f"^floor must be positive.*; got floor={floor}$"):
        threshold(same, floor=floor)


@given(low=st.floats(-5, 0), high=st.floats(0.1, 5))
def test_clip_is_the_nearest_point_of_the_range(low, high):
    x = images(3, 4)
    expected = torch.minimum(torch.maximum(x, torch.tensor(low, dtype=x.dtype)), torch.tensor(high, dtype=x.dtype))
    assert torch.equal(clip(same, low, high)(x, 0.5), expected)


def test_clip_is_to_unit_range_unless_told():
    assert clip(same)(torch.tensor([[-3.0, 0.5, 3.0]]), 0.5).tolist() == [[-1.0, 0.5, 1.0]]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_clip_range_must_not_be_empty(low, high):
    with pytest.raises(ValueError, match=f"^clip needs low < high; got low={low}, high={high}$"):
        clip(same, low, high)


# One scale a sample, and schedules


@over_dtypes
def test_a_scale_each_is_that_scale_alone_to_the_bit(dtype):
    x, scales = images(4, 3, 5, dtype=dtype), torch.tensor([1.0, 0.0, 7.5, -0.3], dtype=torch.float64)
    got = guided(cond, uncond, scales)(x, 0.5)
    assert got.dtype == dtype
    for i, scale in enumerate(scales.tolist()):
        assert torch.equal(got[i : i + 1], guided(cond, uncond, scale)(x[i : i + 1], 0.5))


def test_a_scale_each_is_one_a_sample():
    with pytest.raises(ValueError, match="scale must be one for all or one a sample, 3; got 2"):
        guided(cond, uncond, torch.tensor([1.0, 2.0]))(images(3, 4), 0.5)
    for wrong in (torch.ones(2, 2), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match=r"scale must be finite, one for all or a tensor \(B,\)"):
            guided(cond, uncond, wrong)


@pytest.mark.parametrize("scale", ["2", None, [1.0, "2"], object()])
def test_a_scale_that_is_no_number_is_refused_by_name(scale):
    with pytest.raises(TypeError, match="scale must be a number, or a tensor of one a sample; got scale="):
        guided(cond, uncond, scale)


def test_a_scale_of_torch_or_integers_is_a_number():
    x = images(2, 3)
    for scale in (torch.tensor(2.0), 2):
        assert torch.equal(guided(cond, uncond, scale)(x, 0.5), guided(cond, uncond, 2.0)(x, 0.5))


def test_a_run_takes_a_scale_each():
    x, scales = torch.randn(3, 8), torch.tensor([1.0, 2.0, 4.0])
    denoiser = as_denoiser(lambda x, t: x / (1 + t * t), "sample", EDM())
    whole = sample(guided(denoiser, uncond_of_edm, scales), x, nfe=4)
    for i, scale in enumerate(scales.tolist()):
        assert torch.equal(whole[i : i + 1], sample(guided(denoiser, uncond_of_edm, scale), x[i : i + 1], nfe=4))


def uncond_of_edm(x, t):
    return x / (2 + t * t)


def test_no_schedule_is_carried_where_none_is_known():
    for denoiser in (guided(cond, uncond, 2.0), clip(cond), threshold(cond)):
        assert denoiser.schedule is None


CFGPP_SCHEDULES = [fs.EDM(), fs.VPLinear(), fs.Flow(shift=3.0)]


@pytest.mark.parametrize("schedule", CFGPP_SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
def test_cfgpp_is_the_step_with_the_unconditional_noise(schedule, scale):
    """Against the step as published: x_t = alpha_t D_scale + sigma_t e_uncond."""

    def first(x, t):
        return x / (2 + t) + 0.5

    def second(x, t):
        return torch.tanh(x / (1 + t))

    nodes = fs.time_uniform(schedule, 6, to_zero=True)
    x = start = torch.randn(2, 3, 4, 4, dtype=torch.float64) * nodes[0].sigma
    for s, t in pairwise(nodes):
        plain = second(x, s.time)
        guided = plain + scale * (first(x, s.time) - plain)
        x = t.alpha * guided + t.sigma * (x - s.alpha * plain) / s.sigma
    got = fs.integrate(fs.cfgpp(first, second, scale, nodes), start, nodes, solver=fs.DDIM(), schedule=schedule)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-11)


def test_cfgpp_of_two_that_agree_is_their_answer():
    nodes = fs.log_snr(fs.EDM(), 5)
    both = fs.cfgpp(same, same, 0.7, nodes)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(both(x, nodes[2].time), same(x, nodes[2].time))


def test_cfgpp_refuses():
    nodes = fs.log_snr(fs.EDM(), 5)
    with pytest.raises(ValueError, match=r"scale must be finite, .*got scale=nan"):
        fs.cfgpp(same, same, math.nan, nodes)
    with pytest.raises(ValueError, match="needs nodes of falling noise"):
        fs.cfgpp(same, same, 0.5, nodes[::-1])
    with pytest.raises(ValueError, match="scale must be one for all, as it follows the steps"):
        fs.cfgpp(same, same, torch.tensor([0.5, 0.7]), nodes)
    noisy = fs.log_snr(fs.EDM(), 5, to_zero=False)
    plus = fs.cfgpp(same, same, 0.5, noisy)
    for denoiser in (plus, fs.clip(plus, -1, 1)):
        with pytest.raises(ValueError, match=r"CFG\+\+ follows steps of falling noise; got nodes from time 0\.002"):
            fs.integrate(denoiser, torch.ones(1, 2), noisy[::-1], solver=fs.DDIM(), schedule=fs.EDM())
    with pytest.raises(ValueError, match=r"made for calls at other nodes; got time 3\.0"):
        fs.cfgpp(same, same, 0.5, nodes)(torch.ones(1, 2), 3.0)


@pytest.mark.parametrize("solver", [fs.Heun(), fs.SEEDS(r=1.0), fs.DPMSolverPP(2, method="singlestep")])
@pytest.mark.parametrize("wrap", [lambda denoiser: denoiser, lambda denoiser: fs.clip(denoiser, -1, 1)])
def test_cfgpp_is_refused_with_several_calls_a_step(solver, wrap):
    nodes = fs.log_snr(fs.EDM(), 5)
    denoiser = wrap(fs.cfgpp(same, same, 0.5, nodes))
    with pytest.raises(ValueError, match=r"CFG\+\+ follows the steps, one call each.*take a solver of one call a step"):
        fs.integrate(denoiser, torch.ones(1, 2), nodes, solver=solver, schedule=fs.EDM(), seeds=[0])
    with pytest.raises(ValueError, match=r"CFG\+\+ follows the steps"):
        fs.sample(denoiser, torch.ones(1, 2), nfe=10, solver=solver, schedule=fs.EDM(), seeds=[0])


@pytest.mark.parametrize("nodes", [(), [80.0, 1.0, 0.0], [fs.EDM().node(80.0)]])
def test_cfgpp_asks_for_the_nodes_of_a_run(nodes):
    with pytest.raises(TypeError, match="nodes must be those of the run, as a grid makes them"):
        fs.cfgpp(lambda x, t: x, lambda x, t: x, 0.5, nodes)


@pytest.mark.parametrize("wrap", ["guided", "a scale each", "cfgpp", "clip", "threshold"])
def test_one_call_with_times_of_each_sample_is_as_many_calls_apart(wrap):
    x, nodes = images(4, 3, 5), fs.log_snr(EDM(), 4)
    t = torch.tensor([node.time for node in nodes[:4]], dtype=torch.float64)

    def of(model):
        return lambda x, t: model(x, torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1))

    def wrapped(row):
        scale = torch.tensor([1.0, 2.0, 0.5, 7.5])[row] if wrap == "a scale each" else 2.0
        if wrap == "cfgpp":
            return fs.cfgpp(of(cond), of(uncond), 0.7, nodes)
        return {"clip": clip, "threshold": threshold}.get(wrap, lambda d: guided(d, of(uncond), scale))(of(cond))

    apart = [wrapped(slice(i, i + 1))(x[i : i + 1], time) for i, time in enumerate(t.tolist())]
    want = torch.cat(apart)
    # The sine of an element is that of its place in a vector, to a rounding.
    torch.testing.assert_close(wrapped(slice(4))(x, t), want, rtol=0, atol=1e-12 * want.abs().max().item())


def test_cfgpp_names_the_one_time_that_is_at_no_node():
    nodes = fs.log_snr(EDM(), 4)
    with pytest.raises(ValueError, match=r"CFG\+\+ was made for calls at other nodes; got time 0\.7:"):
        fs.cfgpp(cond, uncond, 0.7, nodes)(images(2, 3), torch.tensor([nodes[0].time, 0.7], dtype=torch.float64))
