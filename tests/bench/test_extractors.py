"""What sees images: the packaged classifier, files, functions, and torch-fidelity's networks."""

import numpy as np
import pytest
import torch

import fakes
from fewstep.bench.extractors import Extractor, load_extractor, load_reference
from fewstep.bench.metrics import Moments, Running, frechet_distance

IMAGES = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FAKE = Extractor("Fréchet distance in fakes", "fakes:features", fakes.features)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_running_moments_are_those_of_all_features():
    features = torch.randn(1000, 5, generator=torch.Generator().manual_seed(1)) + 1000
    running = Running()
    for part in features.split([1, 2, 400, 597]):
        running.add(part)
    expected = Moments.of(features)
    # Squares about a mean of 1000 in float64: 1000 roundings of numbers near 1, and of the mean.
    torch.testing.assert_close(running.moments().mean, expected.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(running.moments().covariance, expected.covariance, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="moments need 2 samples or more; got 0"):
        Running().moments()


def test_the_distance_of_streams_is_scipys():
    linalg = pytest.importorskip("scipy.linalg", reason="needs the extra bench")
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    sets = [torch.randn(500, 32, generator=generator, dtype=torch.float64) @ mix + shift for shift in (0, 0.3)]
    streams = []
    for features in sets:
        running = Running()
        for part in features.split(64):
            running.add(part)
        streams.append(running.moments())
    (mean_a, a), (mean_b, b) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in sets)
    root = linalg.sqrtm(a @ b).real
    expected = np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(*streams) == pytest.approx(expected, rel=1e-6)


def test_a_reference_is_of_images_features_or_moments(tmp_path):
    expected = Moments.of(fakes.features(IMAGES))
    pixels = IMAGES.permute(0, 2, 3, 1).numpy()
    features = fakes.features(IMAGES).numpy()
    moments = {"mu": expected.mean.numpy(), "sigma": expected.covariance.numpy()}
    for number, arrays in enumerate(({"images": pixels}, {"pool_3": features}, moments)):
        got = load_reference(saved(tmp_path / f"{number}.npz", **arrays), FAKE).moments
        torch.testing.assert_close(got.covariance, expected.covariance, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(got.mean, expected.mean, rtol=1e-12, atol=0)


def test_without_a_reference_the_classifier_has_its_own():
    reference = load_reference("", load_extractor("classifier"))
    assert reference.moments.mean.shape == (256,)
    assert torch.equal(reference.moments.covariance, reference.moments.covariance.T)
    with pytest.raises(ValueError, match="give a reference"):
        load_reference("", FAKE)


def test_what_is_no_reference_is_told(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match="is not a whole npz file"):
        load_reference(str(broken), FAKE)
    with pytest.raises(ValueError, match="is no reference"):
        load_reference(saved(tmp_path / "other.npz", x=np.zeros(3)), FAKE)
    with pytest.raises(ValueError, match=r"mu and sigma are of \(3,\) and \(2, 2\)"):
        load_reference(saved(tmp_path / "mu.npz", mu=np.zeros(3), sigma=np.eye(2)), FAKE)
    with pytest.raises(FileNotFoundError, match="no reference"):
        load_reference(str(tmp_path / "absent.npz"), FAKE)


def test_the_classifier_is_not_called_fid():
    classifier = load_extractor("classifier")
    assert "not FID" in classifier.title
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert classifier(images).shape == (3, 256)
    with pytest.raises(ValueError, match="sees 3 x 32 x 32 pixels"):
        classifier(IMAGES)


class Pooled(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1)


def test_torchscript(tmp_path):
    path = tmp_path / "pooled.torchscript"
    torch.jit.save(torch.jit.script(Pooled()), path)
    assert torch.equal(load_extractor(str(path))(IMAGES), fakes.features(IMAGES))
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a whole TorchScript file"):
        load_extractor(str(path))


def test_onnx(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    onnx = pytest.importorskip("onnx", reason="needs onnx, to make the file")
    helper, kind = onnx.helper, onnx.TensorProto
    pool = helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4])
    flat = helper.make_node("Flatten", ["pooled"], ["features"])
    graph = helper.make_graph(
        [pool, flat],
        "pooled",
        [helper.make_tensor_value_info("images", kind.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("features", kind.FLOAT, ["n", 12])],
    )
    path = tmp_path / "pooled.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    # Sums of 16 integers below 256 are exact in float32; one division remains.
    torch.testing.assert_close(load_extractor(str(path))(IMAGES), fakes.features(IMAGES) * 255, rtol=3e-7, atol=0)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a whole ONNX file"):
        load_extractor(str(path))


def test_a_function_is_an_extractor():
    assert torch.equal(load_extractor("fakes:features")(IMAGES), fakes.features(IMAGES))
    with pytest.raises(ValueError, match=r"must return features \(40, d\); got \(40, 3, 8, 8\)"):
        Extractor("", "fakes:same", lambda images: images)(IMAGES)
    with pytest.raises(ValueError, match="no extractor 'vgg'; choose from classifier, inception"):
        load_extractor("vgg")
    with pytest.raises(FileNotFoundError, match=r"no extractor away\.onnx"):
        load_extractor("away.onnx")


def test_inception_needs_its_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"get weights-inception-2015-12-05-6726825d\.pth of torch-fidelity's"):
        load_extractor("inception")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"others")
    with pytest.raises(ValueError, match=r"has SHA-256 .*has another: download it again"):
        load_extractor("inception", str(path))
