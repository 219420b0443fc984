"""EVODiffScheduler by itself: the contract of a scheduler, and that a run of it is a run of fewstep."""

import copy
import inspect
import json
import threading
import weakref

import diffusers
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fewstep as fs
from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.integrations.diffusers_levels import level
from fewstep.prediction import KINDS, from_denoised
from fewstep.solvers.evodiff.family import Family
from fewstep.solvers.tuned import Measured, Tuned
from fewstep.solvers.tuned.measured import asked
from fewstep.statistics import describe
from fewstep.table import SOLVERS
from integrations.runs import DETERMINISTIC, ONE_CALL, denoise, network, pull, push

GRIDS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_focused_sigmas"]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
# Whose weights depend on x, or whose field is of neither images nor noise.
NOT_LINEAR = ("evodiff-paper", "evodiff-eta", "evodiff-zeta", "ipndm-4-velocity")
STOCHASTIC = [name for name in ONE_CALL if SOLVERS[name].stochastic]


def scheduled(steps=10, *, begin=None, **config):
    scheduler = EVODiffScheduler(**config)
    scheduler.set_timesteps(steps)
    if begin is not None:
        scheduler.set_begin_index(begin)
    return scheduler


def latents(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*(shape or (2, 4, 6, 6)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# A run is the run of fewstep


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("config", [{"beta_schedule": "scaled_linear"}, FLOW], ids=["betas", "flow"])
def test_every_solver_of_one_call_runs_as_it_does_in_fewstep(name, config):
    scheduler = scheduled(8, solver=name, **config)
    close(pull(scheduler, latents()), push(scheduler, latents()), 1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 25, 50])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("config", [{}, FLOW], ids=["betas", "flow"])
def test_every_number_of_steps(steps, final, config):
    scheduler = scheduled(steps, final_sigmas_type=final, **config)
    got = pull(scheduler, latents())
    close(got, push(scheduler, latents()), 1e-8)
    assert got.isfinite().all()
    assert len(scheduler.timesteps) == steps


def test_one_step_returns_the_denoised_image():
    scheduler = scheduled(1)
    close(pull(scheduler, latents()), denoise(latents(), scheduler._nodes[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_type_gives_the_same_run(kind):
    close(pull(scheduled(prediction_type=kind), latents()), pull(scheduled(), latents()), 1e-8)


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 12, 16), (1, 4, 3, 4, 4)], ids=["image", "packed", "video"])
def test_every_rank_of_a_flow(shape):
    scheduler = scheduled(**FLOW)
    close(pull(scheduler, latents(*shape)), push(scheduler, latents(*shape)))


def test_channels_are_measured_where_the_config_says():
    x = latents(2, 5, 7)
    published = {"solver": "evodiff-published"}
    last = pull(scheduled(channel_dim=-1, **published), x)
    assert not torch.allclose(last, pull(scheduled(**published), x))
    close(last.mT, pull(scheduled(**published), x.mT), 1e-9)
    close(pull(scheduled(channel_dim=None, **published), x), pull(scheduled(solver="evodiff-whole"), x))


def test_a_sample_does_not_depend_on_its_batch():
    x = latents(3, 4, 6, 6)
    together = pull(scheduled(), x)
    assert torch.equal(together, torch.cat([pull(scheduled(), x[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_comes_from_the_generator(name):
    def run(seed):
        return pull(scheduled(solver=name), latents(), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_given_noise_is_used_in_place_of_the_generator():
    scheduler = scheduled(solver="ddpm")
    x, noise = latents(), latents(seed=1)
    model = network(scheduler)
    output, t = model(x, scheduler.timesteps[0]), scheduler.timesteps[0]
    silent = copy.deepcopy(scheduler).step(output, t, x, variance_noise=torch.zeros_like(x)).prev_sample
    noisy = scheduler.step(output, t, x, variance_noise=noise).prev_sample
    close(noisy - silent, noise * scheduler._stages[0].noise)


# Begin anywhere, stop, repeat, copy


@pytest.mark.parametrize("begin", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("told", [True, False], ids=["begin index", "by timestep"])
@pytest.mark.parametrize("name", ["evodiff", "unipc-3"])
def test_a_run_may_begin_anywhere(begin, told, name):
    scheduler = scheduled(solver=name, begin=begin if told else None)
    got = pull(scheduler, latents(), start=begin)
    close(got, push(scheduler, latents(), start=begin), 1e-9)
    if begin == 9:
        close(got, denoise(latents(), scheduler._nodes[9]), 1e-9)


def test_a_timestep_is_found_by_value_too():
    scheduler = scheduled()
    model, x = network(scheduler), latents()
    for t in scheduler.timesteps[4:].tolist():
        x = scheduler.step(model(x, torch.tensor(t)), t, x).prev_sample
    close(x, push(scheduler, latents(), start=4), 1e-9)


def test_of_equal_timesteps_the_second_is_where_a_run_begins():
    scheduler = EVODiffScheduler()
    scheduler.set_timesteps(sigmas=[9.0, 5.0, 2.0, 1.0], timesteps=[900, 700, 700, 500])
    scheduler.step(latents(), 700, latents())
    assert scheduler.step_index == 3
    scheduler.set_timesteps(sigmas=[9.0, 5.0, 2.0, 1.0], timesteps=[900, 700, 700, 500])
    scheduler.step(latents(), scheduler.timesteps[1], latents())
    assert scheduler.step_index == 2, "a view of the timesteps says which"


@pytest.mark.parametrize("name", ["evodiff", "evodiff-paper", "unipc-3", "dpmpp-3m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_may_be_repeated(name, dtype):
    once, twice = (scheduled(solver=name, **FLOW) for _ in range(2))
    x, other = latents(dtype=dtype), latents(dtype=dtype, seed=1)
    y = x
    for t in once.timesteps:
        output = network(once)(x, t)
        twice.step(other, t, y)
        twice._step_index -= 1
        x, y = once.step(output, t, x).prev_sample, twice.step(output, t, y).prev_sample
        assert torch.equal(x, y)


def test_a_copy_goes_on_as_the_original_does():
    scheduler = scheduled(solver="unipc-3")
    model, x = network(scheduler), latents()
    for i, t in enumerate(scheduler.timesteps):
        if i == 4:
            copied, y = copy.deepcopy(scheduler), x.clone()
        x = scheduler.step(model(x, t), t, x).prev_sample
    for t in copied.timesteps[4:]:
        y = copied.step(model(y, t), t, y).prev_sample
    assert torch.equal(x, y)


def test_copies_run_in_threads():
    scheduler, results = scheduled(25), {}
    expected = [pull(copy.deepcopy(scheduler), latents(seed=i)) for i in range(4)]

    def run(i):
        own = copy.deepcopy(scheduler)
        results[i] = pull(own, latents(seed=i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], expected[i]) for i in range(4))


def test_latents_of_another_shape_begin_anew():
    # As where a pipeline drops frames in the middle of a run.
    scheduler = scheduled(**FLOW)
    model, x = network(scheduler), latents(1, 4, 5, 4, 4)
    for i, t in enumerate(scheduler.timesteps):
        if i == 4:
            x = y = x[:, :, [0, -1]]
        x = scheduler.step(model(x, t), t, x).prev_sample
    close(x, push(scheduler, y, start=4))


def test_a_begin_index_before_there_are_steps_is_forgotten():
    scheduler = EVODiffScheduler()
    scheduler.set_begin_index(5)
    scheduler.set_timesteps(10)
    assert scheduler.begin_index is None
    scheduler.set_begin_index(10)
    with pytest.raises(ValueError, match="has no step 10"):
        scheduler.step(latents(), 0, latents())


def test_a_scheduler_is_used_again():
    scheduler = scheduled()
    first = pull(scheduler, latents())
    scheduler.set_timesteps(10)
    assert torch.equal(pull(scheduler, latents()), first)
    with pytest.raises(ValueError, match="set_timesteps again"):
        scheduler.step(latents(), 0, latents())


# Edits between calls


def moved_by_an_edit(name, kind, edit_at):
    """What raising x by 1 before a step changes at the end, if the network answers the same whatever x is."""
    results = []
    for edit in (0.0, 1.0):
        scheduler, x = scheduled(solver=name, prediction_type=kind, final_sigmas_type="sigma_min"), latents()
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(latents(seed=i + 1), t, x + edit if i == edit_at else x).prev_sample
        results.append(x)
    return results[1] - results[0]


# REAB takes it that an answer follows x as on a Gaussian; this network's does not.
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not name.startswith("reab")])
@pytest.mark.parametrize("edit_at", [1, 4, 8])
def test_an_edit_survives_its_step(name, edit_at):
    nodes = scheduled(final_sigmas_type="sigma_min")._nodes
    with_image, with_noise = (moved_by_an_edit(name, kind, edit_at) for kind in ("sample", "epsilon"))
    if name == "evodiff" or name.startswith(NOT_LINEAR):  # the default trusts an answer by the noise that it finds in x
        assert with_image.mean() > nodes[-1].sigma / nodes[edit_at].sigma / 10
        return
    # Solvers scale x as sigma if they combine images, as alpha if they combine noise, and then it moves nothing else.
    as_sigma = torch.full_like(with_image, nodes[-1].sigma / nodes[edit_at].sigma)
    as_alpha = torch.full_like(with_noise, nodes[-1].alpha / nodes[edit_at].alpha)
    combines_images = torch.allclose(with_image, as_sigma, rtol=1e-8)
    assert combines_images or torch.allclose(with_noise, as_alpha, rtol=1e-8)


@pytest.mark.parametrize("name", ["evodiff", "unipc-2", "dpmpp-2m"])
def test_a_blend_with_a_mask_ends_at_the_image(name):
    """Inpainting: the known half is put back after every step, noised to the level of the next."""
    scheduler = scheduled(solver=name, begin=0)
    model, x, image, noise = network(scheduler), latents(), latents(seed=1) / 4, latents(seed=2)
    mask = torch.zeros_like(x)
    mask[..., 3:] = 1
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(x, t), t, x).prev_sample
        known = image if i == 9 else scheduler.add_noise(image, noise, scheduler.timesteps[i + 1][None])
        x = (1 - mask) * known + mask * x
    assert torch.equal(x[..., :3], image[..., :3])
    assert x.isfinite().all()


def test_latents_edited_in_place_do_not_reach_the_history():
    clean, edited = scheduled(solver="unipc-3"), scheduled(solver="unipc-3")
    model, x, y = network(clean), latents(), latents()
    for t in clean.timesteps:
        output, shown = model(x, t), model(x, t)
        before, given = x, y
        x, y = clean.step(output, t, x).prev_sample, edited.step(shown, t, y).prev_sample
        shown.fill_(torch.nan)
        if given is not y:
            given.fill_(torch.nan)
        assert not before.isnan().any()
    assert torch.equal(x, y)


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["evodiff", "unipc-3", "dpmpp-3m"])
def test_half_precision_latents_lose_nothing_on_the_way(dtype, name):
    half, full = (scheduled(25, solver=name, prediction_type="sample") for _ in range(2))
    x = latents(dtype=torch.float32).to(dtype)
    y, eps, largest = x.float(), torch.finfo(dtype).eps, 1.0
    for i, t in enumerate(half.timesteps):
        output = latents(dtype=torch.float32, seed=i).to(dtype)
        x, y = half.step(output, t, x).prev_sample, full.step(output.float(), t, y).prev_sample
        assert x.dtype == dtype
        largest = max(largest, float(y.abs().max()))
        # What is shown is rounded once. What that took is kept, itself rounded: eps^2 a step.
        assert ((x.float() - y).abs() <= eps / 2 * y.abs() + len(half.timesteps) * eps**2 * largest).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_finite(dtype, kind):
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        config = {"beta_schedule": schedule, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        scheduler = scheduled(prediction_type=kind, **config)
        assert scheduler._nodes[0].nsr >= 4000
        x = pull(scheduler, latents(dtype=torch.float32).to(dtype))
        assert x.isfinite().all()
        assert x.dtype == dtype


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.995])
@pytest.mark.parametrize("most", [1.0, 1.5])
def test_thresholding_is_the_definition(ratio, most):
    x, options = 3 * latents(), {"dynamic_thresholding_ratio": ratio, "sample_max_value": most}
    scheduler = scheduled(1, prediction_type="sample", thresholding=True, **options)
    limit = x.flatten(1).abs().quantile(ratio, dim=1).clamp(1, most).reshape(-1, 1, 1, 1)
    close(scheduler.step(x, 999, x).prev_sample, x.clamp(-limit, limit) / limit)


@pytest.mark.parametrize("most", [1.0, 0.5])
def test_samples_are_clipped_where_the_config_says(most):
    x = 3 * latents()
    source = diffusers.DDIMScheduler(prediction_type="sample", clip_sample_range=most).config  # clips by default
    for config in (source, {**source, "_class_name": "DDIMScheduler"}):
        scheduler = EVODiffScheduler.from_config(config)
        scheduler.set_timesteps(1)
        close(scheduler.step(x, 999, x).prev_sample, x.clamp(-most, most))
    # Our own passes it on, on and off, through classes that know nothing of it.
    for clip in (True, False):
        ours = EVODiffScheduler.from_config(source, clip_sample=clip).config
        assert EVODiffScheduler.from_config(ours).config.clip_sample is clip
        assert diffusers.DDIMScheduler.from_config(ours).config.clip_sample is clip


def test_a_clip_that_its_scheduler_does_not_make_is_not_made():
    """Euler keeps what DDIM's config says, and does nothing of it."""
    euler = diffusers.EulerDiscreteScheduler.from_config({"_class_name": "DDIMScheduler", "clip_sample": True})
    assert euler.config.clip_sample
    assert not EVODiffScheduler.from_config(euler.config).config.clip_sample


def test_a_learned_variance_is_left_out():
    x, variance = latents(), latents(seed=3)
    scheduler = scheduled(variance_type="learned_range")
    both = scheduler.step(torch.cat([x, variance], dim=1), 999, x).prev_sample
    close(both, scheduled().step(x, 999, x).prev_sample)
    with pytest.raises(ValueError, match="learned_range"):
        scheduled().step(torch.cat([x, variance], dim=1), 999, x)


# Nothing waits, nothing is kept in excess, nothing breaks a graph


class Operations(TorchDispatchMode):
    """The names of all operations, and the most bytes that their results took together."""

    def __init__(self):
        super().__init__()
        self.names, self.live, self.peak = set(), [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        self.live = [ref for ref in self.live if ref() is not None]
        self.live += [weakref.ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        storages = {ref().untyped_storage().data_ptr(): ref().untyped_storage().nbytes() for ref in self.live}
        self.peak = max(self.peak, sum(storages.values()))
        return out


WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim"}
UPLOADS = {"lift_fresh", "scalar_tensor", "tensor"}


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name != "era"])  # ERA uploads its table of weights
@pytest.mark.parametrize("begin", [None, 0, 3])
def test_a_step_reads_and_uploads_no_number_and_solves_no_system(name, begin):
    scheduler = scheduled(30, solver=name, begin=begin, thresholding=True)
    x, output = latents(), latents(seed=1)
    with Operations() as operations:
        for t in scheduler.timesteps[begin or 0 :]:
            x = scheduler.step(output, t, x, return_dict=False)[0]
    assert not operations.names & (WAITS | UPLOADS)
    systems = {name for name in operations.names if "linalg" in name or "solve" in name}
    assert systems <= {"linalg_vector_norm"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in ONE_CALL if name != "era"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_waits_for_the_gpu(name, dtype):
    for config, shape in [({}, (2, 4, 32, 32)), (FLOW, (2, 64, 16)), (FLOW, (1, 16, 5, 16, 16))]:
        scheduler = EVODiffScheduler(solver=name, **config)
        scheduler.set_timesteps(25, device="cuda")
        x = torch.randn(shape, device="cuda", dtype=dtype)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for t in scheduler.timesteps:
                x = scheduler.step(0.5 * x, t, x, return_dict=False)[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert x.isfinite().all()


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(("name", "latents_kept"), [("evodiff", 7), ("evodiff-published", 4)])
def test_what_a_step_needs_room_for(name, latents_kept, steps):
    scheduler = scheduled(steps, solver=name)
    x, output = latents(1, 4, 64, 64, dtype=torch.float32), latents(1, 4, 64, 64, dtype=torch.float32)
    size = x.nbytes
    with Operations() as operations:
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x, return_dict=False)[0]
    # EVODiff's 4 of the state, the new answer, its difference from the last and what the step adds. The sample that
    # comes in and the one that goes out are the pipeline's; 1% for what is small.
    assert operations.peak <= (latents_kept + 2) * size * 1.01


@pytest.mark.parametrize("name", ["evodiff", "evodiff-published", "unipc-3"])
@pytest.mark.parametrize(("config", "shape"), [({}, (1, 4, 8, 8)), (FLOW, (2, 16, 12))], ids=["betas", "packed flow"])
def test_a_loop_of_steps_compiles_to_one_graph(name, config, shape):
    def loop(scheduler, x):
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x) / 2, t, x, return_dict=False)[0]
        return x

    torch._dynamo.reset()
    options = {"solver": name, "begin": 0, **config}
    compiled = torch.compile(loop, fullgraph=True, backend="eager")(scheduled(5, **options), latents(*shape))
    close(compiled, loop(scheduled(5, **options), latents(*shape)), 1e-6)


@pytest.mark.parametrize("name", ["evodiff", "evodiff-published", "evodiff-paper", "unipc-3", "dpmpp-2m"])
def test_gradients_pass_through_the_steps(name):
    def loss(weight):
        scheduler, x = scheduled(5, solver=name, **FLOW), latents()
        for t in scheduler.timesteps:
            x = scheduler.step(weight * torch.tanh(x), t, x).prev_sample
        return x.square().mean()

    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (weight,))


# How good it is


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MODELS = {
    "SD 1.5": {**SD, "timestep_spacing": "leading", "steps_offset": 1},
    "SDXL": {**SD, "timestep_spacing": "trailing"},
    "zero SNR": {**SD, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "SD3": FLOW,
    "flow without shift": {**FLOW, "flow_shift": 1.0},
}


@pytest.mark.parametrize("focused", [False, True], ids=["its own levels", "focused"])
@pytest.mark.parametrize("name", MODELS)
def test_the_default_is_no_worse_than_unipc_on_gaussian_latents(name, focused):
    """Standard deviations of 0.03 to 3, whose runs are known. To a tenth: a config's own levels decide the error."""
    std = torch.logspace(-1.5, 0.5, 64, dtype=torch.float64).reshape(4, 4, 4)

    def error(solver, steps):
        scheduler = scheduled(steps, solver=solver, use_focused_sigmas=focused, **MODELS[name])
        nodes = scheduler._nodes
        variances = [(node.alpha * std) ** 2 + node.sigma**2 for node in nodes]
        x = latents(4, 4, 4, 4) * variances[0].sqrt()
        exact = x * (variances[-1] / variances[0]).sqrt()
        for t, node, variance in zip(scheduler.timesteps, nodes, variances, strict=False):
            output = from_denoised(scheduler.config.prediction_type, x * node.alpha * std**2 / variance, x, node)
            x = scheduler.step(output, t, x).prev_sample
        return (x - exact).square().mean().sqrt().item()

    for steps in (5, 8, 10, 20, 50):
        assert error("evodiff", steps) < 1.1 * error("unipc-2", steps)


# What is predicted on the way


@pytest.mark.parametrize("name", ONE_CALL)
@pytest.mark.parametrize("config", [{}, FLOW], ids=["betas", "flow"])
def test_the_clean_latents_that_are_predicted_come_out_too(name, config):
    scheduler, x, shown = scheduled(solver=name, **config), latents(), []
    model, generator = network(scheduler), torch.Generator().manual_seed(0)
    for t, node in zip(scheduler.timesteps, scheduler._nodes, strict=False):
        predicted = denoise(x, node)
        out = scheduler.step(model(x, t), t, x, generator=generator)
        shown.append((out.pred_original_sample, predicted))
        x = out.prev_sample
    for got, predicted in shown:  # after the run, which goes on with them
        close(got, predicted, 1e-9)


def test_what_is_predicted_is_clipped_as_the_run_sees_it():
    x = 3 * latents(dtype=torch.float32).half()
    for options in ({"clip_sample": True}, {"thresholding": True}):
        out = scheduled(prediction_type="sample", **options).step(x, 999, x)
        assert out.pred_original_sample.abs().max() <= 1
        assert out.pred_original_sample.dtype == torch.float32


# A timestep for each token


def conditioned(solver, mask, x, std=0.5):
    """LTX's loop with conditions on Gaussian data: tokens of `mask` m are at sigma <= 1 - m from the start."""
    scheduler = scheduled(40, solver=solver, use_focused_sigmas=True, **FLOW)
    at_start = torch.minimum(torch.tensor(1.0), 1 - mask)[..., None]
    clean = x * std  # the exact end of every token, wherever it starts
    x = x * (((1 - at_start) * std) ** 2 + at_start**2).sqrt()
    start = x
    for t in scheduler.timesteps:
        told = torch.minimum(t.expand(1, 1), (1 - mask) * 1000)
        sigma = told.double()[..., None] / 1000
        denoised = (1 - sigma) * std**2 / (((1 - sigma) * std) ** 2 + sigma**2) * x
        velocity = torch.where(sigma > 0, (x - denoised) / sigma, 0.0)
        out = scheduler.step(-velocity, t, x, per_token_timesteps=told, return_dict=False)[0]
        x = torch.where((t / 1000 - 1e-6 < 1 - mask)[..., None], out, x)
        assert torch.equal(out, x), "who waits stays without the pipeline's help"
    return x, start, clean


@pytest.mark.parametrize("solver", ["evodiff", "unipc-2", "dpmpp-2m", "ddim", "evodiff-paper", "evodiff-published"])
def test_tokens_enter_the_run_at_their_own_level(solver):
    mask = torch.tensor([[0.0, 0.0, 1.0, 0.6, 0.2]]).repeat(2, 1)
    x = latents(2, 5, 64)
    got, start, clean = conditioned(solver, mask, x)
    alone, _, _ = conditioned(solver, torch.zeros(2, 5), x)
    assert torch.equal(got[:, 2], start[:, 2]), "a clean condition stays"
    if not solver.startswith("evodiff"):  # which measures over all tokens
        close(got[:, :2], alone[:, :2])
    far = ((got - clean).square().mean((0, 2)).sqrt() / clean.square().mean((0, 2)).sqrt()).tolist()
    ordinary = max(((alone - clean).square().mean().sqrt() / clean.square().mean().sqrt()).item(), 0.01)
    assert max(far[3:]) < 5 * ordinary, far


def test_a_timestep_for_each_token_of_what_has_no_tokens_is_refused():
    told = torch.full((2, 4), 500.0)
    packed = latents(2, 4, 8)
    for scheduler, x in (
        (scheduled(), packed), (scheduled(**FLOW), latents()), (scheduled(**FLOW, invert_sigmas=True), packed),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"per_token_timesteps \(B, L\)"):
            scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=told)


# MiniMax-H3


def test_minimax_h3_takes_the_steps_of_its_own_scheduler():
    """Velocity to the data, told 1 - sigma; without a batch. Its count includes the end: eight levels, seven calls."""
    own = diffusers.MiniMaxH3Scheduler(shift=12.0)
    own.set_timesteps(8)
    scheduler = EVODiffScheduler.from_config({"_class_name": "MiniMaxH3Scheduler", "shift": 12.0}, solver="ddim")
    scheduler.set_timesteps(7)
    torch.testing.assert_close(scheduler.timesteps, own.timesteps)
    x = y = latents(6, 16, dtype=torch.float32)
    for t, told in zip(own.timesteps, scheduler.timesteps, strict=True):
        x = own.step(torch.sin(x) + t, t, x).prev_sample
        y = scheduler.step(torch.sin(y) + told, told, y).prev_sample
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)
    clean, noise = latents(seed=1), latents(seed=2)
    close(scheduler.scale_noise(clean, 0.999, noise), own.scale_noise(clean, 0.999, noise))


# The contract


def test_call_forms_and_signatures():
    scheduler, x = scheduled(), latents(dtype=torch.float32)
    again = copy.deepcopy(scheduler)
    as_tuple = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    as_output = again.step(model_output=x, timestep=again.timesteps[0], sample=x)
    assert torch.equal(as_tuple[0], as_output.prev_sample)
    assert torch.equal(as_output[0], as_output.prev_sample)
    assert list(inspect.signature(scheduler.set_timesteps).parameters) == [
        "num_inference_steps", "device", "sigmas", "mu", "timesteps",
    ]  # fmt: skip
    assert {"generator", "return_dict"} <= set(inspect.signature(scheduler.step).parameters)
    assert scheduler.order == scheduler.init_noise_sigma == 1
    assert scheduler.scale_model_input(x, 0.0) is x
    assert len(scheduler) == 1000
    assert (scheduler.step_index, scheduler.begin_index) == (1, None)


def test_names_that_pipelines_read():
    scheduler = scheduled()
    assert scheduler.sigmas.device.type == "cpu"
    assert scheduler.sigmas.dtype == torch.float32
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    assert scheduler.timesteps.dtype == torch.int64
    assert len(scheduler.betas) == len(scheduler.alphas) == len(scheduler.alphas_cumprod) == 1000
    assert scheduler.num_inference_steps == 10
    assert scheduler.last_sample is None
    assert scheduler.model_outputs == [None, None]


def test_attributes_are_those_of_diffusers():
    scheduler = EVODiffScheduler()
    scheduler.register_to_config(extra=5)
    with pytest.warns(FutureWarning, match="extra"):
        assert scheduler.extra == 5
    with pytest.raises(AttributeError, match=r"^'EVODiffScheduler' object has no attribute 'does_not_exist'$"):
        scheduler.does_not_exist  # noqa: B018
    assert "kwargs" not in inspect.signature(EVODiffScheduler.__init__).parameters


@pytest.mark.parametrize("config", [{}, FLOW, {"trained_betas": np.array([0.1, 0.3])}, {"solver": "unipc-3"}])
def test_saved_and_loaded_it_is_the_same(tmp_path, config):
    scheduler = EVODiffScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    again = EVODiffScheduler.from_pretrained(tmp_path)
    expected = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    expected = json.loads(json.dumps(expected, default=np.ndarray.tolist))
    assert dict(again.config) == expected
    assert again.betas.tolist() == scheduler.betas.tolist()
    if "trained_betas" not in config:
        scheduler.set_timesteps(7)
        again.set_timesteps(7)
        assert torch.equal(pull(scheduler, latents()), pull(again, latents()))


def options(scheduler):
    """The config without diffusers' own notes on it."""
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def test_every_compatible_scheduler_takes_the_config_and_gives_it_back(caplog):
    scheduler = EVODiffScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.015, steps_offset=1)
    others = {other.__name__: other for other in scheduler.compatibles}
    others.pop("DPMSolverSDEScheduler", None)  # needs torchsde
    assert len(others) >= 13
    for name, other in others.items():
        back = EVODiffScheduler.from_config(other.from_config(scheduler.config).config)
        for key, value in options(scheduler).items():
            assert back.config[key] == value, (name, key)
    assert not [record for record in caplog.records if "EVODiffScheduler" in record.getMessage()]


