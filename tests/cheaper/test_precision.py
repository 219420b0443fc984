"""Half precision and small weights: what is converted, what is not, how far answers are off, and what a file keeps."""

import dataclasses

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep import cheaper
from fewstep.adapters import load_model
from fewstep.cheaper.network import run_of, seen, weight_bytes
from fewstep.cheaper.precision import GROUP
from tiny import save_model

BF16 = 2.0**-8  # a rounding's, relative


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp("models") / "tiny"))


class Net(nn.Module):
    """A convolution at either end, tokens between, and a vector that tells the time."""

    def __init__(self, width=64):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.embedding = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.shift = nn.Linear(width, width)
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, t):
        h = self.first(x)
        tokens = self.norm(h.flatten(2).mT + self.shift(self.embedding(t.reshape(-1, 1)))[:, None])
        return self.last(h + self.two(self.one(tokens).relu()).mT.reshape(h.shape))


@dataclasses.dataclass(frozen=True)
class Model:
    network: nn.Module
    shape: tuple = (3, 4, 4)
    schedule: fs.EDM = dataclasses.field(default_factory=fs.EDM)

    def __call__(self, x, t):
        return x / (1 + t * t) + t / (1 + t * t) ** 0.5 * 0.1 * self.network(x, torch.full((len(x),), float(t)))


def run(network):
    network(torch.randn(2, 3, 4, 4), torch.ones(2))


def types(network):
    return {name: tensor.dtype for name, tensor in network.state_dict().items()}


def test_the_layers_of_the_time_are_told_from_a_run():
    found = {name: (vector, alone, end) for name, vector, alone, end in seen(Net(), run)}
    embedding = dict.fromkeys(("embedding.0", "embedding.2"), (True, True, False))
    ends, between = (
        dict.fromkeys(names, (False, False, end)) for names, end in ((("first", "last"), True), (("one", "two"), False))
    )
    assert found == {**embedding, "shift": (True, False, False), **ends, **between}


def test_half_precision_leaves_ends_norms_and_the_embedding():
    network = Net()
    converted = types(cheaper.half(network, run=run))
    small = {name.rpartition(".")[0] for name, dtype in converted.items() if dtype == torch.bfloat16}
    assert small == {"shift", "one", "two"}
    assert set(types(network).values()) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_its_roundings(model, dtype):
    x = torch.randn(4, *model.shape) * 2
    labels = [0, 1, 2, 0]
    exact, got = (each.conditioned(labels)(x, 2.0) for each in (model, cheaper.half(model, dtype=dtype)))
    # c_out F, of size 1, through some ten layers, each of which rounds its input, its weights and its answer.
    assert 0 < (got - exact).abs().max() < 30 * torch.finfo(dtype).eps


def test_the_packaged_network_takes_half_the_memory():
    cifar = load_model()
    small = cheaper.half(cifar)
    assert weight_bytes(small.network) <= 0.55 * weight_bytes(cifar.network)
    assert small.network.conv_in.weight.dtype == torch.float32  # of which type the input of the embedding is made


