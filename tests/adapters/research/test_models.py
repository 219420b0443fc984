"""Each family's denoiser against its authors' formulas, from the folder that `fewstep convert` makes of their files."""

import json
import math
import pickle

import pytest
import torch
from torch.nn.functional import log_softmax, one_hot

import fewstep as fs
import research_files as files
from fewstep.adapters import load_model
from fewstep.adapters.research.convert import convert_adm, convert_score_sde
from fewstep.adapters.research.edm import EDMCard
from fewstep.adapters.research.folder import NETWORK, read_fields, write_folder

# In float64 the families' formulas are the same numbers but for the level, which networks are told in float32.
TOLERANCE = 1e-5
WIDE = torch.float64


def edm_folder(out, arguments=files.SONG, model_type="SongUNet", **facts):
    """Without the pickle, which test_convert reads."""
    network = files.edm_network(arguments, model_type)
    config = {"network": {"model_type": model_type, **arguments}, **facts}
    write_folder(out, {"family": "edm", **config}, {NETWORK: network.state_dict()})
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("networks")
    edm_folder(base / "edm")
    edm_folder(base / "edm-dropout", files.SONG | {"label_dropout": 0.1})
    edm_folder(base / "edm-adm", files.DHARIWAL, "DhariwalUNet")
    edm_folder(base / "edm-vp", preconditioning="vp", sigma_max=150.0)
    edm_folder(base / "edm-ve", preconditioning="ve", sigma_min=0.02, sigma_max=100.0)
    for name, changes in (("adm", {}), ("adm-uncond", {"num_classes": 0})):
        (base / f"{name}-files").mkdir()
        network, classifier, config = files.adm_files(base / f"{name}-files", **changes)
        convert_adm(network, base / name, classifier=classifier, config=str(config))
        convert_adm(network, base / f"{name}-alone", config=str(config))
    for name, arguments, sde in (("vp", files.VP, "vpsde"), ("ve", files.VE, "vesde")):
        (base / f"{name}-files").mkdir()
        checkpoint, config = files.score_sde_files(base / f"{name}-files", arguments, sde)
        convert_score_sde(checkpoint, base / name, config=str(config))
    return base


def images(count=2, size=1.0, dtype=WIDE):
    return size * torch.randn(count, 3, files.SIDE, files.SIDE, dtype=dtype)


def load(folder):
    return load_model(folder, dtype=WIDE)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))


# Definitions


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize(("name", "network"), [("edm", "SongUNet"), ("edm-adm", "DhariwalUNet")])
def test_edm_is_table_1(folders, name, network, sigma):
    arguments = files.SONG if network == "SongUNet" else files.DHARIWAL
    unet, x, s, labels = (
        files.edm_network(arguments, network).double(),
        images(size=max(sigma, 1)),
        0.5,
        torch.tensor([2, 0]),
    )
    c_in, level = 1 / (sigma**2 + s**2) ** 0.5, torch.full((2,), math.log(sigma) / 4)
    with torch.no_grad():
        got = load(folders / name).conditioned(labels)(x, sigma)
        output = unet(c_in * x, level, one_hot(labels, 3).float())
        none = load(folders / name)(x, sigma)
        output_none = unet(c_in * x, level, torch.zeros(2, 3))
    for answer, told in ((got, output), (none, output_none)):
        close(answer, s**2 / (sigma**2 + s**2) * x + sigma * s * c_in * told)


@pytest.mark.parametrize("sigma", [0.1, 3.0, 90.0])
def test_edm_with_the_preconditioning_of_vp_and_ve(folders, sigma):
    unet, x, labels = files.edm_network().double(), images(size=max(sigma, 1)), torch.tensor([1, 1])
    told = one_hot(labels, 3).float()
    # VP: sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, of which t is the root.
    root = (-0.1 + math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(sigma**2))) / 19.9
    assert math.expm1(19.9 * root**2 / 2 + 0.1 * root) == pytest.approx(sigma**2)
    with torch.no_grad():
        vp = x - sigma * unet(x / (sigma**2 + 1) ** 0.5, torch.full((2,), 999 * root), told)
        ve = x + sigma * unet(x, torch.full((2,), math.log(0.5 * sigma)), told)
        close(load(folders / "edm-vp").conditioned(labels)(x, sigma), vp)
        close(load(folders / "edm-ve").conditioned(labels)(x, sigma), ve)