@pytest.mark.parametrize("name", [
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler",
])  # fmt: skip
def test_configs_of_schedulers_with_betas(name, caplog):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    other = getattr(diffusers, name)(**config)
    scheduler = EVODiffScheduler.from_config(other.config)
    assert not caplog.records
    assert {key: scheduler.config[key] for key in config} == config
    assert not scheduler.config.use_flow_sigmas
    scheduler.set_timesteps(10)
    close(pull(scheduler, latents()), push(scheduler, latents()), 1e-9)


def test_configs_of_flows():
    config = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.4, "shift_terminal": 0.1,
              "time_shift_type": "linear", "invert_sigmas": True}  # fmt: skip
    source = diffusers.FlowMatchEulerDiscreteScheduler(**config).config
    for given in (source, dict(source), {**source, "_class_name": "FlowMatchHeunDiscreteScheduler"}):
        scheduler = EVODiffScheduler.from_config(given)
        assert scheduler.config.use_flow_sigmas
        assert scheduler.config.prediction_type == "flow_prediction"
        assert scheduler.config.flow_shift == 3.0
        assert scheduler.config.get("base_shift") == 0.4
        kept = {key: scheduler.config[key] for key in config if key not in ("shift", "base_shift")}
        assert kept == {key: config[key] for key in kept}
        assert options(EVODiffScheduler.from_config(scheduler.config)) == options(scheduler)
    for changed in ({"flow_shift": 5.0}, {"shift": 5.0}):
        for known in (source, scheduler.config):
            shifted = EVODiffScheduler.from_config(known, **changed).config
            assert shifted.flow_shift == 5.0
            assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(shifted).config.shift == 5.0
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    assert back.config.shift == 3.0


