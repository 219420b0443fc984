"""Cheaper calls of a Stable Diffusion and of a DiT, tiny and untrained, as folders of diffusers give them."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
pytest.importorskip("transformers", reason="needs the extra pipelines")

import fewstep as fs  # noqa: E402
import tiny_pipelines  # noqa: E402
from fewstep import cheaper  # noqa: E402
from fewstep.adapters import load_model  # noqa: E402
from fewstep.cheaper.network import weight_bytes  # noqa: E402
from integrations import pipelines as bare  # noqa: E402

CALLS = 6


def dit():
    """Of five blocks, so that there is something between the first and the last."""
    pipe = bare.dit()
    network = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=5, patch_size=4, attention_head_dim=4, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=10,
    )  # fmt: skip
    return diffusers.DiTPipeline(network.eval(), pipe.vae, pipe.scheduler)


KINDS = {
    "sd": (tiny_pipelines.sd1, lambda model: model.prompted("a cat", 3.0)),
    "dit": (dit, lambda model: model.conditioned(2, 3.0)),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A model, and what makes its guided denoiser."""
    make, of = KINDS[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / request.param
    pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():  # some begin as zeros, which would hide what is left out
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    pipe.save_pretrained(folder)
    return load_model(folder), of


def noise(model):
    return fs.unit_noise(range(2), model.shape)


def test_features_are_reused_as_planned_and_each_run_is_fresh(made):
    model, of = made
    plan = cheaper.every(fs.DDIM(), model.schedule, CALLS, 2, cheaper.depths(model.network)[0], left=0.5)
    wrapped = plan.wrap(of(model), model.network)
    run = [fs.sample(each, noise(model), nfe=CALLS, solver=fs.DDIM()) for each in (of(model), wrapped, wrapped)]
    assert torch.equal(run[1], run[2])
    assert 0 < (run[1] - run[0]).abs().max() < 10
    assert torch.equal(run[0], fs.sample(of(model), noise(model), nfe=CALLS, solver=fs.DDIM()))


def test_a_plan_is_made_and_says_what_it_found(made):
    model, of = made
    plan = cheaper.plan_cache(of(model), model.network, noise(model), nfe=5, solver=fs.DDIM(), cuts=(1,))
    assert plan.trials
    assert len(str(plan).splitlines()) == 1 + len(plan.trials)
    assert (plan.chosen is None) == (plan.weights == (None,) * 5)


def test_a_network_of_too_few_blocks_is_refused(tmp_path):
    tiny_pipelines.dit().save_pretrained(tmp_path / "dit")
    model = load_model(tmp_path / "dit")
    with pytest.raises(ValueError, match="DiTTransformer2DModel cannot be cut: neither a U-Net of diffusers nor a tr"):
        cheaper.plan_cache(model.conditioned(1), model.network, noise(model))


def test_half_precision_is_off_by_its_roundings_and_its_file_keeps_it(made, tmp_path):
    model, of = made
    small = cheaper.half(model)
    assert weight_bytes(small.network) < weight_bytes(model.network)
    found = cheaper.difference(model, small, seeds=range(2), nfe=3, of=of)
    # Guidance triples what some ten layers round, each its input, its weights and its answer.
    assert all(0 < level.relative < 3 * 30 * 2.0**-8 for level in found.levels)
    cheaper.save(small, tmp_path / "small.safetensors")
    loaded = cheaper.load(model, tmp_path / "small.safetensors")
    x = noise(model)
    assert torch.equal(of(loaded)(x, 5.0), of(small)(x, 5.0))
    assert small.decode(x).shape == model.decode(x).shape
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")  # of torchao's own import
def test_weights_of_8_bits_leave_the_embedding_of_the_time(made):
    pytest.importorskip("torchao", reason="needs the extra cheaper")
    model, of = made
    small = cheaper.quantized(model)
    names = [name for name, each in small.network.state_dict().items() if type(each) is not torch.Tensor]
    assert names
    assert not [name for name in names if "time" in name or "norm" in name or "emb" in name]
    found = cheaper.difference(model, small, seeds=range(2), nfe=3, of=of)
    assert all(0 < level.relative < 3 * 30 / 127 for level in found.levels)
