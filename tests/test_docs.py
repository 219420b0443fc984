"""The code in docs/ runs. tests/test_readme.py has the README's, tests/test_site.py links and pictures."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs

ROOT = Path(__file__).parents[1]
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


PIPELINE, CONVENTION, SHORT, OWN, MIDDLE = python_blocks(START)


def test_the_first_lines_for_pipelines_are_those_of_the_readme():
    assert PIPELINE in python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_page_on_extending_writes_a_solver_of_twenty_lines_that_does_what_it_says(capsys):
    names: dict = {}
    solver, run, measure = python_blocks(EXTENDING)
    for block in (solver, run, measure):
        exec(block, names)
    assert names["images"].shape == (4, *names["problem"].shape)
    said = re.search(r"print\(.*# (\S+)", measure)
    assert capsys.readouterr().out.strip() == said[1]
    lines = [line for line in solver.split("@dataclass")[1].splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_short_example_runs():
    pytest.importorskip("safetensors", reason="needs the extra cli")
    names: dict = {}
    exec(SHORT, names)
    assert names["horses"].shape == (16, 3, 32, 32)
    exec(MIDDLE, names)
    assert names["varied"].shape == names["latent"].shape == (16, 3, 32, 32)
    # Twenty calls there and back, of different solvers.
    back = fs.integrate(names["model"], names["latent"], names["backwards"][::-1], schedule=names["model"].schedule)
    assert (back - names["horses"]).square().mean().sqrt() < 0.2


def test_the_example_in_k_diffusions_convention_runs():
    names = {"model": lambda x, sigma: x / (1 + 4 * sigma.view(-1, 1, 1, 1) ** 2), "noise": torch.randn(2, 4, 8, 8)}
    exec(CONVENTION, names)
    assert torch.allclose(names["x"], names["noise"] / 2, rtol=0.02)  # the model is N(0, 1/4)


def test_the_example_with_a_network_of_your_own_runs():
    names = {
        "alphas_cumprod": [0.999 * 0.99**i for i in range(1000)],
        "unet": lambda x, t, encoder_hidden_states: SimpleNamespace(
            sample=0.1 * x + 0.01 * encoder_hidden_states + 0 * t.reshape(2, 1, 1, 1)
        ),
        "prompt": 1.0,
        "empty": 0.0,
        "noise": torch.randn(2, 4, 8, 8),
    }
    exec(OWN, names)
    assert names["latents"].shape == (2, 4, 8, 8)
    assert names["latents"].isfinite().all()


def test_the_page_on_clocks_runs():
    """On a network of torchcfm's kind for N(0, 1/4): its time is 1 at the data, to which its velocity points."""
    use, snap, check = python_blocks((ROOT / "docs" / "clocks.md").read_text(encoding="utf-8"))

    def network(x, t):
        return x * (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2)

    clean = torch.randn(64, 64) / 2
    names = {"network": network, "noise": torch.randn(64, 64), "clean": clean}
    told: list = []
    for block in (use, snap):
        exec(block, names)
        # 4,096 numbers know their deviation to 1.1 %; eight calls are right to as much.
        assert names["samples"].std().item() == pytest.approx(0.5, rel=0.06)
    for data_at, right in ((1, True), (0, False)):
        names["denoiser"] = fs.as_denoiser(network, "flow_prediction", fs.Flow(), data_at=data_at)
        told.clear()
        exec(check, {**names, "print": told.append})
        assert (max(told) < 1) == right