def test_what_a_flow_left_at_its_defaults_stays_for_pipelines_to_read():
    """They compute the dynamic shift from it, each with a fallback of its own."""
    source = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    config = EVODiffScheduler.from_config(source).config
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "stochastic_sampling"):
        assert config[key] == source[key]


def test_noise_that_a_flow_adds_at_every_step_is_refused():
    source = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).config
    with pytest.raises(ValueError, match="stochastic_sampling=True adds noise at every step"):
        EVODiffScheduler.from_config(source)
    assert EVODiffScheduler.from_config({**source, "stochastic_sampling": False}).config.use_flow_sigmas


def test_flow_configs_of_unipc_keep_what_they_say():
    source = diffusers.UniPCMultistepScheduler(**FLOW).config
    scheduler = EVODiffScheduler.from_config(source)
    assert scheduler.config.flow_shift == 3.0
    assert scheduler.config.use_flow_sigmas


def test_what_another_scheduler_left_at_its_defaults_is_the_models_all_the_same():
    """diffusers drops such keys on the way to another class, whose defaults may be others."""
    source = diffusers.KDPM2DiscreteScheduler()
    scheduler = EVODiffScheduler.from_config(source.config)
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
    torch.testing.assert_close(scheduler.alphas_cumprod, source.alphas_cumprod)


