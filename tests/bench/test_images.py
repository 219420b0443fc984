import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.bench.images import load_images, resized, to_unit_range

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def test_arrays_come_back_channels_first(tmp_path):
    images, labels = load_images(saved(tmp_path, images=PIXELS, labels=[2, 0, 1]))
    assert torch.equal(images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert labels.tolist() == [2, 0, 1]


def test_labels_may_be_missing(tmp_path):
    assert load_images(saved(tmp_path, images=PIXELS))[1] is None


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def test_jpeg_files_are_decoded_one_by_one(tmp_path):
    files = [jpeg(image) for image in PIXELS]
    offsets = np.cumsum([0, *map(len, files)])
    images, _ = load_images(saved(tmp_path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets))
    for got, file in zip(images, files, strict=True):
        assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(file))))


FILE, LARGER = (np.frombuffer(jpeg(PIXELS[0].repeat(k, 0).repeat(k, 1)), np.uint8) for k in (1, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": PIXELS}, "holds neither `images` nor `jpeg`, but pictures"),
        ({"images": PIXELS.astype(np.float32)}, r"must hold uint8 images \(N, H, W, 3\); got float32"),
        ({"images": PIXELS[..., 0]}, r"must hold uint8 images \(N, H, W, 3\); got uint8 \(3, 4, 4\)"),
        ({"images": PIXELS, "labels": [1, 2]}, r"one label an image; got \(2,\) for 3 images"),
        ({"images": PIXELS, "labels": [1.0, 2.5, 0.0]}, "must hold integers as labels, .*; got float64"),
        ({"images": PIXELS, "labels": ["cat", "dog", "cat"]}, "must hold integers as labels, .*; got <U3"),
        ({"jpeg": FILE}, r"must hold `offsets` \(N \+ 1,\), where each file in `jpeg` begins; it has none"),
        ({"jpeg": FILE, "offsets": np.float64([0, len(FILE)])}, "`offsets` must be rising integers"),
        ({"jpeg": FILE, "offsets": [0]}, "`offsets` must be rising integers"),
        ({"jpeg": FILE, "offsets": [0, len(FILE) + 1]}, "within the .* bytes of `jpeg`"),
        ({"jpeg": FILE, "offsets": [0, len(FILE), 9]}, "`offsets` must be rising integers"),
        ({"jpeg": FILE, "offsets": [0, len(FILE) - 20]}, "image 0 of `jpeg` is not a whole image file: copy it anew"),
        ({"jpeg": FILE, "offsets": [0, 9, len(FILE)]}, "image 0 of `jpeg` is not a whole image file: copy it anew"),
        (
            {"jpeg": np.append(FILE, LARGER), "offsets": [0, len(FILE), len(FILE) + len(LARGER)]},
            r"image 1 of `jpeg` is \(8, 8, 3\), those before it \(4, 4, 3\)",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load_images(saved(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"no zip", "cut", "npy"])
def test_a_file_that_is_not_whole_is_told(tmp_path, content):
    path = saved(tmp_path, images=PIXELS)
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, PIXELS)
    else:
        path.write_bytes(path.read_bytes()[:-30] if content == "cut" else content)
    with pytest.raises(ValueError, match="is not a whole npz file of arrays: copy it anew, or remove it"):
        load_images(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.npz: give an npz file of images, or a name"):
        load_images(tmp_path / "none.npz")


def test_pixels_in_unit_range():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_resizing_takes_means():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resized(images, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(ValueError, match="4 x 4 pixels cannot be shrunk to 3 x 3"):
        resized(images, 3)


def test_a_data_set_of_more_than_8_bits_is_refused(monkeypatch):
    class Table(dict):
        features = {"img": type("Image", (), {})()}  # noqa: RUF012

    def of(image):
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: Table(img=[image])))
        return load_images("user/name")[0]

    grey = np.full((4, 4), 100, np.uint8)
    assert (of(Image.fromarray(grey)) == 100).all()
    with pytest.raises(ValueError, match="user/name: image 0 has more than 8 bits a colour"):
        of(Image.fromarray(grey.astype(np.uint16) * 256))
