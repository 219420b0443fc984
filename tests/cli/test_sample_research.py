"""`fewstep sample` and its kin on networks of EDM, ADM and ScoreSDE, from the authors' files on."""

import json

import numpy as np
import pytest
import torch

import fewstep as fs
import research_files as files
from adapters.research.test_models import edm_folder
from cli.commands import DONE, FAILED, USAGE, assert_refused, content, record, run, stored
from fewstep.adapters import load_model
from fewstep.bench.subjects import load_subject

NFE = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Made by the command line, but EDM's, whose pickle tests/adapters/research reads."""
    base = tmp_path_factory.mktemp("networks")
    edm_folder(base / "edm", files.SONG | {"label_dropout": 0.1})
    edm_folder(base / "edm-plain", files.SONG)
    for name, changes in (("adm", {}), ("adm-uncond", {"num_classes": 0})):
        (base / f"{name}-files").mkdir()
        network, classifier, config = files.adm_files(base / f"{name}-files", **changes)
        command = ("convert", "adm", network, base / name, "--config", config, "--classifier", classifier)
        assert run(*command).exit_code == DONE
    for name, arguments, sde in (("vp", files.VP, "vpsde"), ("ve", files.VE, "vesde")):
        (base / f"{name}-files").mkdir()
        checkpoint, config = files.score_sde_files(base / f"{name}-files", arguments, sde)
        assert run("convert", "score-sde", checkpoint, base / name, "--config", config).exit_code == DONE
    return base


def latents(folder):
    return torch.from_numpy(np.stack([np.load(path)["latents"] for path in sorted(folder.glob("[0-9]*.npz"))]))


PAIR = "each one evaluation of the network, of a batched pair: with the condition and without"
RUNS = {
    "edm": ("edm", (), [0, 1], 1.0, "each 1 evaluation of the network", "SongUNet of EDM, 3 classes"),
    "edm, guided": ("edm", ("--label", 2, "--guidance", 3), 2, 3.0, PAIR, "SongUNet of EDM, 3 classes"),
    "edm, no class": ("edm", ("--label", "none"), None, 1.0, "each 1 evaluation of the network", "SongUNet of EDM"),
    "adm": (
        "adm", ("--label", 1, "--guidance", 2), 1, 2.0,
        "each 1 evaluation of the network and 1 gradient of the classifier",
        "U-Net of guided diffusion (ADM), with its classifier, 3 classes",
    ),
    "adm, not guided": ("adm", ("--guidance", 0), [0, 1], 0.0, "of the network; at most", "with its classifier"),
    "adm, by its classifier": ("adm-uncond", ("--guidance", 1.5), [0, 1], 1.5, "1 gradient of the", "U-Net of guided"),
    "vp": ("vp", (), None, 1.0, "each 1 evaluation of the network", "network of ScoreSDE, VP"),
    "ve": ("ve", (), None, 1.0, "each 1 evaluation of the network", "network of ScoreSDE, VE"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_the_command_draws_what_the_denoiser_says(folders, tmp_path, kind):
    name, options, labels, guidance, counted, family = RUNS[kind]
    told = run(
        "sample", "--model", folders / name, "--nfe", NFE, "--n", 2, "--save", "both", "--out", tmp_path / "s", *options
    )
    assert told.exit_code == DONE, told.stderr
    model = load_model(folders / name, batch=1)
    denoiser = model if labels is None else model.conditioned(labels, guidance)
    expected = fs.sample(denoiser, fs.unit_noise([0, 1], model.shape), nfe=NFE, schedule=model.schedule)
    got = latents(tmp_path / "s")
    assert torch.equal(got, expected)
    assert (
        np.abs(stored(tmp_path / "s") / 127.5 - 1 - expected.clamp(-1, 1).permute(0, 2, 3, 1).numpy()).max() < 1 / 127
    )
    said = " ".join(told.stderr.split())
    assert f"{folders / name}: " in said
    assert family in said
    assert f"{NFE} calls an image, " in said
    assert counted in said
    assert said.endswith(" MB in all")


def test_a_run_grows_and_is_of_its_label(folders, tmp_path):
    out = tmp_path / "s"
    command = ("sample", "--model", folders / "edm", "--nfe", NFE, "--label", 1, "--save", "both", "--out", out)
    assert run(*command, "--n", 1).exit_code == DONE
    first = content(out)
    assert run(*command, "--n", 2, "--device", "auto").exit_code == DONE
    assert record(out)["found"] == 1
    assert record(out)["network"] == {"calls": NFE, "evaluations": NFE, "rows": NFE, "gradients": 0}
    assert {name: content(out)[name] for name in ("000000.png", "000000.npz")} == {
        name: first[name] for name in ("000000.png", "000000.npz")
    }
    for other in (("--label", 2), ("--guidance", 2), ("--dtype", "bfloat16"), ("--model", folders / "edm-plain")):
        assert_refused(run(*command, *other), FAILED, "holds another run")


def test_wrong_usage_is_told_before_anything_is_drawn(folders, tmp_path):
    out = tmp_path / "s"
    for name, args, code, message in (
        ("edm", ("--label", 3), USAGE, "--label: '3' is not a class of this model; choose from 'none', 'all', 0, 1, 2"),
        ("edm-plain", ("--guidance", 2), FAILED, "never trained without labels, which guidance needs"),
        ("edm", ("--size", "8x8"), USAGE, "--size: 8x8 is for pipelines"),
        ("edm", ("--prompt", "a"), USAGE, "--prompt: is for models of text"),
        ("vp", ("--label", 0), USAGE, "'0' is not a class of this model; choose from 'none', it has no classes"),
        ("vp", ("--guidance", 2), USAGE, "--guidance: 2 needs a class"),
        ("adm-files/network.pt", (), FAILED, "network.pt is a file, and models are folders: `fewstep convert`"),
        ("adm-files", (), FAILED, "adm-files is not a model folder"),
    ):
        told = run("sample", "--model", folders / name, "--nfe", NFE, "--out", out, *args)
        assert_refused(told, code, message)
        assert not out.exists()


def test_other_commands_take_them_too(folders, tmp_path):
    subject = load_subject(str(folders / "adm"))
    x, model = torch.randn(2, *subject.shape), load_model(folders / "adm", batch=1)
    assert torch.equal(subject.denoiser(range(1, 3), 2.0)(x, 500.0), model.conditioned([1, 2], 2.0)(x, 500.0))
    told = run(
        "compare", "--model", folders / "vp", "--n", 1, "--solvers", "ddim,unipc-2", "--nfe", 3, "--json", "--out",
        tmp_path / "c.png",
    )  # fmt: skip
    assert told.exit_code == DONE, told.stderr
    assert [cell["calls"] for cell in json.loads(told.stdout)["cells"]] == [3, 3]