def test_the_shifted_snr_of_cogvideox():
    source = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    scheduler = EVODiffScheduler.from_config(source.config)
    assert scheduler.config.snr_shift_scale == 3.0
    torch.testing.assert_close(scheduler.alphas_cumprod[:-1], source.alphas_cumprod[:-1].float(), rtol=1e-4, atol=1e-7)


def test_a_flow_of_an_unknown_class_is_said_to_be_one():
    config = {"_class_name": "SomebodysFlowScheduler", "shift": 2.0, "_use_default_values": ["shift"]}
    with pytest.raises(ValueError, match=r"from_config\(config, use_flow_sigmas=True\)"):
        EVODiffScheduler.from_config(config)
    for said in (
        EVODiffScheduler.from_config(config, use_flow_sigmas=True),
        EVODiffScheduler.from_config({**config, "use_flow_sigmas": True}),
    ):
        assert said.config.use_flow_sigmas
        assert said.config.prediction_type == "flow_prediction"
        assert said.config.flow_shift == 2.0


@pytest.mark.parametrize("name", [
    "FlowMatchHeunDiscreteScheduler", "FlowUniPCMultistepScheduler", "FlowDPMSolverMultistepScheduler",
])  # fmt: skip
def test_known_classes_of_flows(name):
    config = EVODiffScheduler.from_config({"_class_name": name, "num_train_timesteps": 1000, "shift": 5.0}).config
    assert config.use_flow_sigmas
    assert (config.prediction_type, config.flow_shift) == ("flow_prediction", 5.0)


