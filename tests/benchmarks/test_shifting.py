"""What docs/shifting.md is measured with."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra diffusers")

import fewstep as fs
from benchmarks.restore.shifting import RUNS, SHAPE, Network, Run, chains, measured, on_gaussians, page, restored, share
from gaussians import normal

PAGE = Path(__file__).parents[2] / "docs" / "shifting.md"


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = Network.new()
    made.network.eval().requires_grad_(False)
    return made


def test_one_network_answers_for_both_chains_alike(network):
    """Of one residual with one noise, written as either paper has it, at the same sigma / alpha."""
    centre, x0, noise = (normal((2, *SHAPE), seed=k).float() for k in range(3))
    answers = []
    for schedule in chains().values():
        _, alpha, sigma = node = schedule.node(schedule.time_at(0.3))
        x = alpha * x0 + share(schedule) * (1 - alpha) * centre + sigma * noise
        answers.append(network.denoiser(centre, schedule)(x, node.time))
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    assert (answers[0] - centre).abs().max() > 0.1


def test_the_network_is_told_the_measurement(network):
    x, centre = (normal((1, *SHAPE), seed=k).float() for k in range(2))
    one, other = (network.residual(c)(x, 0.2) for c in (centre, centre + 1))
    assert (one - other).abs().max() > 1e-3


def test_the_measurement_of_a_grey_image_is_its_grey_with_noise_of_its_size():
    y = measured(torch.full((50, *SHAPE), 0.3), torch.Generator().manual_seed(0))
    assert float(y.mean()) == pytest.approx(0.3, abs=5 * 0.05 / y.numel() ** 0.5)
    assert float(y.std()) == pytest.approx(0.05, rel=5 / (2 * y.numel()) ** 0.5)


@pytest.mark.parametrize("chain", chains())
def test_a_known_image_comes_back(chain):
    """Whatever the centre, if the denoiser knows x_0."""
    x0, centre = (normal((2, *SHAPE), seed=k) for k in range(2))
    run = Run(chain, "", fs.EVODiff(), 4)
    torch.testing.assert_close(
        restored(run, lambda x, t: x0, centre, chains()[chain], range(2)), x0, rtol=0, atol=1e-12
    )


def test_on_gaussians_evodiff_is_nearer_to_the_law_than_their_own_chain():
    rows = {(chain, name): [float(each) for each in row] for chain, name, *row in on_gaussians()}
    for chain in chains():
        for own, ours in zip(rows[chain, "its own chain"], rows[chain, "EVODiff"], strict=True):
            assert abs(ours - 1) < abs(own - 1)
        # 16,000 numbers know their variance to 1.1 %.
        assert rows[chain, "EVODiff"][-1] == pytest.approx(1, abs=0.05)


def test_the_page_is_what_the_command_writes_of_its_rows():
    text = PAGE.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == (2 + 2 + len(RUNS)) + (2 + 6)
    images, gaussians = rows[2 : 4 + len(RUNS)], rows[-6:]
    assert page(images, gaussians) == text
    assert gaussians == on_gaussians()


def test_the_pages_code_runs():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    y, x0 = (normal((2, *SHAPE), seed=k).float() for k in range(2))
    names = {"y": y, "denoiser": lambda x, t: x0, "alphas_cumprod": [0.9, 0.5]}
    exec(block, names)
    torch.testing.assert_close(names["images"], x0, rtol=0, atol=1e-5)
