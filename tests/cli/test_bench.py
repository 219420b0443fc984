"""`fewstep bench`, as one gives it: killed, shared out, out of luck; and the page that comes of it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from html import escape
from pathlib import Path

import numpy as np
import pytest

from cli.commands import DONE, FAILED, USAGE, assert_refused, run
from fewstep.models import MODELS

TESTS = Path(__file__).parents[1]
BENCH = [sys.executable, "-m", "fewstep", "bench"]
SMALL = ["--solvers", "ddim,dpmpp-2m", "--nfe", "2,3", "--n", "30", "--batch", "4", "--converged", "8",
         "--metrics", "frechet,rmse,gain", "--extractor", "fakes:features"]  # fmt: skip
TIMES = ("milliseconds", "memory")


@pytest.fixture
def reference(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "ref.npz", images=images)
    return ["--reference", str(tmp_path / "ref.npz")]


def environment():
    paths = [str(TESTS), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def rows(folder):
    """Without what differs from run to run."""
    found = json.loads((folder / "rows.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def images(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, reference):
    command = [*BENCH, "run", "--model", "fakes:slow", *SMALL, *reference, "--out"]
    subprocess.run([*command, tmp_path / "whole"], env=environment(), check=True, capture_output=True)
    moments = random.Random(0)
    out, kept = tmp_path / "killed", {}
    for _ in range(3):
        process = subprocess.Popen([*command, out], env=environment(), stderr=subprocess.PIPE)
        while len(images(out)) < len(kept) + 3:
            assert process.poll() is None, process.stderr.read()
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        now = images(out)
        assert kept.items() <= now.items()
        kept = now
    assert len(kept) < len(images(tmp_path / "whole"))
    subprocess.run([*command, out], env=environment(), check=True, capture_output=True)
    assert kept.items() <= images(out).items()
    assert [row["images"] for row in rows(out)] == [row["images"] for row in rows(tmp_path / "whole")]
    assert rows(out) == rows(tmp_path / "whole")


def test_two_processes_are_one(tmp_path, reference):
    pytest.importorskip("accelerate", reason="needs the extra scale")
    command = ["run", "--model", "fakes:gaussian", *SMALL, *reference, "--out"]
    # The two dashes: torchrun takes the options of what it starts for short forms of its own.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    done = subprocess.run(
        [*launch, *BENCH[2:], *command, tmp_path / "two"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert run("bench", *command, tmp_path / "one").exit_code == DONE
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_three_jobs_merged_are_one(tmp_path, reference):
    command = ["bench", "run", "--model", "fakes:gaussian", *SMALL, *reference]
    for job in range(1, 4):
        result = run(*command, "--shard", f"{job}/3", "--out", tmp_path / str(job))
        assert result.exit_code == DONE, result.stderr
        assert "bench merge" in result.stderr
    incomplete = run("bench", "merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "some")
    assert_refused(incomplete, FAILED, "images of", "are missing")
    merged = run("bench", "merge", *(tmp_path / str(job) for job in range(1, 4)), "--out", tmp_path / "all")
    assert merged.exit_code == DONE, merged.stderr
    assert run(*command, "--out", tmp_path / "one").exit_code == DONE
    assert rows(tmp_path / "all") == rows(tmp_path / "one")
    report = run("bench", "report", tmp_path / "all", "--out", tmp_path / "page")
    assert report.exit_code == DONE, report.stderr
    for content in ("{", "[]", '{"solver": "ddim"}', '{"n": 1}'):
        (tmp_path / "all" / "bench.json").write_text(content)
        report = run("bench", "report", tmp_path / "all", "--out", tmp_path / "page")
        assert_refused(report, FAILED, "bench.json cannot be used", "give the `bench run` again")


def test_memory_does_not_grow_with_the_images(tmp_path, reference):
    code = (
        "import resource, sys; from fewstep.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n in (1000, 10_000):
        command = [
            "bench",
            "run",
            "--model",
            "fakes:gaussian",
            *SMALL,
            *reference,
            "--json",
            "--out",
            tmp_path / str(n),
        ]
        command += ["--solvers", "ddim", "--nfe", "2", "--converged", "4", "--n", str(n), "--batch", "100"]
        done = subprocess.run([sys.executable, "-c", code, *command], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] <= 1.2 * peaks[0]


def test_the_packaged_model_and_its_report(tmp_path):
    result = run("bench", "run", "--solvers", "ddim,evodiff", "--nfe", "2", "--n", 2, "--converged", 3, "--json",
                 "--out", tmp_path / "bench")  # fmt: skip
    assert result.exit_code == DONE, result.stderr
    found = json.loads(result.stdout)["rows"]
    assert [(row["solver"], row["calls"], row["n"]) for row in found] == [
        ("converged", 3, 2), ("ddim", 2, 2), ("evodiff", 2, 2),
    ]  # fmt: skip
    assert found[0]["drawn under"]["versions"]["torch"]
    assert "not FID" in found[0]["measured by"]["frechet is"]
    assert run("bench", "report", tmp_path / "bench", "--out", tmp_path / "page").exit_code == DONE
    assert "which is not FID" in (tmp_path / "page" / "results.md").read_text()
    advice = run("bench", "recommend", tmp_path / "bench", "--calls", 2, "--by", "rmse")
    assert advice.exit_code == DONE, advice.stderr
    assert "images = sample(denoiser, noise, nfe=2" in advice.stdout


def test_options_change_keys_of_the_file(tmp_path, reference):
    (tmp_path / "bench.toml").write_text(
        'models = ["fakes:gaussian"]\nsolvers = ["heun"]\ncalls = [7]\nmetrics = ["rmse"]'
    )
    result = run(
        "bench", "run", tmp_path / "bench.toml", "--nfe", "3", "--n", 4, "--converged", 4, "--out", tmp_path / "b"
    )
    assert result.exit_code == DONE, result.stderr
    _, row = rows(tmp_path / "b")
    assert (row["solver"], row["calls"], row["n"]) == ("heun", 3, 4)


def test_what_goes_wrong_is_one_line(tmp_path, reference):
    def refused(*args, code=FAILED, parts):
        assert_refused(run("bench", *args, "--out", tmp_path / "out"), code, *parts)

    gaussian = ["run", "--model", "fakes:gaussian", *SMALL]
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4")
    refused(*gaussian, "--reference", tmp_path / "bad.npz", parts=["bad.npz is not a whole npz file"])
    refused(*gaussian, parts=["give a reference"])
    refused("run", "--model", "fakes:gaussian", "--converged", "2", parts=["sees 3 x 32 x 32 pixels"])
    np.savez(tmp_path / "mu.npz", mu=np.zeros(3), sigma=np.eye(3))
    refused(*gaussian, "--reference", tmp_path / "mu.npz", parts=["of 3 features, the extractor has 12"])
    refused(*gaussian, *reference, "--nfe", "1,x", parts=["calls must be int numbers"])
    refused(*gaussian, *reference, "--guidance", "2", parts=["guidance 2 needs a model with classes"])
    refused(*gaussian, *reference, "--extractor", "inception", parts=["no weights of Inception"])
    refused(*gaussian, *reference, "--shard", "4/3", code=USAGE, parts=["must be like 2/3"])
    refused("run", "--preset", "evodiff-table2-cifar10", parts=["models: edm-cifar10-32x32-uncond-vp.pkl"])
    assert not (tmp_path / "out" / "bench.json").exists()
    refused("run", "--model", "fakes:failing", *SMALL, *reference, "--n", "160", parts=["failed at", "are kept"])
    refused("report", tmp_path, parts=["is not of a bench, it has no bench.json"])
    refused("report", tmp_path / "out", parts=["has no rows yet"])
    plan = (tmp_path / "out" / "bench.json").read_bytes()
    other = ["--model", "fakes:failing", *SMALL, *reference, "--n", "160", "--batch", "5"]
    anew = "choose another --out, or --overwrite converged; of all solvers --overwrite converged,"
    refused("run", *other, parts=["batch was", anew])
    refused("run", *other, "--overwrite", "euler", code=USAGE, parts=["--overwrite: 'euler' is not known; choose"])
    assert (tmp_path / "out" / "bench.json").read_bytes() == plan


def test_a_preset_prints_ours_beside_the_papers(tmp_path):
    files = ["--model", "fakes:large", "--weights", "none", "--reference", ""]
    small = ["--extractor", "classifier", "--metrics", "frechet", "--n", 4, "--out", tmp_path / "out"]
    result = run("bench", "run", "--preset", "evodiff-table2-cifar10", *files, *small)
    assert_refused(result, FAILED, "reference: cifar10_stats.npz")
    files[-1] = str(MODELS / "cifar32-classifier" / "moments.npz")
    result = run("bench", "run", "--preset", "evodiff-table2-cifar10", *files, *small)
    assert result.exit_code == DONE, result.stderr
    assert "| solver | calls | Fréchet | published FID |" in result.stdout
    lines = [line.split(" | ") for line in result.stdout.splitlines()]
    published = {line[0][2:].split(" on ")[0]: line[3] for line in lines if len(line) > 3 and line[1] == "10"}
    assert published["dpmpp-2m-closing"] == "5.10"
    assert published["dpmpp-3m"] == "2.91"
    assert published["evodiff-published"] == "2.78"


def test_presets_are_listed():
    result = run("bench", "presets")
    assert "evodiff-table2-cifar10" in result.stdout
    assert len(json.loads(run("bench", "presets", "--json").stdout)) == 10


# The page in a frame, because a browser's own window does not become this narrow.
PROBE = """<title></title><iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{page}"></iframe><script>
onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document, pictures = [...page.images];
  document.title = JSON.stringify([view.innerWidth, page.documentElement.scrollWidth, pictures.length,
    pictures.filter(each => each.naturalWidth).length, page.querySelectorAll("svg path[stroke]").length]);
}};
</script>"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_shows_its_pictures_without_network(tmp_path, reference, width):
    assert (
        run("bench", "run", "--model", "fakes:gaussian", *SMALL, *reference, "--out", tmp_path / "b").exit_code == DONE
    )
    assert run("bench", "report", tmp_path / "b", "--out", tmp_path / "page").exit_code == DONE
    page = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"(src|href)=.(?!data:)|url\(|@import|<script", page)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=escape(page)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1700,900", "--dump-dom",
               "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}",
               "--host-resolver-rules=MAP * ~NOTFOUND", probe.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    inner, scrolled, pictures, shown, lines = json.loads(re.search(r"<title>(\[.*\])</title>", done.stdout)[1])
    assert inner == width
    assert scrolled <= width  # what is wider scrolls in its own box
    assert pictures == shown == 2 * (2 + 1)  # solvers, by budgets and the converged solution
    assert lines == 2 * 3 * 2  # a solver each, in charts of three metrics by calls and by time