@pytest.mark.parametrize("name", [
    "LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler",
    "HeliosScheduler", "HeliosDMDScheduler", "SCMScheduler", "CMStochasticIterativeScheduler",
])  # fmt: skip
def test_models_distilled_to_steps_of_their_own_are_refused(name):
    """With the class's name, as in saved pipelines, and without. FlowMapEuler's parameters are also FlowMatchHeun's."""
    config = getattr(diffusers, name)().config
    with pytest.raises(ValueError, match=f"{name} is for models that are distilled"):
        EVODiffScheduler.from_config({**config, "_class_name": name})
    with pytest.raises(ValueError, match=r"distilled|does not say of which kind"):
        EVODiffScheduler.from_config(config)


def test_another_scheduler_made_from_that_of_a_distilled_model_is_not_refused():
    euler = diffusers.EulerDiscreteScheduler.from_config(diffusers.LCMScheduler().config)
    assert "original_inference_steps" in euler.config or "timestep_scaling" not in euler.config
    assert EVODiffScheduler.from_config(euler.config).config.beta_end == euler.config.beta_end


@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
def test_the_class_that_a_config_went_through_last_counts(saved, tmp_path):
    def through(scheduler):
        if not saved:
            return scheduler.config
        scheduler.save_pretrained(tmp_path)
        return type(scheduler).from_pretrained(tmp_path).config

    table = diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, thresholding=True)
    flow = diffusers.FlowMatchEulerDiscreteScheduler.from_config(through(table), shift=3.0)
    config = EVODiffScheduler.from_config(through(flow)).config
    assert config.use_flow_sigmas
    assert (config.flow_shift, config.prediction_type) == (3.0, "flow_prediction")
    assert not config.clip_sample
    assert not config.thresholding
    assert options(EVODiffScheduler.from_config(config)) == options(EVODiffScheduler.from_config(through(flow)))

    back = diffusers.UniPCMultistepScheduler.from_config(through(flow))  # of betas, with a shift that does nothing
    with pytest.raises(ValueError, match="for none of a flow use_flow_sigmas=False"):
        EVODiffScheduler.from_config(through(back))
    assert EVODiffScheduler.from_config(through(back), use_flow_sigmas=False).config.beta_schedule == "scaled_linear"


