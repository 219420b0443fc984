from pathlib import Path

from benchmarks import imports

PAGE = Path(__file__).parents[2] / "docs" / "imports.md"


def test_the_page_has_every_candidate_and_says_what_is_written(monkeypatch):
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: float(line.split("|")[3]) for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == list(imports.CANDIDATES)
    assert rows["import fewstep"] <= 1.15
    assert rows[imports.OURS] <= rows[imports.THEIRS] / 2
    assert page.endswith(imports.READING)
    monkeypatch.setattr(imports, "CANDIDATES", {imports.BASE: "", "nothing": ""})
    written = imports.page(rounds=1)
    assert written.endswith(imports.READING)
    assert "| `nothing` |" in written