@pytest.mark.parametrize(
    "copied",
    [cheaper.half, cheaper.winograd, lambda model: cheaper.quantized(model, tolerance=1.0)],
    ids=["half", "winograd", "quantized"],
)
def test_what_is_copied_stays_as_it_was(copied):
    if copied not in (cheaper.half, cheaper.winograd):
        pytest.importorskip("torchao")
    network = Net()
    network.first = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, padding=1))
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copied(Model(network, shape=(3, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert network.first[1].training
    assert not network.norm.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_run_in_it(dtype):
    class Own(Model):
        def __call__(self, x, t):
            return self.network(x, torch.full((len(x),), float(t), dtype=x.dtype))

    model = Own(Net().to(dtype))
    small = cheaper.half(model)
    assert small.network.two.weight.dtype == torch.bfloat16
    assert small.network.norm.weight.dtype == small.network.first.weight.dtype == dtype
    x = torch.randn(2, *model.shape, dtype=dtype)
    assert torch.allclose(small(x, 1.0), model(x, 1.0), atol=30 * BF16)


def test_tied_weights_are_kept_once_and_come_back_tied(tmp_path):
    path = tmp_path / "tied.safetensors"

    def tied():
        network = Net()
        network.shift.weight = network.embedding[2].weight
        both = torch.randn(2, 64)
        network.shift.bias, network.embedding[2].bias = map(nn.Parameter, both)  # parts of one memory
        return network

    network = tied()
    cheaper.save(network, path)
    once = weight_bytes(network) - network.shift.weight.nbytes
    assert once < path.stat().st_size < once + 2000
    loaded = cheaper.load(tied(), path)
    assert loaded.shift.weight.data_ptr() == loaded.embedding[2].weight.data_ptr()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_what_has_no_network_is_refused():
    with pytest.raises(TypeError, match="a torch network, or a model with one as its field network; got function"):
        cheaper.half(lambda x, t: x)
    with pytest.raises(TypeError, match="run is needed for a network alone"):
        cheaper.half(Net())
    for mark in ("_orig_mod", "_compiled_call_impl"):  # of torch.compile, and of Module.compile
        compiled = Net()
        object.__setattr__(compiled, mark, nn.Identity())
        with pytest.raises(TypeError, match="is compiled"):
            cheaper.half(compiled, run=run)


def test_where_nothing_would_be_converted_it_is_refused():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match="nothing would be converted"):
        cheaper.half(plain, run=lambda network: network(torch.zeros(1, 3, 2, 2)))
    with pytest.raises(ValueError, match="called no linear or convolution layer"):
        cheaper.half(plain, run=lambda network: None)
    with pytest.raises(ValueError, match=r"torch.bfloat16 or torch.float16; got torch.float32"):
        cheaper.half(Net(), dtype=torch.float32, run=run)


@pytest.mark.parametrize("half_first", [False, True])
def test_a_file_keeps_half_precision_bit_for_bit(model, tmp_path, half_first):
    small = cheaper.half(model)
    cheaper.save(small, tmp_path / "small.safetensors")
    loaded = cheaper.load(cheaper.half(model) if half_first else model, tmp_path / "small.safetensors")
    x = torch.randn(3, *model.shape)
    assert torch.equal(loaded(x, 1.0), small(x, 1.0))
    assert types(loaded.network) == types(small.network)


def test_files_of_others_and_damaged_ones_are_refused(model, tmp_path):
    path = tmp_path / "small.safetensors"
    with pytest.raises(IsADirectoryError, match=r"it is a folder: choose another path$"):
        cheaper.save(model, tmp_path)
    cheaper.save(cheaper.half(model), path)
    with pytest.raises(ValueError, match="is of another network"):
        cheaper.load(Net(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        cheaper.load(model, path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="was not written by"):
        cheaper.load(model, path)


# Quantised weights


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="needs the extra cheaper")


@pytest.mark.filterwarnings("ignore")  # of torchao's own import
class TestQuantised:
    pytestmark = pytest.mark.usefixtures("torchao")

    @pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4), ("int8-dynamic", 8)])
    def test_weights_are_off_by_half_a_level_at_most(self, weights, bits):
        network = Net()
        small = cheaper.quantized(network, weights, run=run)
        assert [name for name, each in small.state_dict().items() if type(each) is not torch.Tensor] == [
            "one.weight", "two.weight",
        ]  # fmt: skip
        exact, got = network.one.weight, small.one.weight.dequantize()
        largest = exact.unflatten(1, (-1, GROUP if bits == 4 else exact.shape[1])).abs().amax(2, keepdim=True)
        level = largest / (2 ** (bits - 1) - 1)
        off = (got - exact).unflatten(1, (largest.shape[1], -1)).abs()
        # 4 bits may have the largest weight at -8 levels, and cut off what is above 7 of them.
        assert (off <= level * (0.51 if bits == 8 else 1.01)).all()

    @pytest.mark.parametrize("weights", ["int8", "int4", "int8-dynamic"])
    def test_a_file_keeps_them_bit_for_bit(self, weights, tmp_path):
        model = Model(Net())
        small = cheaper.quantized(model, weights)
        cheaper.save(small, tmp_path / "small.safetensors")
        loaded = cheaper.load(model, tmp_path / "small.safetensors")
        x = torch.randn(3, *model.shape)
        assert torch.equal(loaded(x, 1.0), small(x, 1.0))
        assert not torch.equal(loaded(x, 1.0), model(x, 1.0))

    def test_both_together(self, tmp_path):
        model = Model(Net())
        small = cheaper.quantized(cheaper.half(model))
        cheaper.save(small, tmp_path / "small.safetensors")
        x = torch.randn(3, *model.shape)
        assert torch.equal(cheaper.load(model, tmp_path / "small.safetensors")(x, 1.0), small(x, 1.0))

    def test_parameters_of_the_network_itself_are_kept(self, tmp_path):
        """Which torchao's own flattening cannot name."""

        class Rooted(Net):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor([2.0]))

        model = Model(Rooted())
        small = cheaper.quantized(model)
        cheaper.save(small, tmp_path / "small.safetensors")
        assert cheaper.load(model, tmp_path / "small.safetensors").network.scale.item() == 2.0

    def test_a_layer_beyond_the_tolerance_keeps_its_numbers(self):
        network, off = Net(), {}
        x = torch.randn(2, 3, 4, 4)
        whole = cheaper.quantized(network, "int4", run=run)

        def hear(name):
            def hook(layer, given, answer):
                rounded = given[0] @ whole.get_submodule(name).weight.dequantize().T + layer.bias
                off[name] = ((rounded - answer).norm() / answer.norm()).item()

            return hook

        for name in ("one", "two"):
            network.get_submodule(name).register_forward_hook(hear(name))
        network(x, torch.ones(2))
        within, beyond = sorted(off, key=off.get)
        for name in off:
            network.get_submodule(name)._forward_hooks.clear()
        tolerance = (off[within] * off[beyond]) ** 0.5
        small = cheaper.quantized(network, "int4", tolerance=tolerance, run=lambda network: network(x, torch.ones(2)))
        assert type(small.get_submodule(within).weight.data) is not torch.Tensor
        assert torch.equal(small.get_submodule(beyond).weight, network.get_submodule(beyond).weight)

    def test_where_nothing_is_quantised_it_is_refused(self, model):
        with pytest.raises(ValueError, match="no layer would be quantised"):
            cheaper.quantized(model)  # convolutions alone
        with pytest.raises(ValueError, match="within the tolerance"):
            cheaper.quantized(Model(Net()), tolerance=1e-9)

    def test_wrong_words_are_refused(self):
        with pytest.raises(ValueError, match="weights must be one of int8, int4, int8-dynamic; got 'int2'"):
            cheaper.quantized(Model(Net()), "int2")
        with pytest.raises(ValueError, match="tolerance must be positive"):
            cheaper.quantized(Model(Net()), tolerance=0)


def test_a_model_runs_its_own_network_along_its_own_grid(model):
    told = []
    network = Net()

    class Told(Model):
        def __call__(self, x, t):
            told.append(t)
            return super().__call__(x, t)

    run_of(Told(network), None)(network)
    assert told == [node.time for node in fs.focused(fs.EDM(), 6)[:-1]]
