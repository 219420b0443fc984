import dataclasses
import json
import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.statistics import describe, load_statistics

LAM = [-2.0, 0.0, 3.0]


def ems(**facts):
    generator = torch.Generator().manual_seed(0)
    return fs.EMS(LAM, *(torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in "lsb"), **facts)


MADE = {"EMS": ems, "Gamma": lambda **facts: fs.Gamma(LAM, [0.99, 0.7, 0.01], **facts)}
both = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def columns(statistics):
    return {f.name: getattr(statistics, f.name) for f in dataclasses.fields(statistics)}


def equal(one, other):
    pairs = zip(columns(one).values(), columns(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# Files


@both
def test_what_is_saved_is_loaded(make, tmp_path):
    for statistics in (make(), make(schedule=describe(fs.EDM()), fingerprint="abc")):
        statistics.save(tmp_path / "a.safetensors")
        assert equal(type(statistics).load(tmp_path / "a.safetensors"), statistics)
    loaded = type(statistics).load(tmp_path / "a.safetensors", schedule=fs.EDM(), fingerprint="abc")
    assert equal(loaded, statistics)


@both
def test_statistics_of_another_model_or_schedule_are_refused(make, tmp_path):
    path = tmp_path / "a.safetensors"
    make(schedule=describe(fs.EDM()), fingerprint="abc").save(path)
    cls = type(make())
    with pytest.raises(ValueError, match="was estimated from another model: abc, not xyz: estimate again"):
        cls.load(path, fingerprint="xyz")
    message = (
        r"from another schedule: EDM\(sigma_min=0.002, sigma_max=80.0\), not EDM\(sigma_min=0.01.*: estimate again"
    )
    with pytest.raises(ValueError, match=message):
        cls.load(path, schedule=fs.EDM(0.01, 80.0))
    make().save(path)
    with pytest.raises(ValueError, match="another model: None, not xyz"):
        cls.load(path, fingerprint="xyz")


def test_one_kind_is_not_loaded_as_the_other(tmp_path):
    path = tmp_path / "a.safetensors"
    ems().save(path)
    with pytest.raises(ValueError, match="does not hold Gamma statistics, but EMS"):
        fs.Gamma.load(path)


def test_a_file_of_either_kind_is_recognised(tmp_path):
    for each in (make() for make in MADE.values()):
        path = tmp_path / "a.safetensors"
        each.save(path)
        assert type(load_statistics(path)) is type(each)


def rewrite(path, tensors=None, **metadata):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        old, kept = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(kept if tensors is None else tensors, path, {**old, **metadata})


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a whole safetensors file"),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 400), "is not a whole safetensors file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(ems())), "is not a whole safetensors file"),
    "not ours": (lambda path: rewrite(path, {"x": torch.ones(2)}, format="pt"), "EMS or Gamma statistics, but pt"),
    "a column missing": (lambda path: rewrite(path, {"lam": torch.ones(2)}), "does not hold EMS or Gamma statistics"),
    "of the future": (lambda path: rewrite(path, version="2"), "is of version 2, this fewstep reads 1"),
    "with NaN": (
        lambda path: rewrite(path, {**{c: torch.full((2,), math.nan) for c in "lsb"}, "lam": torch.arange(2.0)}),
        "l must be finite",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    ems().save(path)
    damage, message = DAMAGES[kind]
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        fs.EMS.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*a.safetensors: make it with fewstep.estimate"):
        fs.EMS.load(tmp_path / "a.safetensors")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    ems().save(path)
    old = path.read_bytes()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ems(fingerprint="new").save(path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {path.name: old}


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for act in (lambda: ems().save(tmp_path / "a"), lambda: fs.EMS.load(tmp_path / "a")):
        with pytest.raises(ImportError, match=r"need safetensors: pip install 'fewstep\[cli\]'"):
            act()


def test_a_file_is_tensors_and_text(tmp_path):
    """The header is JSON, the rest the bytes of float64 numbers: there is nothing to execute."""
    path = tmp_path / "a.safetensors"
    MADE["Gamma"](fingerprint="abc").save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "fewstep Gamma", "version": "1", "fingerprint": "abc"}
    assert {name: part["dtype"] for name, part in header.items()} == {"lam": "F64", "gamma": "F64"}
    assert len(content) == 8 + length + 2 * 3 * 8


# Tables


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.EMS([0.0], [1.0], [0.0], [0.0]), "lam must be at least 2 rising numbers"),
        (lambda: fs.EMS([1.0, 0.0], *[[1.0, 1.0]] * 3), "lam must be at least 2 rising numbers"),
        (
            lambda: fs.EMS([0.0, 1.0], *[[1.0, 1.0, 1.0]] * 3),
            r"l have one entry for each; got lam of shape \(2,\), l of",
        ),
        (lambda: fs.EMS([0.0, 1.0], [1.0, 1.0], [1.0], [1.0, 1.0]), r"s must be of the shape of l, \(2,\); got \(1,\)"),
        (lambda: fs.EMS([0.0, 1.0], [1.0, math.nan], *[[1.0, 1.0]] * 2), "l must be finite"),
        (lambda: fs.Gamma([0.0, 1.0], torch.ones(2, 3)), r"gamma must be one number a point; got shape \(2, 3\)"),
    ],
)
def test_tables_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_is_a_copy_in_float64_on_the_cpu_and_says_what_it_is():
    statistics = fs.EMS(np.array([0, 1], np.float32), *(torch.ones(2, 3, 4, requires_grad=True) for _ in "lsb"))
    assert {getattr(statistics, name).dtype for name in ("lam", *"lsb")} == {torch.float64}
    assert not statistics.l.requires_grad
    assert repr(statistics) == "EMS(2 points, lam 0 to 1, shape (3, 4))"
    assert statistics.lam_range == (0.0, 1.0)