@pytest.mark.parametrize("index", [0, 400, 999])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_adm_is_epsilon_less_sigma_times_the_classifiers_gradient(folders, index, scale):
    unet, classifier, x, labels = (
        files.adm_network().double(),
        files.classifier_network().double(),
        images(),
        torch.tensor([2, 0]),
    )
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = float(torch.cumprod(1 - betas, 0)[index])
    time = torch.full((2,), float(index))
    noisy = x.clone().requires_grad_(True)
    log_prob = log_softmax(classifier(noisy, time), dim=1)[range(2), labels]
    gradient = torch.autograd.grad(log_prob.sum(), noisy)[0]
    with torch.no_grad():
        epsilon = unet(x, time, labels)[:, :3] - (1 - alpha_bar) ** 0.5 * scale * gradient
        got = load(folders / "adm").conditioned(labels, scale)(x, float(index))
    close(got, (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5)


def test_an_unconditional_adm_is_guided_by_the_classifier_alone(folders):
    model, x = load(folders / "adm-uncond"), images()
    unet = files.adm_network(files.ADM | {"num_classes": 0}).double()
    with torch.no_grad():
        epsilon = unet(x, torch.full((2,), 500.0))[:, :3]
        close(model(x, 500.0), fs.to_denoised("epsilon", epsilon, x, model.schedule.node(500.0)))
        assert torch.equal(model.conditioned(1, 0.0)(x, 500.0), model(x, 500.0))
        assert not torch.equal(model.conditioned(1, 1.0)(x, 500.0), model(x, 500.0))


def test_the_cosine_table_is_improved_ddpms():
    from fewstep.adapters.research.adm import ADMCard
    from fewstep.adapters.research.networks.adm import ADMConfig

    card = ADMCard(ADMConfig(64, 32, 1), noise_schedule="cosine")
    expected = torch.linspace(0, 1, 1001, dtype=torch.float64).add(0.008).mul(math.pi / 2 / 1.008).cos().square()
    betas = (1 - expected[1:] / expected[:-1]).clamp_max(0.999)
    torch.testing.assert_close(torch.tensor(card.betas(), dtype=torch.float64), betas, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_score_sde_vp_is_told_999_t_and_predicts_the_noise(folders, t):
    unet, x = files.score_network().double(), images()
    log_mean = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    mean, std = math.exp(log_mean), math.sqrt(-math.expm1(2 * log_mean))
    with torch.no_grad():
        score = -unet(x, torch.full((2,), 999 * t)) / std
        close(load(folders / "vp")(x, t), (x + std**2 * score) / mean)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_score_sde_ve_is_the_score_of_data_in_0_to_1(folders, sigma):
    """Theirs at y and sigma, y in [0, 1]; here at x = 2 y - 1 and twice the level."""
    unet, y = (
        files.score_network(files.VE).double(),
        torch.rand(2, 3, files.SIDE, files.SIDE, dtype=WIDE) + sigma * images(),
    )
    with torch.no_grad():
        denoised = y + sigma**2 * unet(y, torch.full((2,), sigma))
        got = load(folders / "ve")(2 * y - 1, 2 * sigma)
    close(got, 2 * denoised - 1)


def test_schedules_are_the_authors(folders):
    assert load(folders / "edm").schedule == fs.EDM(0.002, 80.0, data_std=0.5)
    assert load(folders / "vp").schedule == fs.VPLinear(0.1, 20.0, data_std=0.5)
    assert load(folders / "ve").schedule == fs.EDM(0.02, 100.0, data_std=0.5)
    adm = load(folders / "adm").schedule
    assert (adm.t_max, adm.alphas_cumprod[0]) == (999.0, 1 - 1e-4)


# What all share

ALL = ["edm", "edm-dropout", "edm-adm", "edm-vp", "edm-ve", "adm", "adm-uncond", "adm-alone", "vp", "ve"]


def denoisers(model):
    """Every way to ask it."""
    if not getattr(model.card.network, "num_classes", 0):
        yield model
    if model.classes:
        yield model.conditioned([1, 2])
    if "dropout" in str(model.card) and getattr(model.card.network, "label_dropout", 0):
        yield model.conditioned([1, 2], torch.tensor([1.0, 3.0]))
    if getattr(model, "classifier", None) is not None:
        yield model.conditioned(1, 2.0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("nfe", [5, 10])
def test_a_run_of_so_many_calls(folders, name, nfe):
    model = load_model(folders / name)
    noise = torch.randn(2, *model.shape)
    for denoiser in denoisers(model):
        calls = []

        def counted(x, t, denoiser=denoiser, calls=calls):
            calls.append(t)
            return denoiser(x, t)

        got = fs.sample(counted, noise, nfe=nfe, schedule=denoiser.schedule)
        assert len(calls) == nfe
        assert bool(got.isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_it_can_be_pickled_and_carries_its_schedule(folders, name):
    model, x = load_model(folders / name), images(dtype=torch.float32)
    for denoiser in denoisers(model):
        there = pickle.loads(pickle.dumps(denoiser))
        assert there.schedule == denoiser.schedule == model.schedule
        t = model.schedule.time_at(0.0)
        assert torch.equal(there(x, t), denoiser(x, t))


@pytest.mark.parametrize("name", ["edm", "adm", "adm-uncond", "vp", "ve"])
def test_with_batch_an_image_is_the_same_whatever_it_is_batched_with(folders, name):
    model, x = load_model(folders / name, batch=4), images(5, dtype=torch.float32)
    t = model.schedule.time_at(0.0)

    def answer(part, labels):
        denoiser = model.conditioned(labels) if model.classes else model
        return denoiser(part, t)

    labels = [0, 1, 2, 1, 0]
    whole = answer(x, labels)
    # To the last bit on most processors; on some the place in a batch decides how a product is rounded.
    apart = torch.cat([answer(x[:2], labels[:2]), answer(x[2:], labels[2:])])
    torch.testing.assert_close(whole, apart, rtol=0, atol=TOLERANCE)
    free = load_model(folders / name)
    torch.testing.assert_close(
        whole, (free.conditioned(labels) if free.classes else free)(x, t), rtol=0, atol=TOLERANCE * 10
    )


def test_guidance_of_edm_is_one_evaluation_of_both(folders):
    model, x, sizes = load_model(folders / "edm-dropout"), images(dtype=torch.float32), []
    model.network.register_forward_pre_hook(lambda _, told: sizes.append(len(told[0])))
    got = model.conditioned([2, 1], 3.0)(x, 1.0)
    assert sizes == [4]
    plain = model(x, 1.0)
    close(got, plain + 3.0 * (model.conditioned([2, 1])(x, 1.0) - plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["edm", "edm-adm", "adm", "vp", "ve"])
def test_a_network_in_another_type(folders, name, dtype):
    model, exact, x = load_model(folders / name, dtype=dtype), load_model(folders / name), images(dtype=torch.float32)
    t = model.schedule.time_at(0.0)

    def answer(model):
        return (model.conditioned(1) if model.classes else model)(x, t)

    got, expected = answer(model), answer(exact)
    assert got.dtype == torch.float32
    eps = max(torch.finfo(dtype).eps, 1e-6)
    # Twenty layers, each rounding numbers of size 1, and then the factor that turns noise into the image.
    atol = 20 * eps * max(1.0, float(expected.abs().max()))
    assert float((got - expected).abs().max()) <= atol


def test_fingerprints_tell_weights_and_cards_apart(folders):
    found = [load_model(folders / name).fingerprint for name in ("edm", "edm-vp", "edm-adm", "adm", "vp")]
    assert len({*found}) == 5
    assert load_model(folders / "edm", batch=3).fingerprint == found[0]


# What is refused


def test_labels_and_guidance_that_cannot_be(folders):
    edm, adm, vp = (load_model(folders / name) for name in ("edm", "adm-alone", "vp"))
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\); got 3"):
        edm.conditioned(3)
    with pytest.raises(ValueError, match="never trained without labels, which guidance needs: use guidance=1"):
        edm.conditioned(1, 2.0)
    with pytest.raises(ValueError, match="condition must be one for all or one a sample, 1 or 2; got shape"):
        edm.conditioned([1, 2, 0])(images(dtype=torch.float32), 1.0)
    with pytest.raises(ValueError, match="no classifier, which guidance needs"):
        adm.conditioned(1, 2.0)
    with pytest.raises(ValueError, match="trained with labels alone: give them one"):
        adm(images(dtype=torch.float32), 5.0)
    with pytest.raises(ValueError, match="this model has no classes: call it as it is"):
        vp.conditioned(0)


def edited(folder, out, **changes):
    """A copy whose config.json is another."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    facts = json.loads((out / "config.json").read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            facts[key] |= value
        else:
            facts[key] = value
    (out / "config.json").write_text(json.dumps(facts))
    return out


REFUSED = {
    "another family": ({"family": "../edm"}, r"family must be one of edm, adm, score-sde; got '../edm'"),
    "a word misspelt": ({"sigma_dat": 1}, "'sigma_dat' is not known; there are network, preconditioning"),
    "another preconditioning": ({"preconditioning": "x"}, "preconditioning must be one of edm, vp, ve; got 'x'"),
    "a number in words": ({"sigma_data": "half"}, "sigma_data must be a float; got 'half'"),
    "no spread": ({"sigma_data": 0}, "data_std must be None or positive"),
    "a network that is a list": ({"network": [1]}, "network must be an object; got list"),
    "more channels than fit": ({"network": {"model_channels": 10**9}}, "model_channels must be an integer of at most"),
    "wide": ({"network": {"model_channels": 2**20}}, r"is \(.*\) in the weights"),
    "deep": ({"network": {"num_blocks": 2**20}}, r"the configuration has 2,097,152 layers, the weights \d+ tensors"),
    "a long list": ({"network": {"channel_mult": [1] * 10**6}}, "channel_mult must be a list of at most 4,096"),
    "many levels": ({"network": {"channel_mult": [1] * 4096}}, "the configuration has 4,096 layers"),
    "absurd multipliers": ({"network": {"channel_mult": [2**20, 2**20]}}, "does not hold the network of its config"),
    "nothing": ({"network": {"channel_mult": []}}, "does not hold the network of its config.json"),
    "no model_type": ({"network": {"model_type": "os.system"}}, "model_type must be one of SongUNet, DhariwalUNet"),
    "levels reversed": ({"sigma_max": 1e-3}, "EDM needs 0 < sigma_min < sigma_max"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(folders, tmp_path, kind):
    changes, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        load_model(edited(folders / "edm", tmp_path / "m", **changes))
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_built_before_sizes_are_compared(folders, tmp_path, monkeypatch):
    from fewstep.adapters.research.networks.edm import EDMUNet

    build = EDMUNet.__init__

    def built(self, *args):
        assert torch.empty(0).device.type == "meta"
        build(self, *args)

    monkeypatch.setattr(EDMUNet, "__init__", built)
    load_model(folders / "edm")
    for changes in ({"model_channels": 2**20}, {"channel_mult": [2**20, 2**20]}):
        with pytest.raises(ValueError, match="does not hold the network"):
            load_model(edited(folders / "edm", tmp_path / str(len(list(tmp_path.iterdir()))), network=changes))


def test_damaged_weights_are_refused(folders, tmp_path):
    folder = edited(folders / "edm", tmp_path / "m")
    whole = (folder / NETWORK).read_bytes()
    for content in (whole[:-100], whole[:50], b"no" * 50, b"\xff" * 8 + whole[8:], b""):
        (folder / NETWORK).write_bytes(content)
        with pytest.raises(ValueError, match=r"does not hold the network of its config.json \(") as caught:
            load_model(folder)
        assert len(str(caught.value).splitlines()) == 1
    (folder / NETWORK).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no network\.safetensors: convert the network again"):
        load_model(folder)


def test_weights_that_a_type_cannot_hold_are_told(tmp_path):
    network = files.edm_network()
    state = network.state_dict()
    state["map_layer0.bias"][0] = 1e5
    facts = {"family": "edm", "network": {"model_type": "SongUNet", **files.SONG}}
    write_folder(tmp_path / "m", facts, {NETWORK: state})
    load_model(tmp_path / "m")
    with pytest.raises(ValueError, match=r"map_layer0\.bias holds NaN or inf as torch\.float16"):
        load_model(tmp_path / "m", dtype=torch.float16)


def test_a_classifier_of_other_images_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="the classifier is of other images or classes than the network"):
        load_model(edited(folders / "adm", tmp_path / "m", classifier={"image_size": 16}))


def test_the_defaults_of_a_card_are_edms():
    card = read_fields(EDMCard, {"network": {"model_type": "SongUNet", **files.SONG}}, "config")
    assert (card.sigma_data, card.sigma_min, card.sigma_max) == (0.5, 0.002, 80.0)
