"""The images of a bench: the same however the work is shared, kept whatever goes wrong."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fakes
from fewstep import EDM, sample, unit_noise
from fewstep.bench.draw import Worker, cells_of, draw, shards_of
from fewstep.bench.measure import Judge, measure, read_rows
from fewstep.bench.merge import bring_together
from fewstep.bench.plan import Plan
from fewstep.bench.recommend import best
from fewstep.bench.report import as_markdown
from fewstep.pictures import pixels
from fewstep.table import SOLVERS

PLAN = Plan.of(
    {
        "models": ["fakes:gaussian"], "solvers": ["ddim", "sde-dpmpp-2m"], "calls": [2, 3], "n": 30, "batch": 4,
        "converged": 8, "metrics": ["frechet", "rmse", "gain"], "extractor": "fakes:features", "reference": "ref.npz",
    }
)  # fmt: skip
TIMES = ("milliseconds", "memory")


@pytest.fixture
def plan(tmp_path):
    """With a reference: images that are not of the model."""
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "ref.npz", images=images)
    return dataclasses.replace(PLAN, reference=str(tmp_path / "ref.npz"))


def drawn(plan, folder, workers=1, overwrite=()):
    for index in range(workers):
        draw(plan, folder, Worker(index, workers), overwrite=overwrite)
    return rows_of(plan, folder)


def rows_of(plan, folder):
    rows = measure(plan, folder, Judge(plan, "cpu"))
    assert rows[0]["solver"] == "converged"
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_images_are_those_of_their_seeds(plan, tmp_path):
    drawn(plan, tmp_path / "a")
    cell = next(iter(cells_of(plan)))
    kept = np.concatenate([batch["images"] for _, batch in shards_of(plan, tmp_path / "a", cell).read()])
    noise = unit_noise(range(30), (3, 8, 8))
    expected = sample(fakes.Gaussian(), noise, nfe=2, solver=SOLVERS["ddim"].solver, schedule=EDM())
    assert np.array_equal(kept, pixels(expected))


def test_three_shards_merged_are_one_run(plan, tmp_path):
    one = drawn(plan, tmp_path / "one")
    for index in range(3):
        draw(plan, tmp_path / str(index), Worker(index, 3))
    parts = [tmp_path / str(index) for index in range(3)]
    bring_together([plan] * 3, parts, tmp_path / "all")
    assert rows_of(plan, tmp_path / "all") == one
    assert len({row["images"] for row in one}) == len(one)


def test_jobs_may_share_a_folder(plan, tmp_path):
    assert drawn(plan, tmp_path / "a", workers=3) == drawn(plan, tmp_path / "b")


def test_a_merge_tells_what_is_missing(plan, tmp_path):
    draw(plan, tmp_path / "a", Worker(0, 2))
    bring_together([plan], [tmp_path / "a"], tmp_path / "all")
    with pytest.raises(ValueError, match=r"14 of 30 images of .*converged.*8-calls are missing, the first of seed 16"):
        rows_of(plan, tmp_path / "all")


def test_shards_of_other_benches_are_not_merged(plan, tmp_path):
    other = dataclasses.replace(plan, seed=5)
    with pytest.raises(ValueError, match="is of another bench"):
        bring_together([plan, other], [tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_more_images_keep_those_that_are_there(plan, tmp_path):
    drawn(dataclasses.replace(plan, n=16), tmp_path / "a")
    before = files(tmp_path / "a")
    assert drawn(plan, tmp_path / "a") == drawn(plan, tmp_path / "b")
    after = files(tmp_path / "a")
    assert {name: after[name] for name in before} == before


def test_a_damaged_file_is_found_and_made_again(plan, tmp_path):
    whole = drawn(plan, tmp_path / "a")
    path = sorted((tmp_path / "a").rglob("*.npz"))[9]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images of .* are missing"):
        rows_of(plan, tmp_path / "a")
    before = files(tmp_path / "a")
    assert drawn(plan, tmp_path / "a") == whole
    after = files(tmp_path / "a")
    assert [name for name in after if after[name] != before[name]] == [str(path.relative_to(tmp_path / "a"))]


def test_a_model_that_throws_keeps_what_is_finished(tmp_path):
    plan = Plan.of(
        {
            "models": ["fakes:failing"],
            "solvers": ["ddim"],
            "calls": 2,
            "n": 160,
            "batch": 4,
            "converged": 0,
            "metrics": [],
        }
    )
    with pytest.raises(
        RuntimeError, match=r"failed at ddim, 2 calls, seeds 144 to 147 \(ValueError: out of memory, say"
    ):
        draw(plan, tmp_path, Worker())
    assert len(files(tmp_path)) == 36
    before = files(tmp_path)
    draw(plan, tmp_path, Worker())
    assert len(files(tmp_path)) == 40
    assert before.items() <= files(tmp_path).items()


def test_a_full_disk_keeps_what_is_finished(plan, tmp_path, monkeypatch):
    import fewstep.files

    room = 20

    def flush(file):
        nonlocal room
        room -= file.name.endswith(".part")
        if room < 0:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fewstep.files, "flush", flush)
        with pytest.raises(OSError, match=r"cannot write .* \(No space left on device\): make room"):
            draw(plan, tmp_path / "a", Worker())
    assert files(tmp_path / "a")
    assert drawn(plan, tmp_path / "a") == drawn(plan, tmp_path / "b")


def test_what_is_drawn_otherwise_is_refused_or_overwritten(plan, tmp_path):
    drawn(plan, tmp_path / "a")
    other = dataclasses.replace(plan, converged=16)
    told = "converged was 8, now 16.*or --overwrite ddim; of all solvers --overwrite converged,ddim,sde-dpmpp-2m$"
    with pytest.raises(FileExistsError, match=told):
        draw(other, tmp_path / "a", Worker())
    before = files(tmp_path / "a")
    drawn(plan, tmp_path / "a", overwrite={"ddim"})
    anew = {name for name, time in files(tmp_path / "a").items() if time != before[name]}
    assert anew == {name for name in before if "--ddim--" in name}


@pytest.mark.parametrize("change", [{"converged": 16}, {"batch": 2}])
def test_what_is_overwritten_is_the_changed_plan_drawn_alone(plan, tmp_path, change):
    plan = dataclasses.replace(plan, n=8)
    other = dataclasses.replace(plan, **change)
    drawn(plan, tmp_path / "a")
    anew = drawn(other, tmp_path / "a", overwrite={"converged", "ddim", "sde-dpmpp-2m"})
    alone = drawn(other, tmp_path / "b")
    assert [row["images"] for row in anew] == [row["images"] for row in alone]
    there = files(tmp_path / "a")
    cells = {path.parent for path in map(Path, files(tmp_path / "b"))}
    assert {name for name in there if Path(name).parent in cells} == files(tmp_path / "b").keys()
    assert drawn(other, tmp_path / "a") == anew
    assert files(tmp_path / "a") == there


def test_images_are_overwritten_when_there_are_others(plan, tmp_path, monkeypatch):
    """A model that fails at once loses none of those that were to be drawn anew."""
    drawn(plan, tmp_path / "a")
    before = files(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(fakes.Gaussian, "__call__", lambda self, x, t: x * torch.nan)
        with pytest.raises(RuntimeError, match="failed at ddim"):
            drawn(plan, tmp_path / "a", overwrite={"ddim"})
    assert files(tmp_path / "a") == before


def test_errors_are_against_the_converged_solution(plan, tmp_path):
    rows = drawn(plan, tmp_path / "a")
    noise = unit_noise(range(30), (3, 8, 8))
    exact = sample(fakes.Gaussian(), noise, nfe=8, solver=SOLVERS["unipc-3"].solver, schedule=EDM())
    x = sample(fakes.Gaussian(), noise, nfe=3, solver=SOLVERS["ddim"].solver, schedule=EDM())
    (row,) = [row for row in rows if (row["solver"], row["calls"]) == ("ddim", 3)]
    expected = (x.double() - exact.double()).square().mean().sqrt().item()
    # Sums of 30 means of squares, in another order: 30 roundings of float64.
    assert row["rmse"] == pytest.approx(expected, rel=30 * 2**-53)


def test_what_is_measured_once_is_kept(plan, tmp_path, monkeypatch):
    rows = drawn(plan, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "figures", None)
        assert rows_of(plan, tmp_path / "a") == rows
        with pytest.raises(TypeError):  # of more images, it is measured again
            drawn(dataclasses.replace(plan, n=31), tmp_path / "a")
    other = rows_of(dataclasses.replace(plan, scores={"brightness": "fakes:brightness"}), tmp_path / "a")
    assert [row["frechet"] for row in other] == [row["frechet"] for row in rows]
    assert all("brightness" in row for row in other)


def test_the_work_is_shared_evenly():
    shards = [range(k, k + 1) for k in range(10)]
    shares = [Worker(index, 3).mine(shards) for index in range(3)]
    assert [each for share in shares for each in share] == shards
    assert sorted(map(len, shares)) == [3, 3, 4]


def test_a_function_that_returns_no_model_is_told():
    from fewstep.bench.subjects import load_subject

    with pytest.raises(ValueError, match=r"must return a denoiser and its schedule; got <fakes\.Gaussian.* and None"):
        load_subject("fakes:nothing")
    with pytest.raises(ImportError, match="fakes:absent cannot be imported"):
        load_subject("fakes:absent")
    with pytest.raises(ValueError, match="guidance 2 needs a model with classes"):
        load_subject("fakes:gaussian").denoiser(range(2), 2.0)
    assert torch.equal(load_subject("fakes:gaussian").decode(torch.ones(2)), torch.ones(2))


def test_no_error_is_an_error_of_zero(tmp_path):
    """A solver that is exact is measured, and the best; a solution without contrast has no gain."""
    given = {"solvers": ["ddim", "evodiff"], "calls": 4, "n": 4, "converged": 8, "metrics": ["rmse", "gain"]}
    plan = Plan.of({"models": ["fakes:constant"], "shape": [3, 8, 8], **given})
    draw(plan, tmp_path, Worker())
    solution, ddim, evodiff = measure(plan, tmp_path, Judge(plan, "cpu"))
    assert "rmse" not in solution
    assert ddim["rmse"] == 0 < evodiff["rmse"]
    assert not any("gain" in row for row in (solution, ddim, evodiff))
    assert best([solution, ddim, evodiff], "rmse") == ddim
    assert "| ddim | 4 | **0.0000** |" in as_markdown([solution, ddim, evodiff])


def test_damaged_figures_are_measured_again(plan, tmp_path):
    rows = drawn(plan, tmp_path / "a")
    for content in ("{", "[]", '{"figures": 1}', "\xff"):
        for path in (tmp_path / "a").rglob("figures.json"):
            path.write_text(content, encoding="latin-1")
        assert rows_of(plan, tmp_path / "a") == rows


@pytest.mark.parametrize("content", [None, "{", "[]", '{"settings": 1}'])
def test_a_shard_whose_record_is_damaged_is_made_again_alone(plan, tmp_path, content):
    whole = drawn(plan, tmp_path / "a")
    record = sorted((tmp_path / "a").rglob("run.json"))[3]
    record.unlink() if content is None else record.write_text(content)
    before = files(tmp_path / "a")
    with pytest.raises((ValueError, FileExistsError), match=f"remove {record.parent}, which|are missing"):
        rows_of(plan, tmp_path / "a")
    with pytest.raises(FileExistsError, match=f"remove {record.parent}, which the same `fewstep bench run` draws"):
        draw(plan, tmp_path / "a", Worker())
    assert files(tmp_path / "a") == before
    shutil.rmtree(record.parent)
    assert drawn(plan, tmp_path / "a") == whole


@pytest.mark.parametrize("content", ["[1]", '{"rows": [{}]}', '{"rows": 1}', '{"rows": [1]}'])
def test_damaged_rows_are_told(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match=r"rows\.json is damaged: remove it and give the run again"):
        read_rows(tmp_path)