def test_what_a_saved_config_leaves_out_is_as_its_class_has_it():
    config = EVODiffScheduler.from_config({"_class_name": "KDPM2DiscreteScheduler", "num_train_timesteps": 1000}).config
    assert (config.beta_start, config.beta_end) == (0.00085, 0.012)
    assert EVODiffScheduler.from_config({"_class_name": "CogVideoXDDIMScheduler"}).config.snr_shift_scale == 3.0


# A keyword wins over the config


@pytest.mark.parametrize("keyword", GRIDS)
@pytest.mark.parametrize("named", [
    {"beta_schedule": "scaled_linear", "use_karras_sigmas": True},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_beta_sigmas": True},
    {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True, "sigma_min": 0.01},
])  # fmt: skip
def test_a_grid_that_is_asked_for_wins_over_that_of_the_config(keyword, named):
    config = EVODiffScheduler.from_config(named, **{keyword: True}).config
    assert [grid for grid in GRIDS if config[grid]] == [keyword]
    with pytest.raises(ValueError, match="use one of"):
        EVODiffScheduler.from_config(named, use_karras_sigmas=True, use_beta_sigmas=True)
    for grid in GRIDS:
        assert EVODiffScheduler.from_config(named).config[grid] == named.get(grid, False)


def test_a_shift_that_is_asked_for_wins_over_a_dynamic_one():
    source = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    scheduler = EVODiffScheduler.from_config(source, shift=3.0)
    scheduler.set_timesteps(4, mu=1.15)
    torch.testing.assert_close(scheduler.sigmas, scheduled(4, **FLOW).sigmas)
    assert EVODiffScheduler.from_config(source, shift=3.0, use_dynamic_shifting=True).config.use_dynamic_shifting


@pytest.mark.parametrize("named", [True, False])
def test_edm_preconditioning_is_refused(named):
    """With the class's name, as in saved pipelines, and without, as diffusers keeps a config in memory."""
    config = diffusers.EDMEulerScheduler(sigma_data=0.5).config
    with pytest.raises(ValueError, match="EDM's preconditioning"):
        EVODiffScheduler.from_config({**config, "_class_name": "EDMEulerScheduler"} if named else config)


@pytest.mark.parametrize("config", [
    {"_class_name": "UnCLIPScheduler", "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small_log"},
    {"_class_name": "IPNDMScheduler", "trained_betas": None},
    diffusers.UnCLIPScheduler().config,
    diffusers.IPNDMScheduler().config,
    {"num_train_timesteps": 2000, "snr": 0.15, "sigma_min": 0.01, "sigma_max": 1348.0},
    {"scaler": 1.0, "s": 0.008},
])  # fmt: skip
def test_configs_that_do_not_say_the_noise_levels_are_refused(config):
    with pytest.raises(ValueError, match="does not say which noise levels"):
        EVODiffScheduler.from_config(config)


def test_a_keyword_that_is_not_ours_is_refused():
    with pytest.raises(TypeError, match=r"no option shfit=5\.0"):
        EVODiffScheduler.from_config(EVODiffScheduler().config, shfit=5.0)