def test_statistics_are_refused_on_another_schedule_until_they_name_none():
    statistics = dataclasses.replace(fs.EMS.constant(), schedule=describe(fs.VPLinear()))
    nodes = fs.log_snr(fs.EDM(), 3)
    with pytest.raises(
        ValueError, match=r"are of VPLinear\(.*the run is on EDM\(.*replace\(statistics, schedule=None\)"
    ):
        fs.DPMSolverV3(statistics).plan(fs.EDM(), nodes)
    fs.DPMSolverV3(dataclasses.replace(statistics, schedule=None)).plan(fs.EDM(), nodes)
    fs.DPMSolverV3(dataclasses.replace(statistics, schedule=describe(fs.EDM()))).plan(fs.EDM(), nodes)


def test_schedules_are_told_apart():
    tables = [[0.9, 0.5, 0.1], [0.9, 0.5, 0.2]]
    schedules = [fs.EDM(), fs.EDM(0.01), fs.VPLinear(), fs.Flow(), fs.Flow(3.0), *map(fs.Discrete, tables)]
    assert len({describe(schedule) for schedule in schedules}) == len(schedules)
    assert describe(fs.Discrete(tables[0])) == describe(fs.Discrete(tables[0]))

    class Mine(fs.Flow.__bases__[0]):
        t_max, t_min, node, time_at = 1.0, 0.0, None, None

    assert describe(Mine()) == describe(Mine())


def test_gamma_of_a_gaussian_gives_its_posterior_variance():
    """v e^-2lam / (v + e^-2lam): exact at points, bent by less than v over cells of 0.1 between them."""
    gamma, v = fs.Gamma.gaussian(0.25), 0.25
    for lam in (-7.0, -1.0, 0.0, 2.5, 7.0, 0.05, 1.13):
        noise = math.exp(-2 * lam)
        at_point = abs(lam * 10 - round(lam * 10)) < 1e-9
        assert gamma.posterior_variance(lam) == pytest.approx(
            v * noise / (v + noise), abs=1e-9 if at_point else v * 0.1**2 / 8
        )


def test_beyond_the_noisy_end_the_variance_is_that_of_the_end():
    gamma = fs.Gamma([-3.0, 0.0], [0.999, 0.5])
    assert gamma.posterior_variance(-math.inf) == gamma.posterior_variance(-3.0)
    assert gamma.posterior_variance(-3.0) == pytest.approx(0.001 * math.exp(6))


# Fingerprints


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_a_fingerprint_is_of_the_weights_and_the_facts():
    assert fs.fingerprint(network(), guidance=2.0) == fs.fingerprint(network(), guidance=2.0)
    assert len(fs.fingerprint(network())) == 64

    def nudged():
        changed = network()
        weight = changed[0].weight.data
        weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
        return changed

    def running():
        changed = network()
        changed[1].running_mean[0] += 1
        return changed

    others = [network(1), nudged(), running(), network().double(), torch.nn.Sequential(*network(), torch.nn.ReLU())]
    seen = {fs.fingerprint(each) for each in (network(), *others[:4])}
    assert len(seen) == 5
    assert fs.fingerprint(network()) != fs.fingerprint(network(), guidance=2.0)
    assert fs.fingerprint(network(), guidance=1.0) != fs.fingerprint(network(), guidance=2.0)
    assert fs.fingerprint(network(), a=1, b=2) == fs.fingerprint(network(), b=2, a=1)


def test_a_fingerprint_sees_values_not_layouts():
    plain, turned = network(), network()
    turned[0].weight.data = turned[0].weight.data.T.contiguous().T
    assert not turned[0].weight.is_contiguous()
    assert fs.fingerprint(plain) == fs.fingerprint(turned)
