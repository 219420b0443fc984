"""Calls that reuse features: exact where nothing changes, fresh for each run, apart for each branch, and planned."""

import itertools
import math

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep import cheaper
from fewstep.adapters import load_model
from fewstep.cheaper import planning
from fewstep.cheaper.cuts import cut
from fewstep.cheaper.planning import share_left, weights_of
from fewstep.sampling import plan
from tiny import save_model

CALLS = 6
LABELS = [0, 1, 2, 0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp("models") / "tiny"), batch=2)


def noise(model, count=4):
    return fs.unit_noise(range(count), model.shape)


def times(model, calls=CALLS):
    return [stage.node.time for stage in plan(model.schedule, fs.EVODiff(), nfe=calls)[1]]


def cached(denoiser, model, reused, depth=1, calls=CALLS):
    _, stages = plan(model.schedule, fs.EVODiff(), nfe=calls)
    weights = weights_of([stage.node.lam for stage in stages], reused)
    return cheaper.Cached(denoiser, model.network, times=times(model, calls), weights=weights, depth=depth)


REUSED = {3: 0.0, 5: 0.5}


def dit():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=5, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def flux():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip


def own():
    from fewstep.adapters.unet2d_network import UNet2D

    return UNet2D(
        {
            "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "layers_per_block": 1,
            "norm_num_groups": 4, "norm_eps": 1e-5, "attention_head_dim": 4, "num_class_embeds": None,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "flip_sin_to_cos": True, "freq_shift": 0, "resnet_time_scale_shift": "scale_shift",
        }
    )  # fmt: skip


def call_own(network, x, t):
    return network(x, t)


def call_dit(network, x, t):
    return network(x, timestep=t.expand(len(x)), class_labels=torch.zeros(len(x), dtype=torch.long)).sample


def call_flux(network, x, t):
    ids = torch.zeros(x.shape[1], 3)
    return network(
        x, encoder_hidden_states=torch.ones(len(x), 2, 8), pooled_projections=torch.ones(len(x), 8),
        timestep=t.expand(len(x)), img_ids=ids, txt_ids=torch.zeros(2, 3),
    ).sample  # fmt: skip


def call_unet(network, x, t):
    return network(x, t, encoder_hidden_states=torch.ones(len(x), 2, 8)).sample


