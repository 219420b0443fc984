import pytest

from benchmarks.command import write


def test_a_page_is_written_and_refused_before_the_work(tmp_path, capsys):
    write(tmp_path / "deeper" / "x.md", lambda: "page")
    assert (tmp_path / "deeper" / "x.md").read_text() == "page"
    write(None, lambda: "page")
    assert capsys.readouterr().out == "page\n"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*: choose another --out"):
        write(tmp_path / "file" / "x.md", lambda: pytest.fail("worked first"))