OF_A_FLOW = {"flow_shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear"}
OF_BETAS = {
    "beta_start": 0.001, "beta_schedule": "scaled_linear", "trained_betas": [0.1, 0.2], "timestep_spacing": "trailing",
    "timestep_type": "continuous", "steps_offset": 1, "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0,
    "lambda_min_clipped": -5.1,
}  # fmt: skip
OF_NEITHER = {
    "sigma_min": 0.1, "sigma_max": 10.0, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0,
    "clip_sample_range": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(("source", "unused"), [
    (EVODiffScheduler(), {**OF_A_FLOW, **OF_NEITHER}),
    (diffusers.FlowMatchEulerDiscreteScheduler(), {**OF_BETAS, **OF_NEITHER}),
])  # fmt: skip
def test_a_keyword_without_use_is_refused_and_one_left_in_a_config_is_not(source, unused):
    config = {**source.config, "_class_name": type(source).__name__}
    for name, value in unused.items():
        with pytest.raises(ValueError, match=f"{name} counts only with"):
            EVODiffScheduler.from_config(config, **{name: value})
        EVODiffScheduler.from_config({**config, name: value})
        EVODiffScheduler.from_config(config, **{name: EVODiffScheduler().config[name]})  # the default says nothing


@pytest.mark.parametrize("source", [
    {"_class_name": "MyFlowScheduler", "num_train_timesteps": 1000, "flow_shift": 3.0},
    {"_class_name": "MyFlowScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    diffusers.UniPCMultistepScheduler(flow_shift=3.0).config,
])  # fmt: skip
def test_the_keyword_of_flows_says_what_the_network_predicts(source):
    config = EVODiffScheduler.from_config(source, use_flow_sigmas=True).config
    assert (config.prediction_type, config.flow_shift) == ("flow_prediction", 3.0)
    for kind in ("sample", "epsilon"):
        assert (
            EVODiffScheduler.from_config(source, use_flow_sigmas=True, prediction_type=kind).config.prediction_type
            == kind
        )


@pytest.mark.parametrize("name", ["evodiff", "dpmpp-2m"])
def test_a_preview_may_be_changed_in_place(name):
    def run(changed):
        scheduler, x = scheduled(6, solver=name), latents()
        for t in scheduler.timesteps:
            found = scheduler.step(0.5 * x, t, x)
            x = found.prev_sample
            if changed:
                found.pred_original_sample.zero_()
        return x

    assert torch.equal(run(True), run(False))


def test_a_config_changed_after_construction_counts():
    scheduler = EVODiffScheduler()
    scheduler.register_to_config(use_karras_sigmas=True, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.sigmas[-1] > 0


# Noise


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_is_added_at_the_timestep(dtype):
    scheduler, x, noise = scheduled(), latents(dtype=torch.float32).to(dtype), latents(seed=1).to(dtype)
    got = scheduler.add_noise(x, noise, scheduler.timesteps[[3, 7]])
    assert got.dtype == dtype
    for i, node in enumerate([scheduler._nodes[3], scheduler._nodes[7]]):
        expected = node.alpha * x[i].double() + node.sigma * noise[i].double()
        torch.testing.assert_close(got[i], expected.to(dtype))
    assert torch.equal(scheduler.scale_noise(x, scheduler.timesteps[[3, 7]], noise), got)
    assert torch.equal(scheduler.add_noise(x, noise, scheduler.timesteps[3][None])[0], got[0])


def test_noise_for_training_is_that_of_the_table():
    scheduler, x, noise = EVODiffScheduler(), latents(), latents(seed=1)
    timesteps = torch.tensor([0, 640])
    got = scheduler.add_noise(x, noise, timesteps)
    reference = diffusers.DDPMScheduler().add_noise(x.float(), noise.float(), timesteps)
    torch.testing.assert_close(got.float(), reference, rtol=1e-4, atol=1e-4)
    scheduler.set_timesteps(5)  # changes nothing: neither is a timestep of this run
    torch.testing.assert_close(scheduler.add_noise(x, noise, timesteps), got)


def test_noise_for_training_is_that_of_the_whole_table_where_runs_have_a_part():
    scheduler = EVODiffScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    x, noise, timesteps = latents(), latents(seed=1), torch.tensor([998, 999])
    table = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(scheduler.alphas_cumprod, table.alphas_cumprod, rtol=1e-4, atol=1e-8)
    assert torch.equal(scheduler.timesteps.long(), table.timesteps)
    for steps in (None, 5):
        if steps:
            scheduler.set_timesteps(steps)
            assert scheduler.timesteps.max() < 998
        got = scheduler.add_noise(x, noise, timesteps)
        close(got, table.add_noise(x, noise, timesteps), 1e-4)


def test_noise_for_training_of_a_flow_is_that_of_its_time():
    scheduler, x, noise = scheduled(5, **FLOW), latents(), latents(seed=1)
    close(scheduler.add_noise(x, noise, torch.tensor([123.0])), 0.877 * x + 0.123 * noise)


def test_continuous_timesteps_are_a_quarter_of_log_sigma():
    scheduler = EVODiffScheduler(timestep_type="continuous")
    training = scheduler.timesteps
    scheduler.set_timesteps(timesteps=[1.2, 0.4, -0.5])
    close(scheduler.timesteps.double(), torch.tensor([1.2, 0.4, -0.5], dtype=torch.float64), 1e-6)
    close(scheduler.sigmas[:3].log().double() / 4, scheduler.timesteps.double(), 1e-6)
    reference = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    close(training.double(), reference.timesteps.double(), 1e-4)


def test_noise_of_a_begun_run_is_that_of_its_next_step():
    scheduler, x, noise = scheduled(begin=4), latents(), latents(seed=1)
    node = scheduler._nodes[4]
    close(scheduler.add_noise(x, noise, torch.tensor([0])), node.alpha * x + node.sigma * noise)
    scheduler.step(x, scheduler.timesteps[4], x)
    node = scheduler._nodes[5]
    close(scheduler.add_noise(x, noise, torch.tensor([0])), node.alpha * x + node.sigma * noise)


# Errors at the door


@pytest.mark.parametrize(("config", "message"), [
    ({"solver": "heun"}, "solver must be one of"),
    ({"solver": "unknown"}, "solver must be one of"),
    ({"prediction_type": "velocity"}, "prediction_type must be one of"),
    ({"beta_schedule": "exp"}, "beta_schedule must be one of"),
    ({"timestep_type": "log"}, "timestep_type must be one of"),
    ({"channel_dim": "last"}, "channel_dim must be one of"),
    ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "use one of"),
    ({"shift_terminal": 0.1}, "of flows"),
    ({"lambda_min_clipped": 50.0}, "lower it"),
    ({"flow_shift": 0.0}, "flow_shift must be positive"),
    ({"dynamic_thresholding_ratio": 2.0}, r"must lie in \[0, 1\]"),
    ({"clip_sample_range": -1.0}, "clip_sample_range must be positive"),
    ({"sample_max_value": 0.0}, "sample_max_value must be positive"),
    ({"variance_type": "learnd"}, "variance_type must be one of"),
])  # fmt: skip
def test_wrong_configs_say_what_to_do(config, message):
    with pytest.raises(ValueError, match=message):
        EVODiffScheduler(**config)


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "needs num_inference_steps, sigmas or timesteps"),
    ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "the same number"),
    ({"sigmas": [1.0, 0.5, 0.0], "timesteps": [900]}, "the same number"),
    ({"num_inference_steps": 0}, "at least 1"),
    ({"num_inference_steps": 2.5}, "at least 1"),
    ({"sigmas": [1.0, 2.0]}, "sigmas must be strictly sorted, noisy to clean"),
    ({"sigmas": [1.0, -2.0]}, "positive"),
    ({"timesteps": [500, 500]}, "timesteps must be strictly sorted"),
    ({"timesteps": [1500]}, "lie in"),
    ({"sigmas": [[1.0]]}, "lists of numbers"),
])  # fmt: skip
def test_wrong_runs_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        EVODiffScheduler().set_timesteps(**arguments)


@pytest.mark.parametrize("option", [{}, {"use_focused_sigmas": True}, {"use_karras_sigmas": True}])
def test_levels_of_a_flow_that_are_not_sorted_are_refused(option):
    for given in ({"sigmas": [0.2, 0.5, 1.0]}, {"timesteps": [200.0, 1000.0, 500.0]}):
        with pytest.raises(ValueError, match="must be strictly sorted"):
            EVODiffScheduler(**FLOW, **option).set_timesteps(**given)


@pytest.mark.parametrize("timestep", [0, 2000, float("nan")])
def test_a_timestep_that_is_not_of_the_run_is_refused(timestep):
    """Among them 0, the place of the first: 10 steps of this spacing end at 100."""
    with pytest.raises(ValueError, match="timestep must be one of this run's, 999 to 100"):
        scheduled(10).step(latents(), timestep, latents())