NETWORKS = {
    "dit": (dit, call_dit, (3, 8, 8)),
    "flux": (flux, call_flux, (6, 4)),
    "unet": (unet, call_unet, (3, 8, 8)),
    "own": (own, call_own, (3, 8, 8)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request):
    make, call, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    made = make().eval().requires_grad_(False)
    for parameter in made.parameters():  # some begin as zeros, which would hide what is left out
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made, call, shape


# What a cut leaves out


def test_where_nothing_changes_the_foretold_features_are_those_of_a_whole_call(network):
    """At every depth: so what is skipped is what the foretold replaces, and nothing else."""
    made, call, shape = network
    x, t = torch.randn(2, *shape), torch.tensor([3.0])
    whole = call(made, x, t)
    for depth in cheaper.depths(made):
        wrapped = cheaper.Cached(
            lambda x, time: call(made, x, t), made, times=(3, 2, 1), weights=(None, (1.0,), (1.0,)), depth=depth
        )
        assert torch.equal(wrapped(x, 3), whole)
        for time in (2, 1):
            # Of a transformer what was added is a difference, and a sum again: a rounding of each of the two streams.
            torch.testing.assert_close(wrapped(x, time), whole, rtol=1e-4, atol=1e-5)


def test_what_is_skipped_does_not_run_and_what_is_not_does(network):
    made, call, shape = network
    ran: list = []
    handles = []
    for name, module in made.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            handles.append(module.register_forward_hook(lambda *_, name=name: ran.append(name)))
    costs = []
    for depth in cheaper.depths(made):
        skipped = {id(each) for module in cut(made, depth).skipped for each in module.modules()}
        wrapped = cheaper.Cached(
            lambda x, t: call(made, x, torch.tensor([t])), made, times=(3.0, 2.0), weights=(None, (1.0,)), depth=depth
        )
        x = torch.randn(1, *shape)
        ran.clear()
        wrapped(x, 3.0)
        every = list(ran)
        ran.clear()
        wrapped(x, 2.0)
        assert ran == [name for name in every if id(made.get_submodule(name)) not in skipped]
        costs.append(share_left(wrapped.denoiser, made, x, (3.0, 2.0), depth))
    for handle in handles:
        handle.remove()
    assert costs == sorted(costs)
    assert 0 < costs[0] < costs[-1] < 1


def test_what_is_new_in_the_input_reaches_the_answer(network):
    made, call, shape = network
    wrapped = cheaper.Cached(
        lambda x, t: call(made, x, torch.tensor([3.0])), made, times=(3, 2), weights=(None, (1.0,)), depth=1
    )
    x = torch.randn(1, *shape)
    assert (wrapped(x, 3) - wrapped(x + torch.randn_like(x), 2)).abs().max() > 1e-4


def test_shares_are_of_the_line_through_the_last_two_whole_calls():
    lams = [-3.0, -1.0, -0.5, 1.0, 2.0, 4.0]
    assert weights_of(lams, {}) == (None,) * 6
    found = weights_of(lams, {3: 1.0, 4: 1.0, 5: 0.5})
    for k, share in ((3, 1.0), (4, 1.0), (5, 0.5)):
        w = found[k]
        assert sum(w) == pytest.approx(1)
        on_the_line = w[0] * lams[2] + w[1] * lams[1]
        assert on_the_line == pytest.approx(lams[2] + share * (lams[k] - lams[2]))
    assert weights_of(lams, {1: 1.0, 3: 0.0})[1:4:2] == ((1.0,), (1.0,))
    assert weights_of([-math.inf, 0.0, 1.0], {2: 1.0})[2] == (1.0,)


# Runs


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_plan_of_whole_calls_is_the_plain_run(model, guidance):
    denoiser = model.conditioned(LABELS, guidance)
    wrapped = cached(denoiser, model, {})
    assert torch.equal(fs.sample(wrapped, noise(model), nfe=CALLS), fs.sample(denoiser, noise(model), nfe=CALLS))


def test_reuse_changes_the_run_after_it_alone(model):
    denoiser = model.conditioned(LABELS)
    states: list = [[], []]
    for kept, each in zip(states, (denoiser, cached(denoiser, model, REUSED)), strict=True):
        fs.sample(each, noise(model), nfe=CALLS, callback=lambda step, kept=kept: kept.append(step.denoised))
    same = [torch.equal(*pair) for pair in zip(*states, strict=True)]
    assert same == [True] * 3 + [False] * 3


def test_branches_of_guidance_do_not_mix(model):
    cond, uncond = model.conditioned(LABELS), model
    together = cached(fs.guided(cond, uncond, 3.0), model, REUSED)
    apart = fs.guided(cached(cond, model, REUSED), cached(uncond, model, REUSED), 3.0)
    assert torch.equal(*(fs.sample(each, noise(model), nfe=CALLS) for each in (together, apart)))


def test_a_sample_does_not_depend_on_its_batch(model):
    whole = fs.sample(cached(model.conditioned(LABELS, 3.0), model, REUSED), noise(model), nfe=CALLS)
    for i in range(4):
        alone = cached(model.conditioned(LABELS[i : i + 1], 3.0), model, REUSED)
        assert torch.equal(fs.sample(alone, noise(model)[i : i + 1], nfe=CALLS), whole[i : i + 1])


def test_each_run_is_fresh(model):
    wrapped = cached(model.conditioned(LABELS), model, REUSED)
    first = fs.sample(wrapped, noise(model), nfe=CALLS)
    fs.sample(wrapped, -noise(model), nfe=CALLS)
    assert torch.equal(fs.sample(wrapped, noise(model), nfe=CALLS), first)


def test_a_run_that_was_left_or_failed_leaves_nothing(model):
    failing = False

    def denoiser(x, t):
        answer = model(x, t)
        if failing:
            raise KeyboardInterrupt
        return answer

    wrapped = cached(denoiser, model, REUSED)
    first = fs.sample(wrapped, noise(model), nfe=CALLS, schedule=model.schedule)
    nodes, _ = plan(model.schedule, fs.EVODiff(), nfe=CALLS)
    run = fs.trajectory(wrapped, -noise(model) * nodes[0].sigma, nodes, schedule=model.schedule)
    list(itertools.islice(run, 3))  # left
    assert torch.equal(fs.sample(wrapped, noise(model), nfe=CALLS, schedule=model.schedule), first)
    run = fs.trajectory(wrapped, -noise(model) * nodes[0].sigma, nodes, schedule=model.schedule)
    list(itertools.islice(run, 2))
    failing = True
    with pytest.raises(KeyboardInterrupt):
        next(run)
    failing = False
    with pytest.raises(cheaper.CacheError, match="has time"):
        wrapped(noise(model), nodes[3].time)
    assert torch.equal(fs.sample(wrapped, noise(model), nfe=CALLS, schedule=model.schedule), first)


def test_between_calls_the_network_is_as_it_was(model):
    def hooks():
        return [
            (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.network.modules()
        ]

    before = hooks()
    wrapped = cached(model, model, REUSED)
    fs.sample(wrapped, noise(model), nfe=CALLS, callback=lambda step: None)
    assert hooks() == before
    with pytest.raises(cheaper.CacheError):
        wrapped(noise(model), 0.123)
    assert hooks() == before


def test_somebody_elses_forward_comes_back(model):
    """As accelerate and diffusers put there."""
    inner = cut(model.network, 1).skipped[0]
    others = inner.forward
    inner.forward = lambda *args, **kwargs: others(*args, **kwargs)
    theirs = inner.forward
    try:
        fs.sample(cached(model, model, REUSED), noise(model), nfe=CALLS)
        assert inner.forward is theirs
    finally:
        del inner.forward


# What is refused


def test_networks_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="Sequential cannot be cut: neither a U-Net of diffusers nor a transformer"):
        cheaper.depths(nn.Sequential(nn.Linear(2, 2)))
    from diffusers import UNet2DModel

    odd = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, add_attention=False,
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"), up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="a SkipDownBlock2D cannot be cut: it has"):
        cheaper.depths(odd)


def test_plans_that_cannot_be_are_refused(model):
    good = cached(model, model, REUSED)
    for facts, message in (
        ({"depth": 7}, r"depth must lie in \[0, 2\] for this network; got 7"),
        ({"weights": ((1.0,), *good.weights[1:])}, "call 0 cannot be foretold from 1 whole calls: there are 0 before"),
        ({"weights": good.weights[1:]}, "one a call; got 6 and 5"),
        ({"times": (good.times[0],) * CALLS}, "must not come back to the first"),
    ):
        given = {"times": good.times, "weights": good.weights, "depth": 1, **facts}
        with pytest.raises(ValueError, match=message):
            cheaper.Cached(model, model.network, **given)


def test_calls_that_the_plan_does_not_foresee_are_refused(model):
    x, first = noise(model), times(model)[0]
    wrapped = cached(model, model, REUSED)
    with pytest.raises(cheaper.CacheError, match="plan with the solver, grid and schedule of this run"):
        fs.sample(wrapped, x, nfe=CALLS, grid=fs.karras())
    with pytest.raises(cheaper.CacheError, match="did not call the network"):
        cached(lambda x, t: x, model, REUSED)(x, first)
    wrapped = cached(model, model, REUSED)
    wrapped(x, first)
    with pytest.raises(cheaper.CacheError, match="times"):
        wrapped(x[:2], times(model)[1])
    with pytest.raises(TypeError, match="has one time a call"):
        wrapped(x, torch.full((4,), first))


# Plans


@pytest.fixture(scope="module")
def ddim(model):
    denoiser = model.conditioned(LABELS)
    return cheaper.plan_cache(denoiser, model.network, noise(model), nfe=9, solver=fs.DDIM(), schedule=model.schedule)


def test_the_first_third_never_reuses(ddim):
    assert ddim.trials
    assert min(min(trial.reused) for trial in ddim.trials) >= 3
    assert all(each is None for each in ddim.weights[:3])


def test_what_is_planned_beats_fewer_whole_calls_and_says_so(model, ddim):
    trial = ddim.chosen
    assert trial is not None
    assert trial.error < trial.fewer
    assert ddim.cost == pytest.approx(trial.cost)
    assert f"at the cost of {ddim.cost:.2f}" in str(ddim)
    denoiser = model.conditioned(LABELS)
    exact = fs.sample(denoiser, noise(model), nfe=planning.REFERENCE)
    got = fs.sample(ddim.wrap(denoiser, model.network), noise(model), nfe=9, solver=fs.DDIM())
    each = (got - exact).double().square().mean((1, 2, 3)).sqrt()
    assert each.log().mean().exp().item() == pytest.approx(trial.error, rel=1e-5)
    assert min(ddim.whole) <= ddim.cost <= max(ddim.whole)


def test_where_nothing_wins_all_calls_are_whole(model, monkeypatch):
    monkeypatch.setattr(planning, "MARGIN", 0.0)
    denoiser = model.conditioned(LABELS)
    found = cheaper.plan_cache(denoiser, model.network, noise(model), nfe=5, cuts=(1,))
    assert found.weights == (None,) * 5
    assert found.cost == 5
    assert "nothing is reused, since fewer whole calls are better" in str(found)
    assert "worse" in str(found)


def test_every_third_is_deepcaches_rule(model):
    plan_ = cheaper.every(fs.DDIM(), model.schedule, 8, 3, 1, 0.5)
    assert [each is None for each in plan_.weights] == [k % 3 == 0 for k in range(8)]
    assert plan_.cost == 8 - 5 * 0.5


def test_arguments_are_refused_at_the_door(model):
    with pytest.raises(TypeError, match="schedule is needed"):
        cheaper.plan_cache(lambda x, t: x, model.network, noise(model))
    with pytest.raises(ValueError, match="cuts must be of those of this network, 0 to 2"):
        cheaper.plan_cache(model, model.network, noise(model), cuts=(5,))
    for nfe in (1, 2.5):
        with pytest.raises(ValueError, match=f"nfe must be an integer of at least 2, .*; got {nfe}"):
            cheaper.plan_cache(model, model.network, noise(model), nfe=nfe)
    with pytest.raises(ValueError, match=r"solver must draw no noise, .*; got SEEDS\(.*such as EVODiff\(\)"):
        cheaper.plan_cache(model, model.network, noise(model), solver=fs.SEEDS())


@pytest.mark.parametrize("solver", [fs.Heun(), fs.PNDM()])
def test_a_solver_that_calls_twice_at_a_level_is_planned(model, solver):
    """What is tried on known answers is what a whole run of that plan leaves."""
    nfe, x = 15, noise(model, 2)
    found = cheaper.plan_cache(model, model.network, x, nfe=nfe, solver=solver, cuts=(1,))
    exact = fs.sample(model, x, nfe=40)
    for trial in found.trials:
        _, stages = plan(model.schedule, solver, nfe=nfe)
        weights = weights_of([stage.node.lam for stage in stages], trial.reused)
        wrapped = cheaper.Cached(model, model.network, times=found.times, weights=weights, depth=1)
        off = fs.sample(wrapped, x, nfe=nfe, solver=solver) - exact
        error = off.double().square().flatten(1).mean(1).log().mean().div(2).exp()
        assert float(error) == pytest.approx(trial.error, rel=1e-6)
    assert found.trials


# The report


def test_the_report_follows_the_model_s_own_path(model):
    found = cheaper.difference(model, cheaper.half(model), seeds=range(2), nfe=4)
    assert [level.nsr for level in found.levels] == times(model, 4)
    assert all(0 < level.relative < 2.0**-5 for level in found.levels)
    assert 0 < found.run < 1
    assert 0.5 < found.memory < 1
    assert len(str(found).splitlines()) == 6


class Silent(nn.Module):
    """Answers 0, with a parameter or without one."""

    shape, schedule = (3, 4, 4), fs.EDM()

    def __init__(self, parameters):
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(1)] * parameters)

    def forward(self, x, t):
        return x * 0


