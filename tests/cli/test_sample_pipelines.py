"""`fewstep sample` and its kin on pipelines of diffusers."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra pipelines")

import fewstep as fs
from cli.commands import DONE, FAILED, USAGE, assert_refused, content, names, record, run, stored
from fewstep.adapters import load_model
from fewstep.bench.measure import read_rows
from fewstep.bench.subjects import load_subject
from tiny_pipelines import NFE, SIZES, TEXT, reference, save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    kept = {}

    def saved(name):
        if name not in kept:
            kept[name] = save_pipeline(name, tmp_path_factory.mktemp("pipelines") / name)
        return kept[name]

    return saved


@pytest.fixture
def sample(folder, tmp_path):
    def call(name, *args, out=tmp_path / "samples"):
        size = ("--size", "{1}x{0}".format(*SIZES[name])) if name in SIZES else ()
        return run("sample", "--model", folder(name), "--nfe", NFE, "--out", out, *size, *args)

    return call


def latents(folder):
    return torch.from_numpy(np.stack([np.load(path)["latents"] for path in sorted(folder.glob("[0-9]*.npz"))]))


@pytest.mark.parametrize("guidance", [1, 4])
@pytest.mark.parametrize("name", TEXT)
def test_the_command_draws_what_the_pipeline_draws(sample, folder, tmp_path, name, guidance):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n  two\n", encoding="utf-8")
    told = sample(name, "--prompts", prompts, "--guidance", guidance, "--save", "both" if guidance > 1 else "latents")
    assert told.exit_code == DONE, told.stderr
    got = latents(tmp_path / "samples")
    noise = fs.unit_noise([0, 1], got.shape[1:])
    expected = reference(folder(name), name, float(guidance), latents=noise, output_type="latent")
    # The pipeline's batches are others, and guidance enlarges how these round, in each of four steps.
    tolerance = 1e-5 if guidance == 1 else 3e-4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    counted = "1 evaluation of the network"
    if guidance > 1:
        shown = reference(folder(name), name, float(guidance), latents=noise)
        assert_shown(tmp_path / "samples", shown)
        counted = "2 evaluations" if name == "flux" else "one evaluation of the network, of a batched pair"
    assert f"4 calls an image, each {counted}" in " ".join(told.stderr.split())


def assert_shown(folder, images):
    # Half a level of a pixel for rounding, and what of 3e-4 falls on its edge.
    assert np.abs(stored(folder) / 255 - images.numpy()).max() <= 0.5 / 255 + 3e-4


@pytest.mark.parametrize(
    ("name", "guidance", "options"),
    [("dit", 1, ("--label", 7)), ("dit", 4, ("--label", 7)), ("ldm", 1, ()), ("ddpm", 1, ())],
)
def test_the_command_draws_what_a_pipeline_without_text_draws(sample, folder, tmp_path, name, guidance, options):
    assert sample(name, "--n", 2, "--guidance", guidance, "--device", "auto", *options).exit_code == DONE
    assert_shown(tmp_path / "samples", reference(folder(name), name, float(guidance), labels=[7, 7]))


def test_it_says_what_it_recognised_and_what_it_took(sample, folder):
    said = " ".join(sample("sd1", "--prompt", "a cat").stderr.split())
    assert f"{folder('sd1')}: StableDiffusionPipeline of diffusers, epsilon" in said
    assert "1 image in " in said
    assert "4 calls an image, each 1 evaluation of the network; at most " in said
    assert said.endswith(" MB in all")


def test_an_image_depends_on_its_seed_and_prompt_alone(sample, tmp_path):
    sample("sd1", "--prompt", "a cat", "--n", 3, "--guidance", 2, "--seed", 5)
    sample("sd1", "--prompt", "a cat", "--seed", 7, "--guidance", 2, out=tmp_path / "third")
    assert np.array_equal(stored(tmp_path / "samples")[2], stored(tmp_path / "third")[0])


def test_a_run_grows_and_is_of_its_prompts(sample, tmp_path):
    sample("sd1", "--prompt", "a cat", "--save", "both")
    first = content(tmp_path / "samples")
    assert sample("sd1", "--prompt", "a cat", "--save", "both", "--n", 2).exit_code == DONE
    assert record(tmp_path / "samples")["found"] == 1
    assert content(tmp_path / "samples")["000000.npz"] == first["000000.npz"]
    assert record(tmp_path / "samples")["settings"]["prompts"]["first"] == "a cat"
    for other in (
        ("--prompt", "a dog"),
        ("--prompt", "a cat", "--negative", "x", "--guidance", 2),
        ("--dtype", "float16"),
    ):
        given = other if "--prompt" in other else ("--prompt", "a cat", *other)
        assert_refused(sample("sd1", *given, "--save", "both"), FAILED, "holds another run")


@pytest.mark.parametrize("npz", [False, True])
def test_latents_alone(sample, tmp_path, npz):
    result = sample("sd1", "--prompt", "a cat", "--n", 2, "--save", "latents", *["--npz"] * npz)
    assert result.exit_code == DONE
    made = ["samples.npz"] if npz else ["000000.npz", "000001.npz"]
    assert names(tmp_path / "samples") == sorted([*made, "SHA256SUMS", "run.json"])
    if npz:
        with np.load(tmp_path / "samples" / "samples.npz") as file:
            assert file["latents"].shape == (2, 4, 8, 8)
    assert sample("sd1", "--prompt", "a cat", "--n", 2, "--save", "latents", *["--npz"] * npz).exit_code == DONE


@pytest.mark.parametrize("solver", ["heun", "evodiff-published"])
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_other_solvers_and_grids(sample, name, solver):
    grid = ("--grid", "focused") if solver == "heun" else ()
    told = sample(name, "--prompt", "a cat", "--solver", solver, *grid)
    assert told.exit_code == DONE, told.stderr


def test_wrong_usage_names_the_option(sample, folder, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    for args, code, message in (
        ((), USAGE, "--prompt: is missing"),
        (("--prompt", "a", "--prompts", tmp_path / "none.txt"), USAGE, "exclude each other"),
        (("--prompts", tmp_path / "none.txt"), USAGE, "holds no prompts"),
        (("--prompts", tmp_path / "missing.txt"), USAGE, "cannot be read as text"),
        (("--prompt", "a", "--label", "3"), USAGE, "--label: '3' is for models of classes"),
        (("--prompt", "a", "--negative", "b"), FAILED, "has no effect, as guidance 1 is none"),
        (("--prompt", "a", "--guidance", "0"), FAILED, "guidance must be 1, which is none"),
        (("--prompt", "a", "--size", "8"), USAGE, "--size: '8' must be width and height"),
        (("--prompt", "a", "--dtype", "int8"), USAGE, "--dtype: 'int8' is not known"),
        (("--prompt", "a", "--save", "all"), USAGE, "--save: 'all' is not known"),
    ):
        assert_refused(sample("sd1", *args), code, message)
    assert_refused(sample("ddpm", "--prompt", "a"), USAGE, "--prompt: is for models of text")
    assert_refused(run("sample", "--size", "8x8", "--out", tmp_path / "s"), USAGE, "--size: 8x8 is for pipelines")
    data = ("--data", "x.npz", "--out", tmp_path / "e")
    assert_refused(run("estimate", "gamma", "--model", folder("sd1"), *data), USAGE, "is a pipeline")
    assert not (tmp_path / "samples").exists()


def test_other_commands_take_prompts_too(folder, tmp_path):
    out = ("--out", tmp_path / "c.png", "--json")
    prompt = ("--model", folder("sd1"), "--prompt", "a cat")
    told = run("compare", *prompt, "--n", 1, "--solvers", "ddim,unipc-2", "--nfe", 3, *out)
    assert told.exit_code == DONE, told.stderr
    assert [cell["calls"] for cell in json.loads(told.stdout)["cells"]] == [3, 3]
    assert_refused(run("compare", "--model", folder("sd1"), "--out", tmp_path / "d.png"), USAGE, "--prompt: is missing")
    plan = tmp_path / "plan.json"
    tuned = run("tune", *prompt, "--nfe", 2, "--n", 4, "--most", 20, "--out", plan)
    assert tuned.exit_code == DONE, tuned.stderr
    args = (*prompt, "--solver", "tuned", "--plan", plan, "--nfe", 2, "--out", tmp_path / "s")
    assert run("sample", *args).exit_code == DONE


def test_a_bench_takes_what_a_function_returns(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"draws what a text says: give prompts, a file with one a line"):
        load_subject(str(folder("sd1")))
    with pytest.raises(ValueError, match="knows no prompts: leave them out"):
        load_subject(str(folder("dit")), prompts=("a cat",))
    denoiser = load_model(folder("sd1")).prompted("a cat", 2.0)
    monkeypatch.setattr("tiny_pipelines.subject", lambda: denoiser, raising=False)
    subject = load_subject("tiny_pipelines:subject")
    assert (subject.shape, subject.fingerprint) == ((4, 8, 8), denoiser.fingerprint)
    assert subject.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 8, 8)
    assert load_subject(str(folder("dit"))).conditioning == "classes"


def test_a_bench_draws_what_sample_draws_of_the_same_prompts(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\ntwo\n")
    common = ("--model", folder("sd1"), "--prompts", tmp_path / "prompts.txt", "--guidance", 2, "--nfe", NFE, "--n", 3)
    assert run("sample", *common, "--npz", "--out", tmp_path / "s").exit_code == DONE
    how = ("--solvers", "evodiff", "--batch", 3, "--converged", 8, "--metrics", "rmse", "--out", tmp_path / "b")
    done = run("bench", "run", *common, *how)
    assert done.exit_code == DONE, done.stderr
    converged, row = read_rows(tmp_path / "b")
    assert converged["calls"] == 8
    assert row["drawn under"]["prompts"].startswith("prompts ")
    assert "diffusers" in row["drawn under"]["versions"]
    (drawn,) = (tmp_path / "b").rglob(f"*evodiff*{NFE}*/*/*.npz")
    assert np.array_equal(np.load(drawn)["images"], np.load(tmp_path / "s" / "samples.npz")["images"])
