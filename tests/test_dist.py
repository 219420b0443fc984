"""The packages: two builds are the same, they hold what they should, and the wheel knows its commit."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fewstep

ROOT = Path(__file__).parents[1]
THEN = 1_700_000_000  # seconds since 1970, for SOURCE_DATE_EPOCH
MOST_BYTES = 18_000_000  # 15 MB of models, and the code

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling")


def build(out):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(out)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(THEN)}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


def test_two_builds_are_the_same_byte_for_byte(packages, tmp_path):
    for first, second in zip(packages, build(tmp_path), strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


def test_the_sdist_is_sorted_and_has_no_owners(packages):
    with tarfile.open(packages[0]) as archive:
        members = archive.getmembers()
    assert {(each.uid, each.gid, each.mtime) for each in members} == {(0, 0, THEN)}
    folder = f"fewstep-{fewstep.__version__}"
    names = {each.name for each in members}
    for path in ("README.md", "LICENSE", "Makefile", "mkdocs.yml", "hatch_build.py", "docs/figures/paths.svg",
                 "examples/pipeline.py", "tests/test_dist.py", "benchmarks/figures.py"):  # fmt: skip
        assert f"{folder}/{path}" in names


def test_the_wheel_has_the_library_its_models_and_licences_and_nothing_else(packages):
    with zipfile.ZipFile(packages[1]) as archive:
        names = set(archive.namelist())
    info = f"fewstep-{fewstep.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"fewstep", info}
    assert {f"{info}/licenses/LICENSE", "fewstep/py.typed", "fewstep/models/cifar32/README.md"} <= names
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "fewstep").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    assert packages[1].stat().st_size < MOST_BYTES


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_the_wheel_says_its_commit_without_git(packages, tmp_path):
    with zipfile.ZipFile(packages[1]) as archive:
        archive.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-m", "fewstep", "--version"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    version, commit = said.split()
    assert version == fewstep.__version__
    assert head.startswith(commit.removesuffix("-dirty"))
    assert len(commit) >= 12


def test_the_version_is_that_of_the_changelog():
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest in ("Unreleased", fewstep.__version__)
