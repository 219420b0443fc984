"""CLIP's score and LAION's aesthetic score, with tiny untrained stand-ins for CLIP and for what is fitted to it."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs the extra pipelines")

import transformers as tf

from cli.commands import DONE, run
from fewstep.bench.measure import Judge, read_rows
from fewstep.bench.plan import Plan
from fewstep.bench.text import Aesthetic, Clip, ClipScore
from tiny_pipelines import clip_tokenizer, save_clip

WIDTH = 6  # of the embeddings
PROMPTS = ("a cat", "two", "a house that is far too long a text for it")
IMAGES = torch.randint(256, (5, 3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny", WIDTH)


@pytest.fixture(scope="module")
def clip(folder):
    return Clip(str(folder))


def head(path, first=WIDTH):
    """Of LAION's shape, on fewer numbers."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(first, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Dropout(0.1), nn.Linear(4, 1))
    torch.save(nn.ModuleDict({"layers": layers}).state_dict(), path)
    return layers.eval()


def cosines(folder):
    """By the network's own comparison of images and texts."""
    network = tf.CLIPModel.from_pretrained(folder).eval()
    sees = tf.CLIPImageProcessorPil.from_pretrained(folder)
    pictures = [np.asarray(image.permute(1, 2, 0)) for image in IMAGES]
    read = clip_tokenizer()(list(PROMPTS), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = network(**read, pixel_values=sees(pictures, return_tensors="pt")["pixel_values"])
    return found.logits_per_image / network.logit_scale.exp(), found.image_embeds


def test_the_clip_score_is_that_of_the_network(folder, clip):
    got = torch.stack([ClipScore(clip, PROMPTS)(IMAGES, range(first, first + 5)) for first in range(4, 7)])
    every, _ = cosines(folder)
    wanted = torch.stack([every[range(5), [(first + i) % 3 for i in range(5)]] for first in range(4, 7)])
    # A dozen layers in float32, of numbers of size 1, and padding that the attention leaves out.
    torch.testing.assert_close(got, 100 * wanted.clamp_min(0), rtol=0, atol=100 * 50 * 2**-24)
    assert (wanted < 0).any()
    assert (wanted > 0).any()


def test_an_image_has_the_same_score_in_any_batch(clip):
    score = ClipScore(clip, PROMPTS)
    whole = score(IMAGES, range(5))
    apart = torch.cat([score(IMAGES[i : i + 1], range(i, i + 1)) for i in range(5)])
    torch.testing.assert_close(apart, whole, rtol=0, atol=100 * 50 * 2**-24)


def test_the_aesthetic_score_is_what_its_layers_make_of_the_embedding(folder, clip, tmp_path):
    layers = head(tmp_path / "head.pth")
    got = Aesthetic(clip, str(tmp_path / "head.pth"))(IMAGES, range(5))
    _, embedded = cosines(folder)
    with torch.no_grad():
        torch.testing.assert_close(got.float(), layers(embedded)[:, 0], rtol=0, atol=50 * 2**-24)
    torch.save(nn.Linear(WIDTH, 1).state_dict(), tmp_path / "one.pth")  # the earlier predictor
    one = torch.load(tmp_path / "one.pth", weights_only=True)
    got = Aesthetic(clip, str(tmp_path / "one.pth"))(IMAGES, range(5)).float()
    torch.testing.assert_close(got, embedded @ one["weight"][0] + one["bias"], rtol=0, atol=50 * 2**-24)


def test_two_scores_see_the_images_once(clip, tmp_path, monkeypatch):
    head(tmp_path / "head.pth")
    seen = []
    see = clip._network.get_image_features
    monkeypatch.setattr(clip._network, "get_image_features", lambda **given: seen.append(1) or see(**given))
    images = IMAGES.clone()
    for score in (ClipScore(clip, PROMPTS), Aesthetic(clip, str(tmp_path / "head.pth"))):
        score(images, range(5))
    assert seen == [1]


def test_what_is_missing_or_wrong_is_told(folder, clip, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no CLIP: download openai/clip-vit-large-patch14 from the Hugging"):
        Clip("")
    with pytest.raises(FileNotFoundError, match=r"no file of LAION's aesthetic score: get sac\+logos\+ava1-l14"):
        Aesthetic(clip, "")
    head(tmp_path / "wide.pth", first=WIDTH + 1)
    with pytest.raises(ValueError, match=r"wide\.pth is no linear function of tiny's embeddings"):
        Aesthetic(clip, str(tmp_path / "wide.pth"))
    torch.save(nn.Linear(WIDTH, 2).state_dict(), tmp_path / "two.pth")
    with pytest.raises(ValueError, match="it has 2 outputs"):
        Aesthetic(clip, str(tmp_path / "two.pth"))
    torch.save({"scale": torch.ones(3)}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"none\.pth is no linear function"):
        Aesthetic(clip, str(tmp_path / "none.pth"))
    for bad, number in (("bias", torch.nan), ("weight", torch.inf)):
        broken = nn.Linear(WIDTH, 1).state_dict()
        broken[bad].flatten()[0] = number
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(ValueError, match=r"broken\.pth holds NaN or inf: copy it again"):
            Aesthetic(clip, str(tmp_path / "broken.pth"))
    with pytest.raises(ValueError, match="clip is of images and their prompts: give prompts"):
        Plan.of({"metrics": ["clip"]})
    with pytest.raises(ValueError, match="a score cannot be called 'clip'"):
        Plan.of({"metrics": ["frechet"], "scores": {"clip": "fakes:brightness"}})
    with pytest.raises(ValueError, match="cannot be read as text"):
        Judge(Plan.of({"metrics": ["clip"], "clip": str(folder), "prompts": str(tmp_path / "away.txt")}), "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"CLIP needs transformers: pip install 'fewstep\[pipelines\]'"):
        Clip(str(folder))


def test_rows_have_the_mean_scores_and_what_they_are_of(folder, clip, tmp_path):
    head(tmp_path / "head.pth")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    result = run(
        "bench", "run", "--model", "fakes:gaussian", "--solvers", "ddim", "--nfe", "2", "--n", 7, "--batch", 4,
        "--converged", 0, "--metrics", "clip,aesthetic", "--clip", folder, "--aesthetic", tmp_path / "head.pth",
        "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "b",
    )  # fmt: skip
    assert result.exit_code == DONE, result.stderr
    (row,) = read_rows(tmp_path / "b")
    images = [np.load(path)["images"] for path in sorted((tmp_path / "b").rglob("*.npz"))]
    pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2)
    scores = {"clip": ClipScore(clip, PROMPTS), "aesthetic": Aesthetic(clip, str(tmp_path / "head.pth"))}
    for name, score in scores.items():
        assert row[name] == pytest.approx(score(pixels, range(7)).mean().item(), rel=1e-5, abs=1e-4)
        assert row["measured by"][f"{name} is"] == score.identity
    assert "3 prompts sha256:" in scores["clip"].identity
    assert run("bench", "report", tmp_path / "b", "--out", tmp_path / "page").exit_code == DONE
    told = (tmp_path / "page" / "results.md").read_text()
    assert "| solver | calls | CLIP score | aesthetic |" in told
    assert "Aesthetic: LAION's score, by head.pth sha256:" in told
