"""The documentation as a site: it is built without a warning, whole, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
# What a browser loads by itself; `a` leads somewhere, but only if a person wants to.
LOADED = {
    *(("link", "href"), ("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "srcset")),
    *(("iframe", "src"), ("object", "data"), ("video", "src"), ("audio", "src"), ("use", "href")),
}
IN_CSS = re.compile(r"(?:url\(\s*|@import\s+)[\"']?([^\"')\s]+)")


class Page(HTMLParser):
    """What a page loads, where it leads, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.ids.add(value or "")
            elif (tag, name) in LOADED:
                self.loaded.append((value or "").split()[0])
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")
            elif name == "style":
                self.loaded += IN_CSS.findall(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    # The page of an error is served at any address, so its links begin at the root.
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_docs_is_there_and_the_readme_is_the_first(site: Path) -> None:
    names = {page.with_suffix(".html").name for page in (ROOT / "docs").glob("*.md")}
    assert names | {"index.html"} <= {path.name for path in site.glob("*.html")}
    assert "make demo" in (site / "index.html").read_text(encoding="utf-8")
    # What pages link to outside of docs.
    assert "ENTRYPOINT" in (site / "files" / "Dockerfile.html").read_text(encoding="utf-8")
    assert (site / "images" / "page.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(site.rglob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    seen = {f"{path.relative_to(site)}: {each}": each for path, page in pages.items() for each in page.loaded}
    for path in site.rglob("*.css"):
        for each in IN_CSS.findall(path.read_text(encoding="utf-8")):
            seen[f"{path.relative_to(site)}: {each}"] = each
    assert len(seen) > 100
    foreign = [where for where, each in seen.items() if urlsplit(each).scheme not in ("", "data")]
    assert foreign == []
    assert not [where for where, each in seen.items() if each.startswith("//")]


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            address = urlsplit(link)
            if address.scheme or link.startswith("#") and link in ("#", "#top"):
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].ids, f"{path.relative_to(site)}: {link}"
            count += 1
    assert count > 500
