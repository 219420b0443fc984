from itertools import product
from pathlib import Path

import pytest
import torch

import fewstep as fs
from benchmarks.restore.network import LONG, OURS, SAMPLES, draw, figures
from benchmarks.restore.peers import NOISE, PEERS, TASKS, physics
from fewstep import restore
from fewstep.restore.measurement import check_measurement

PAGE = Path(__file__).parents[2] / "docs" / "restore-images.md"
SHAPE = (3, 32, 32)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_figures_of_samples_of_the_law_that_the_truth_is_of():
    half = torch.arange(32) < 16
    operator = restore.inpainting(half.float(), SHAPE)
    drawn = 0.1 * noise(SAMPLES + 1, 16, *SHAPE)
    samples, truth = drawn[1:], drawn[0]
    y = operator.A(truth + NOISE * noise(16, *SHAPE, seed=1))
    got = figures(samples, truth, y, operator, lambda x: x.mean((2, 3)))
    # Their differences have variance 2 v, or (1 + 1 / SAMPLES) v, v = 0.1^2; tolerances are four standard errors.
    for found, variance in ((got.psnr, 0.02), (got.psnr_of_mean, (1 + 1 / SAMPLES) * 0.01)):
        expected = 10 * torch.log10(torch.tensor(4 / variance))
        assert abs(found.mean() - expected) < 4 * 10 / torch.tensor(10.0).log() * (2 / truth.numel()) ** 0.5
    assert abs(got.within.mean() - 0.9) < 4 * (0.9 * 0.1 / truth.numel()) ** 0.5
    assert abs(got.left.mean() / (1 + 0.02 / NOISE**2) - 1) < 4 * (2 / (truth.numel() / 2)) ** 0.5
    single = figures(truth[None], truth, y, operator, lambda x: x.mean((2, 3)))
    assert single.within.isnan().all()
    assert not single.distance.any()
    assert abs(single.left.mean() - 1) < 4 * (2 / (truth.numel() / 2)) ** 0.5


def test_calls_and_gradients_are_counted():
    class Model:
        schedule = fs.EDM()

        def __call__(self, x, t):
            return x / (1 + t * t)

    operator, model = restore.inpainting(torch.eye(32), SHAPE), Model()
    y = operator.A(noise(2, *SHAPE))
    for name, calls, gradients in (("pigdm, EVODiff, 10", 10, 10), ("RED-Diff, 25", 25, 0)):
        found = draw(model, lambda *given, name=name: OURS[name](*given, spectrum=None), operator, y, SAMPLES)
        assert found[1:3] == (calls, gradients)
        assert found.samples.shape == (SAMPLES, 2, *SHAPE)


def test_the_operators_of_deepinv_are_what_they_are_called():
    pytest.importorskip("deepinv", reason="a peer that is only measured against")
    x = noise(2, *SHAPE)
    torch.testing.assert_close(physics(TASKS[1], SHAPE).A(x), restore.superresolution(4, SHAPE).A(x))
    for task in TASKS:
        check_measurement(physics(task, SHAPE), physics(task, SHAPE).A(x), NOISE)  # that the adjoint is one


def test_the_page_has_all_rows():
    rows = [line.split(" | ")[:2] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for task, name in product(TASKS, (*OURS, *PEERS)):
        assert [f"| {task}", name] in rows or name == LONG