@pytest.mark.parametrize("of", ["network", "zero", "nothing"])
def test_a_model_does_not_differ_from_itself(model, of):
    each = {"network": model, "zero": Silent(1), "nothing": Silent(0)}[of]
    same = cheaper.difference(each, each, seeds=range(2), nfe=3)
    assert {(rmse, relative) for _, rmse, relative in same.levels} == {(0.0, 0.0)}
    assert (same.run, same.memory) == (0, 1)


def test_what_is_compiled_can_be_compared():
    compiled = Silent(1)
    compiled._orig_mod = nn.Identity()
    assert cheaper.difference(Silent(1), compiled, seeds=range(2), nfe=2).run == 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match="must have shape, schedule and network; function has no shape"):
        cheaper.difference(lambda x, t: x, lambda x, t: x)
    with pytest.raises(TypeError, match="must be a torch network, or a model with one"):
        cheaper.difference(Silent(1), lambda x, t: x)


def test_a_rule_says_which_calls_reuse():
    assert "[1, 3, 5] reuse, by a rule" in str(cheaper.every(fs.EVODiff(), fs.EDM(), 6, 2, 1, 0.5))
    assert "nothing is reused" in str(cheaper.every(fs.EVODiff(), fs.EDM(), 6, 1, 1, 0.5))


@pytest.mark.parametrize("wrong", [(0, 1, 0.5), (7, 1, 0.5), (2, -1, 0.5), (2, 1, 5.0)])
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="interval must be from 1 to nfe"):
        cheaper.every(fs.EVODiff(), fs.EDM(), 6, *wrong)
