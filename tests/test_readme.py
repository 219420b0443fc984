"""The first page: short, and each of its snippets, names and numbers is what the code and the other pages have."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fewstep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES, MOST_LINES_OF_A_PARAGRAPH, MOST_LINES_OF_A_SNIPPET = 120, 5, 6
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
DIFFUSERS, PYTHON = (code for language, code in SNIPPETS if language == "python")

# What the rows of the table of figures are: a page, and where in it the numbers of the last two columns stand.
FIGURES = [
    ("stress.md", r"\| exact \| DDIM or 2M, the same nodes, all levels \| (?P<cells>\d+) \| (?P<mean>\S+) \| (?P<worst>\S+) \| (?P<above>\d+)%"),  # noqa: E501
    ("stress.md", r"\| exact \| the best of all peers at its best levels, own levels \| (?P<cells>\d+) \| (?P<mean>\S+) \| \S+ \| (?P<above>\d+)%"),  # noqa: E501
    ("stress.md", r"\| networks \| DDIM or 2M, the same nodes, all levels \| (?P<cells>\d+) \| (?P<mean>\S+) \| \S+ \| (?P<above>\d+)%"),  # noqa: E501
    ("quality.md", r"The nearest in at least half of the cells\. .*; trained model, no guidance: ipndm-4, (?P<mean>[\d.]+): (?P<won>\d+) of (?P<of>\d+);"),  # noqa: E501
    ("quality.md", r"The nearest in at least half of the cells\. .*; trained model, guided: unipc-2, (?P<mean>[\d.]+): (?P<won>\d+) of (?P<of>\d+)\."),  # noqa: E501
    ("quality.md", r"\| trained model, no guidance \| (?P<mean>\S+) .* (?P<won>\d+) of (?P<of>\d+) \|"),
    ("quality.md", r"\| trained model, guided \| (?P<mean>\S+) .* (?P<won>\d+) of (?P<of>\d+) \|"),
    ("quality.md", r"\| trained model, to its own distribution \| (?P<mean>\S+) .* (?P<won>\d+) of (?P<of>\d+) \|"),
    ("comfyui.md", r"## Flux, shift 1.15, guidance 5\n[\s\S]*?on its best scheduler: (?P<few>[\d.]+) ± .* (?P<many>[\d.]+) ± [\d.]+; geometric mean (?P<mean>[\d.]+),"),  # noqa: E501
    ("tune.md", r"\| all \| (?P<cells>\d+) \| (?P<mean>\S+) \|"),
    ("tune.md", r"## The same, with more seeds\n[\s\S]*?\| all \| (?P<cells>\d+) \| \S+ \| \S+ \| (?P<mean>\S+) \| (?P<worst>\S+) \|"),  # noqa: E501
]  # fmt: skip
ROWS = re.findall(r"^\|.*\|.*\| ([*\d.]+) \| (.*) \|$", README, re.MULTILINE)


def paragraphs():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return [part for part in re.split(r"\n\s*\n", text) if not part.lstrip().startswith(("|", "#"))]


def test_it_is_short():
    assert len(README.splitlines()) <= MOST_LINES
    assert max(len(part.strip().splitlines()) for part in paragraphs()) <= MOST_LINES_OF_A_PARAGRAPH
    assert max(len(code.splitlines()) for _, code in SNIPPETS) <= MOST_LINES_OF_A_SNIPPET


def test_the_first_line_says_evodiff():
    assert "EVODiff" in README.splitlines()[0]


@pytest.mark.parametrize(("row", "source"), list(zip(ROWS, FIGURES, strict=True)), ids=[page for page, _ in FIGURES])
def test_its_numbers_are_those_of_the_pages(row, source):
    page, pattern = source
    found = re.search(pattern, (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert found, f"docs/{page} has no row like {pattern}"
    mean, cells = row
    assert mean.strip("*") == found["mean"]
    rest = [number for name, number in found.groupdict().items() if name != "mean"]
    assert sorted(re.findall(r"\d[\d.]*", cells)) == sorted(rest)


def test_what_is_better_is_bold_and_what_is_not_is_not():
    assert all((float(mean.strip("*")) < 1) == mean.startswith("**") for mean, _ in ROWS)


def test_the_example_for_diffusers_runs():
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")

    class Pipe:
        scheduler = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        asked = 0

        def __call__(self, prompt, num_inference_steps):
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.randn(1, 4, 8, 8) * self.scheduler.init_noise_sigma
            for t in self.scheduler.timesteps:
                self.asked += 1
                x = self.scheduler.step(torch.zeros_like(x), t, x).prev_sample
            return SimpleNamespace(images=[x])

    names = {"pipe": Pipe()}
    exec(DIFFUSERS, names)
    assert names["pipe"].asked == 10
    assert names["image"].isfinite().all()
    assert type(names["pipe"].scheduler).__name__ == "EVODiffScheduler"


def test_the_example_in_python_runs():
    pytest.importorskip("safetensors", reason="needs the extra cli")
    names: dict = {}
    exec(PYTHON, names)
    assert names["horses"].shape == (16, 3, 32, 32)
    assert names["horses"].abs().mean() < 1


def test_what_is_installed_and_run_is_there():
    (shell,) = (code for language, code in SNIPPETS if language == "sh")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"'\.\[(\w+)\]'", shell)
    assert wanted in extras
    for path in re.findall(r"--constraint (\S+)|python (\S+\.py)", shell):
        assert (ROOT / next(filter(None, path))).is_file()


def test_what_is_chosen_in_comfyui_is_in_its_dropdowns():
    (chosen,) = (code for language, code in SNIPPETS if language == "text")
    names = dict(re.findall(r"^(\w+): +(\w+)$", chosen, re.MULTILINE))
    page = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert f"| sampler `{names['sampler_name']}` |" in page
    assert f"| scheduler `{names['scheduler']}` |" in page


def test_a_script_beside_the_clone_finds_the_package(tmp_path):
    """`git clone` makes a folder `fewstep`; a script in the folder above imports that, not what was installed."""
    (tmp_path / "fewstep").symlink_to(ROOT)
    (tmp_path / "own.py").write_text("import fewstep.table\nprint(fewstep.__version__, fewstep.__file__)")
    said = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    version, file = said.split()
    assert version == fewstep.__version__
    assert Path(file) == tmp_path / "fewstep" / "src" / "fewstep" / "__init__.py"
