"""The README's code runs, and its pictures and pages exist."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_first_line_says_evodiff():
    assert "EVODiff" in README.splitlines()[0]


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/compare.png" in links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_short_example_runs():
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    names: dict = {}
    exec(BLOCKS[0], names)
    assert names["horses"].shape == (16, 3, 16, 16)
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 5


def test_the_example_with_a_network_of_your_own_runs():
    names = {
        "alphas_cumprod": [0.999 * 0.99**i for i in range(1000)],
        "network": lambda x, t, prompt: 0.1 * x + 0.01 * prompt,
        "prompt": 1.0,
        "empty": 0.0,
        "noise": torch.randn(2, 4, 8, 8),
    }
    exec(BLOCKS[1], names)
    assert names["latents"].shape == (2, 4, 8, 8)
    assert names["latents"].isfinite().all()
