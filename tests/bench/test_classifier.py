import json
import re

import pytest
import torch

pytest.importorskip("safetensors", reason="needs the extra bench")
from fewstep.bench.classifier import FOLDER, Classifier, load_classifier


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


def images(count=6):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_packaged_classifier_is_whole_and_ready(classifier):
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    widths = json.loads((FOLDER / "config.json").read_text())["widths"]
    assert classifier.features(images()).shape == (6, widths[-1])
    assert torch.equal(classifier(images()), classifier.head(classifier.features(images())))


def test_its_card_says_how_many_parameters_and_how_right(classifier):
    card = (FOLDER / "README.md").read_text()
    count = int(re.search(r"([\d,]+) parameters", card)[1].replace(",", ""))
    assert count == sum(p.numel() for p in classifier.parameters())
    assert re.search(r"Accuracy on 5,000 training images held out: \d\d\.\d%", card)


def test_features_do_not_depend_on_the_batch(classifier):
    """But for rounding: sums of up to 9 * 256 numbers of size 1 in float32, in another order."""
    alone = torch.cat([classifier.features(image[None]) for image in images()])
    torch.testing.assert_close(classifier.features(images()), alone, rtol=0, atol=9 * 256 * 2**-24)


def test_a_stage_halves_the_side_and_adds_its_second_convolution():
    torch.manual_seed(0)
    small = Classifier((4, 8), 3).eval()
    x = torch.nn.functional.max_pool2d(small.stem(images(2)), 2)
    y = small.wider[0](x)
    assert torch.equal(small.features(images(2)), (y + small.deeper[0](y)).mean((2, 3)))


def test_a_folder_that_holds_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classifier in .*: make one with training/train_classifier.py"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "another width"])
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    if damage == "cut off":
        (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes()[:-100])
    else:
        (tmp_path / "config.json").write_text(json.dumps({"widths": [32, 64], "classes": 10}))
    with pytest.raises(ValueError, match="does not hold a whole classifier") as caught:
        load_classifier(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
