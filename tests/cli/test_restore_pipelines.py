"""`fewstep restore` on pipelines of diffusers: through their decoders."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="needs the extra pipelines")

import fewstep as fs
from cli.commands import DONE, FAILED, assert_refused, run
from fewstep import restore as library
from fewstep.adapters import load_model
from fewstep.pictures import pixels, read
from tiny_pipelines import save_pipeline

SEEDS = [3, 4]


@pytest.mark.parametrize(("name", "more"), [("sd1", ["--prompt", "a cat", "--guidance", 2]), ("dit", ["--label", "1"])])
def test_what_is_measured_is_what_the_model_decodes(tmp_path, name, more):
    folder, photo = save_pipeline(name, tmp_path / name), tmp_path / "photo.png"
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(image).save(photo)
    told = run(
        "restore", "--model", folder, "--task", "superres", "--factor", 2, "--image", photo, "--method", "proximal",
        "--n", 2, "--nfe", 3, "--seed", 3, "--out", tmp_path / "restored", *more,
    )  # fmt: skip
    assert told.exit_code == DONE, told.stderr
    model = load_model(folder, batch=1)
    denoiser = model.prompted("a cat", 2.0) if name == "sd1" else model.conditioned(1)
    operator = library.superresolution(2, (3, 8, 8))
    restoring = library.posterior(
        denoiser, lambda x: operator.A(model.decode(x)), torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1,
        noise=0.05, method="proximal", schedule=model.schedule,
    )  # fmt: skip
    x = fs.sample(restoring, x=fs.unit_noise(SEEDS, model.shape), nfe=3, schedule=model.schedule, grid=model.grid)
    got = np.stack([read(tmp_path / "restored" / f"photo-{seed}.png") for seed in SEEDS])
    assert np.abs(got.astype(int) - pixels(model.decode(x))).max() <= 1


def test_a_decoder_without_derivatives_is_told(tmp_path):
    folder, photo = save_pipeline("ldm", tmp_path / "ldm"), tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    told = run("restore", "--model", folder, "--task", "deblur", "--image", photo, "--out", tmp_path / "restored")
    assert_refused(told, FAILED, "decodes by what has no derivatives, which restoring needs")
    for more, named in ((["red-diff"], "--method red-diff"), (["proximal", "--spectrum", photo], "--spectrum")):
        args = ["restore", "--model", folder, "--task", "deblur", "--image", photo, "--method", *more]
        assert_refused(run(*args), FAILED, f"{named} is for models of images, and")