def test_options_of_ddim_are_not_ignored():
    for options in ({"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.raises(ValueError, match="options of DDIMScheduler"):
            scheduled().step(latents(), 999, latents(), **options)


def test_wrong_config_values_of_a_run_say_what_to_do():
    for config in ({"timestep_spacing": "even"}, {"final_sigmas_type": "none"}):
        with pytest.raises(ValueError, match="must be one of"):
            EVODiffScheduler(**config).set_timesteps(5)
    flow = EVODiffScheduler(use_dynamic_shifting=True, **FLOW)
    with pytest.raises(ValueError, match="needs mu"):
        flow.set_timesteps(5)
    with pytest.raises(ValueError, match="lie in"):
        flow.set_timesteps(sigmas=[2.0, 1.0], mu=1.0)
    with pytest.raises(ValueError, match="set_timesteps first"):
        EVODiffScheduler().step(latents(), 0, latents())


# Tuned plans


def tuned_on(schedule, path, calls=6):
    """A plan that no default has."""
    family = Family(center=0.4, rise=-0.3, surprise=0.5, reach=-0.5)
    nodes = asked(schedule, family.nodes(schedule, calls), [0.03 * (i > 0) for i in range(calls)])
    stages = family.stages(nodes, schedule.data_scale, schedule.lam_range[1])
    plan = Measured.of(schedule, nodes, stages, schedule.data_scale, family)
    Tuned({calls: plan}, describe(schedule)).save(path)
    return str(path)


TOLD = {
    **{
        kind: {"beta_schedule": "scaled_linear", "prediction_type": kind}
        for kind in ("epsilon", "v_prediction", "sample")
    },
    "continuous": {"beta_schedule": "scaled_linear", "timestep_type": "continuous"},
    "flow": FLOW,
    "inverted": {**FLOW, "invert_sigmas": True},
}


def answers(scheduler):
    """A network that knows of the level what it is told."""
    config, sign = scheduler.config, -1 if scheduler.config.invert_sigmas else 1

    def output(x, t):
        node = level(config, scheduler._schedule, t.item())
        return sign * from_denoised(config.prediction_type, denoise(x, node), x, node)

    return output


@pytest.mark.parametrize(("steps", "start"), [(6, 0), (8, 0), (6, 3)])
@pytest.mark.parametrize("config", TOLD.values(), ids=TOLD)
def test_a_tuned_plan_runs_as_it_does_in_fewstep(config, steps, start, tmp_path):
    """What the model is told may be another level than that of its x: it answers for what it is told."""
    schedule = scheduled(**config)._schedule
    path = tuned_on(schedule, tmp_path / "plan.json")
    scheduler, tuned = scheduled(steps, tuned=path, **config), Tuned.load(path)
    nodes = tuned.nodes(schedule, steps)
    assert [node.lam for node in scheduler._nodes] == pytest.approx([node.lam for node in nodes])
    # In the middle of a run it goes on being told so, as pipelines know the timesteps by then.
    nodes = scheduler._nodes[start:] if start else nodes
    times, model, x = scheduler.timesteps[start:], answers(scheduler), latents()
    if start:
        scheduler.set_begin_index(start)
    for t in times:
        x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
    wanted = fs.integrate(lambda x, t: denoise(x, schedule.node(t)), latents(), nodes, solver=tuned, schedule=schedule)
    close(x, wanted, 1e-4)  # timesteps are float32


@pytest.mark.parametrize("config", TOLD.values(), ids=TOLD)
def test_noise_is_added_as_a_tuned_plan_has_it(config, tmp_path):
    """As much of it as the level has, over the alpha of the level that the model is told."""
    schedule = scheduled(**config)._schedule
    path = tuned_on(schedule, tmp_path / "plan.json")
    scheduler = scheduled(6, tuned=path, **config)
    x, noise = latents(), torch.ones_like(latents())
    for t, node in zip(scheduler.timesteps, Tuned.load(path).nodes(schedule, 6), strict=False):
        alpha = level(scheduler.config, schedule, t.item()).alpha
        close(scheduler.add_noise(x, noise, t[None]) / alpha, x + noise * node.nsr, 1e-4)


@pytest.mark.parametrize("config", TOLD.values(), ids=TOLD)
def test_sigmas_are_what_a_tuned_plan_tells_the_model(config, tmp_path):
    """Cosmos' pipelines tell it these, and LTX' turn velocities into images by them."""
    scheduler = scheduled(6, tuned=tuned_on(scheduled(**config)._schedule, tmp_path / "plan.json"), **config)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        node = level(scheduler.config, scheduler._schedule, t.item())
        shown = node.sigma if scheduler.config.use_flow_sigmas else node.nsr
        assert sigma.item() == pytest.approx(1 - shown if scheduler.config.invert_sigmas else shown, rel=1e-4)


def test_a_tuned_plan_serves_tokens(tmp_path):
    """All of which are told what the run is: the same step, of data - noise."""
    path = tuned_on(fs.Flow(), tmp_path / "plan.json")
    alone, by_token = (scheduled(6, tuned=path, **FLOW) for _ in range(2))
    x = y = latents().flatten(2).mT
    for t in alone.timesteps:
        output = answers(alone)(x, t)
        y = by_token.step(-output, t, y, per_token_timesteps=t.expand(x.shape[:2]), return_dict=False)[0]
        x = alone.step(output, t, x, return_dict=False)[0]
        close(y, x, 1e-6)


def test_a_tuned_plan_is_kept_in_the_config(tmp_path):
    path = tuned_on(scheduled()._schedule, tmp_path / "plan.json")
    scheduler = scheduled(6, tuned=path)
    scheduler.save_pretrained(tmp_path / "saved")
    again = EVODiffScheduler.from_pretrained(tmp_path / "saved")
    again.set_timesteps(6)
    assert again._nodes == scheduler._nodes
    assert not torch.equal(again.timesteps, scheduled(6).timesteps)


def test_levels_that_are_given_are_not_the_plan_s(tmp_path):
    path = tuned_on(scheduled()._schedule, tmp_path / "plan.json")
    sigmas = [12.0, 5.0, 2.0, 1.0, 0.4, 0.1]
    scheduler = EVODiffScheduler(tuned=path)
    scheduler.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(sigmas), rtol=1e-6, atol=0)


def test_levels_that_are_given_may_be_the_plan_s(tmp_path):
    """What the model is told there is in the plan, or in timesteps."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # it goes on to 0
    path = tuned_on(scheduled(**config)._schedule, tmp_path / "plan.json")
    scheduler = scheduled(6, tuned=path, **config)
    times, sigmas = scheduler.timesteps, [node.nsr for node in scheduler._nodes]
    scheduler.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(scheduler.timesteps, times, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="leave out timesteps, or the plan"):
        scheduler.set_timesteps(sigmas=sigmas, timesteps=range(999, 0, -166)[:6])


def test_a_plan_of_another_model_or_solver_is_refused(tmp_path):
    path = tuned_on(scheduled()._schedule, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"plan of 6 calls, tuned on Discrete.*this model knows"):
        EVODiffScheduler(tuned=path, beta_schedule="squaredcos_cap_v2")
    with pytest.raises(ValueError, match="a tuned plan is EVODiff's; got solver='ddim'"):
        EVODiffScheduler(tuned=path, solver="ddim")
    with pytest.raises(ValueError, match="between whole timesteps"):
        EVODiffScheduler(tuned=path, timestep_type="integer")
    with pytest.raises(FileNotFoundError, match="make it with fewstep tune"):
        EVODiffScheduler(tuned=str(tmp_path / "none.json"))
