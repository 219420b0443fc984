"""docs/ as a site: each page says for whom it is, links and anchors lead somewhere, pictures say what they show, and it
is built without network."""

import importlib.util
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewstep.table import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MOST_LINES = 5
TOLD = 4  # words that an alternative text has at least
MISSING = any(importlib.util.find_spec(each) is None for each in ("mkdocs", "material", "mkdocstrings_handlers"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def text_of(page):
    """A page without its code, where brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page):
    """The ids of its headings, as Markdown's table of contents makes them."""
    found: list[str] = []
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)).encode("ascii", "ignore")
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.decode()).strip().lower())
        found.append(slug if slug not in found else f"{slug}_{found.count(slug)}")
    return found


@every_page
def test_it_begins_with_a_title_and_says_for_whom_it_is(page):
    title, paragraph = re.split(r"\n\s*\n", page.read_text(encoding="utf-8").strip())[:2]
    assert re.fullmatch(r"# \S.*", title)
    assert re.search(r"\b[Ff]or (people|those|whoever|anyone|everyone|you|users|researchers|developers)\b", paragraph)
    assert len(paragraph.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pictures_say_what_they_show(page):
    for told, _ in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(page)):
        assert len(told.split()) >= TOLD, told


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r"^ +- .*?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_all_evidence_is_in_the_list_of_it():
    (tab,) = re.findall(
        r"^  - Evidence:\n((?:      - .*\n)+)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    listed = (DOCS / "evidence.md").read_text(encoding="utf-8")
    pages = re.findall(r"(\S+\.md)$", tab, re.MULTILINE)
    assert [page for page in pages if page != "evidence.md" and f"]({page}" not in listed] == []


def test_every_family_of_solvers_is_on_its_page_and_in_the_reference():
    listed = (DOCS / "solvers.md").read_text(encoding="utf-8")
    assert [family.__name__ for family in FAMILIES if family.__name__ not in listed] == []
    modules = {".".join(family.__module__.split(".")[:3]) for family in FAMILIES}
    reference = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "solvers.md").read_text(), re.MULTILINE)
    assert modules <= set(reference)


class Page(HTMLParser):
    """What a browser would load for a page, and what a reader who cannot see it is told."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.untold, self.links, self.ids = [], [], [], set()
        self.language, self.title = None, ""
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.ids |= {of["id"]} if "id" in of else set()
        self._in_title = tag == "title"
        if tag == "html":
            self.language = of.get("lang")
        if tag in ("script", "img", "iframe", "source", "video"):
            self.loaded += filter(None, [of.get("src")])
        if tag == "link" and of.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(of["href"])
        if tag == "img" and len(of.get("alt", "").split()) < TOLD:
            self.untold.append(of)
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])

    def handle_data(self, data):
        if self._in_title:
            self.title += data
            self._in_title = False


@pytest.mark.skipif(MISSING, reason="needs mkdocs-material and mkdocstrings-python")
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {path: Page(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(found) == len(PAGES) + 1  # and that of an address that leads nowhere
    titles = [page.title for page in found.values()]
    assert all(titles)
    for path, page in found.items():
        assert page.language
        assert not page.untold
        assert [each for each in page.loaded if re.match(r"(https?:)?//", each)] == []
        for link in page.links if path.name != "404.html" else ():
            if re.match(r"https?://|data:|mailto:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file not in ("", ".") else path
            assert target in found or target.exists(), link
            assert not anchor or target not in found or anchor in found[target].ids, link
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text(encoding="utf-8"))
