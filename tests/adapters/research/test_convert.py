"""`fewstep convert`'s work: published files become folders, nothing in them is executed, and memory is bounded.

What is hostile here would make a file that the test looks for, and does no other harm.
"""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import research_files as files
from adapters.research.test_architectures import NAMES, from_classifier_flags, from_config, from_flags
from cli.commands import DONE, FAILED, assert_refused, run
from fewstep.adapters import load_model
from fewstep.adapters.research import convert, unpickle
from fewstep.adapters.research.adm import ADMCard
from fewstep.adapters.research.convert import convert_adm, convert_score_sde
from fewstep.adapters.research.folder import read_fields
from fewstep.adapters.research.networks.adm import ADMConfig, ClassifierConfig
from fewstep.adapters.research.networks.score_sde import NCSNppConfig
from fewstep.adapters.research.published import ADM, ADM_CLASSIFIERS, SCORE_SDE
from fewstep.adapters.research.score_sde import ScoreSDECard
from research_files import Persistent


class Marks:
    """What is executed when it is opened the usual way: a file appears."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Called:
    """A call of a function of one's choice."""

    def __init__(self, *given):
        self.given = given

    def __reduce__(self):
        return self.given[0], self.given[1:]


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# EDM's pickles

PICKLES = {
    "song": ({}, {}),
    "dhariwal": ({"arguments": files.DHARIWAL, "model_type": "DhariwalUNet"}, {}),
    "vp": (
        {"precond": "VPPrecond", "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 0.03, "sigma_max": 152.0},
        {"preconditioning": "vp", "sigma_min": 0.03, "sigma_max": 152.0},
    ),
    "ve": (
        {"precond": "VEPrecond", "sigma_min": 0.02, "sigma_max": 100.0},
        {"preconditioning": "ve", "sigma_min": 0.02, "sigma_max": 100.0},
    ),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_of_edm_tells_its_network(tmp_path, kind):
    given, told = PICKLES[kind]
    path = files.edm_pickle(tmp_path / "net.pkl", **given)
    with path.open("rb") as file:
        found, state = unpickle.read(file, path.stat().st_size)
    same(state, files.edm_network(given.get("arguments", files.SONG), given.get("model_type", "SongUNet")).state_dict())
    card = convert._edm_card(found, path)
    facts = {"preconditioning": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "source": "net.pkl", **told}
    assert {key: getattr(card, key) for key in facts} == facts


def test_a_pickle_becomes_a_folder_by_a_process_of_its_own(tmp_path, monkeypatch):
    path, out, started = files.edm_pickle(tmp_path / "net.pkl"), tmp_path / "out", {}
    command = ("convert", "edm", path, out)
    assert_refused(run(*command), FAILED, "is a pickle, a program that runs when it is opened", "add --trust-pickle")
    assert not out.exists()

    def watched(command, **options):
        started.update(options)
        return run_process(command, **options)

    run_process = subprocess.run
    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setenv("SECRET_TOKEN", "a secret")
    told = run(*command, "--trust-pickle")
    assert told.exit_code == DONE, told.stderr
    said = " ".join(told.stderr.split())
    assert "by a process of its own that runs nothing of the file; no secrets inherited" in said
    assert said.endswith(f"fewstep sample --model {out}")
    assert started["env"].keys() <= {*convert.KEPT, "HOME", "PYTHONPATH"}
    assert started["cwd"] == type(tmp_path)(started["env"]["HOME"])
    same(load_model(out).network.state_dict(), files.edm_network().state_dict())
    assert_refused(run(*command, "--trust-pickle"), FAILED, "holds a model already")


def test_that_process_has_no_network_where_it_says_so_and_little_memory(tmp_path):
    code = "import json, socket, unpickle; alone = unpickle.leave_network(); limited = unpickle.limit_memory(1000)\n"
    code += "try: held = len(bytearray(2 * unpickle.ROOM))\nexcept MemoryError: held = 0\n"
    code += "print(json.dumps([alone, [name for _, name in socket.if_nameindex()], limited, held]))"
    folder = os.path.dirname(unpickle.__file__)
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    alone, interfaces, limited, held = json.loads(told)
    assert not alone or interfaces == ["lo"]
    assert sys.platform != "linux" or (limited and not held)


def endless_lists():
    found = [1]
    for _ in range(100):
        found = [found, found]
    return found


def endless_modules():
    found = Persistent("Block", _parameters={}, _buffers={}, _modules={})
    for _ in range(100):
        found = Persistent("Block", _parameters={}, _buffers={}, _modules={"a": found, "b": found})
    return found


def _outer(inner=None, **changes):
    state = {"_init_kwargs": {}, "_parameters": {}, "_buffers": {}, "_modules": {}, **changes}
    inner = Persistent("SongUNet", **state) if inner is None else inner
    return {"ema": Persistent("EDMPrecond", sigma_data=0.5, _modules={"model": inner})}


def stored(numbers, archive=False):
    """A storage of 3 numbers that says it has as many, as torch.save writes it."""
    held = io.BytesIO()
    torch.save(torch.zeros(3)._typed_storage(), held, _use_new_zipfile_serialization=archive)
    (three, told) = b"K\x03", b"J" + struct.pack("<i", numbers)
    content = held.getvalue()
    assert archive or content.count(three) == 1
    return Called(torch.storage._load_from_bytes, content if archive else content.replace(three, told))


HOSTILE = {
    "a call": lambda path: Marks(path),
    "a call in the network": lambda path: _outer(_buffers={"x": Marks(path)}),
    "a function of torch": lambda path: _outer(_buffers={"x": Called(torch.hub.load, str(path), "x")}),
    "lists in lists without end": lambda path: _outer(_init_kwargs={"channel_mult": endless_lists()}),
    "modules in modules without end": lambda path: _outer(endless_modules()),
    "a storage of an archive": lambda path: _outer(_buffers={"x": stored(3, archive=True)}),
    "a storage larger than its file": lambda path: _outer(_buffers={"x": stored(2**31 - 1)}),
    "no network": lambda path: {"ema": 3},
    "another class": lambda path: {"ema": Persistent("Precond", _modules=_outer()["ema"].state["_modules"])},
    "a tensor beyond its storage": lambda path: _outer(_buffers={"x": Beyond()}),
    "a tensor that repeats itself": lambda path: _outer(_buffers={"x": torch.zeros(1).expand(10**9)}),
}


class Beyond:
    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (
            torch.zeros(3)._typed_storage(),
            0,
            (10**9,),
            (1,),
            False,
            OrderedDict(),
        )


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, kind):
    path = files.edm_pickle(tmp_path / "net.pkl", content=HOSTILE[kind](tmp_path / "executed"))
    with path.open("rb") as file, pytest.raises((ValueError, pickle.UnpicklingError, RuntimeError, EOFError)):
        convert._edm_card(unpickle.read(file, path.stat().st_size)[0], path)
    assert not (tmp_path / "executed").exists()


def test_what_the_process_refuses_is_one_line(tmp_path):
    path, out = files.edm_pickle(tmp_path / "net.pkl", content=Marks(tmp_path / "executed")), tmp_path / "out"
    refused = run("convert", "edm", path, out, "--trust-pickle")
    assert_refused(refused, FAILED, "is not a network of EDM (UnpicklingError: it holds", ".mkdir, which no network")
    assert not (tmp_path / "executed").exists()
    assert not out.exists()


def test_damaged_pickles_are_refused(tmp_path):
    whole = files.edm_pickle(tmp_path / "net.pkl").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no pickle", whole[:1000] + b"\xff" * 100 + whole[1100:]):
        with pytest.raises((ValueError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError)):
            unpickle.read(io.BytesIO(content), len(whole))


# Files of torch.save


def archived(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _saved(content):
    return lambda path, mark: torch.save(content(mark), path)


def _rezipped(**options):
    def write(path, mark):
        torch.save(files.adm_network().state_dict(), path)
        archived(path, options.get("more", {}) | members_of(path), options.get("compression", zipfile.ZIP_STORED))

    return write


def _cut(path, mark):
    torch.save(files.adm_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def _old(path, mark):
    torch.save(files.adm_network().state_dict(), path, _use_new_zipfile_serialization=False)


def _huge(path, mark):
    """An archive of 10 MB of zeros that is 10 kB long."""
    archived(path, {"archive/data.pkl": b"", "archive/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)


TORCH_FILES = {
    "code": (_saved(Marks), r"holds more than tensors, or is damaged \("),
    "code beside weights": (_saved(lambda mark: {"w": torch.zeros(3), "x": Marks(mark)}), "holds more than tensors"),
    "packed": (_rezipped(compression=zipfile.ZIP_DEFLATED), "would unpack to more than its|is damaged"),
    "absurd sizes": (_huge, r"would unpack to more than its [\d,]+ bytes"),
    "a name that leaves": (
        _rezipped(more={"../../executed": b"x"}),
        "names a file outside of itself, '../../executed'",
    ),
    "an absolute name": (_rezipped(more={"/executed": b"x"}), "names a file outside of itself, '/executed'"),
    "cut off": (_cut, "is not a whole file of torch.save: copy it again"),
    "of old torch": (_old, r"if torch before 1.6 wrote it, save it anew"),
    "a tensor that repeats itself": (_saved(lambda mark: {"w": torch.zeros(1).expand(10**9)}), "are larger than the"),
    "a sparse tensor": (_saved(lambda mark: {"w": torch.zeros(4, 4).to_sparse()}), "w is no plain tensor"),
    "a tensor without values": (
        _saved(lambda mark: {"w": torch.zeros(2, device="meta")}),
        "no plain tensor|is damaged",
    ),
    "a list": (_saved(lambda mark: [torch.zeros(3)]), "holds no weights by name"),
    "a number": (_saved(lambda mark: {"w": 3}), "holds 'w', which is no tensor"),
    "another network": (_saved(lambda mark: {"w": torch.zeros(3)}), "has 2 layers, the weights 1 tensors"),
    "NaN": (
        _saved(lambda mark: files.adm_network().state_dict() | {"out.2.bias": torch.full((6,), torch.nan)}),
        "out.2.bias holds NaN or inf: copy it again",
    ),
    "a key too many": (
        _saved(lambda mark: files.adm_network().state_dict() | {"more": torch.zeros(3)}),
        r"does not fit its configuration \(more is \(3,\) in the weights, not in the configuration\)",
    ),
}


@pytest.mark.parametrize("kind", TORCH_FILES)
def test_a_torch_file_that_is_no_network_is_refused_and_not_executed(tmp_path, kind):
    write, message = TORCH_FILES[kind]
    path, config = tmp_path / "network.pt", tmp_path / "adm.json"
    write(path, tmp_path / "executed")
    config.write_text(json.dumps({"network": files.ADM}))
    with pytest.raises(ValueError, match=message) as caught:
        convert_adm(path, tmp_path / "out", config=str(config))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_whose_averages_do_not_fit_is_refused(tmp_path):
    path, config = files.score_sde_files(tmp_path)
    whole = torch.load(path, weights_only=True)
    shadows = whole["ema"]["shadow_params"]
    for ema, message in (
        ({"shadow_params": shadows[:-1]}, "its averages do not fit its"),
        ({"shadow_params": [shadows[1], shadows[0], *shadows[2:]]}, "the average of .* is of shape"),
        ({}, 'is no checkpoint of score_sde_pytorch: it has no "model" and "ema"'),
    ):
        torch.save({**whole, "ema": ema}, path)
        with pytest.raises(ValueError, match=message):
            convert_score_sde(path, tmp_path / "out", config=str(config))


# Configurations


def test_a_name_of_no_configuration_lists_those_that_are(tmp_path):
    path, config = files.score_sde_files(tmp_path)
    for convert_file, name in ((convert_score_sde, "vp/cifar10_ddpmpp_continuous"), (convert_adm, "256x256_diffusion")):
        with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
            convert_file(tmp_path / "missing", tmp_path / "out")
        with pytest.raises(ValueError, match=f"no configuration .*: give --config, a JSON file or .*{name}"):
            convert_file(path, tmp_path / "out")
    config.write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"is not valid JSON"):
        convert_score_sde(path, tmp_path / "out", config=str(config))


def test_published_configurations_are_those_of_the_table():
    for name, row in NAMES["adm"].items():
        wanted = read_fields(ADMConfig, from_flags(row["flags"]), name)
        got = read_fields(ADMConfig, ADM[name]["network"], name)
        assert (got, got.multipliers) == (wanted, wanted.multipliers)
    for name, row in NAMES["adm-classifier"].items():
        wanted = read_fields(ClassifierConfig, from_classifier_flags(row["flags"]), name)
        assert read_fields(ClassifierConfig, ADM_CLASSIFIERS[name], name) == wanted
    for name, row in NAMES["score-sde"].items():
        wanted = read_fields(NCSNppConfig, from_config(row["config"]), name)
        assert read_fields(NCSNppConfig, SCORE_SDE[name]["network"], name) == wanted


def test_the_examples_of_the_docs_are_configurations():
    page = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    adm, score = map(json.loads, re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert read_fields(ADMCard, adm, "docs").classifier.num_classes == read_fields(ADMCard, adm, "docs").classes == 10
    published = SCORE_SDE["ve/cifar10_ncsnpp_continuous"]
    assert read_fields(ScoreSDECard, score, "docs") == read_fields(ScoreSDECard, published, "published")
