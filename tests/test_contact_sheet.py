"""The contact sheet of a search, and the options of `search` that the command line alone has."""

import json
import re
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.cli import app
from tests.conftest import make_photo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    photo = make_photo(folder / "photos" / "a b.png", 1, (300, 200))
    rows = [
        Captioned(uri, 1, 1, None, uri, 300, 200, "png", None, text, -1.0, 0.5, 3)
        for uri, text in [
            (str(photo), 'a dog & "a cat"'),
            (str(photo.with_name("gone.png")), "<b>dog</b>"),
        ]
    ]
    url = f"sqlite:///{folder / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], ModelInfo("f" * 64, "m"), {}) as run:
        run.commit(rows)
    return folder


def search(store: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["search", *map(str, arguments), "--store", str(store)])


def test_a_page_that_needs_nothing_else(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.chdir(tmp_path)
    done = search(store, "dog", "--open", "--json")
    assert done.exit_code == 0, done.output
    page = tmp_path / "contact.html"
    assert json.loads(done.stdout)["contact_sheet"] == str(page)
    assert opened == [page.as_uri()]
    html = page.read_text()
    assert 'alt="a dog &amp; &quot;a cat&quot;"' in html
    assert "a <mark>dog</mark> &amp;" in html and "&lt;b&gt;<mark>dog</mark>&lt;/b&gt;" in html
    assert html.count("<img ") == 1 and html.count("not there") == 1
    # Nothing comes from elsewhere, and the link leads to the picture.
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)', html))
    assert re.findall(r'href="([^"]*)', html) == [(store / "photos" / "a b.png").as_uri()]
    # A page of an earlier search is replaced; what else is there is not.
    assert search(store, "cat", "--output", page).stdout == f"{page}\n"
    assert "1 of 1" in page.read_text()
    assert len(opened) == 1
    page.write_text("<!doctype html> my own")
    refused = search(store, "cat", "--output", page)
    assert refused.exit_code == 2 and "is no contact sheet" in refused.stderr
    assert page.read_text() == "<!doctype html> my own"
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "open it yourself" in search(store, "cat", "--open", "--output", tmp_path / "other.html").stderr


def test_pages_and_filters(store: Path) -> None:
    first = json.loads(search(store, "--under", store, "--limit", 1, "--page", 1, "--json").stdout)
    second = search(store, "--under", store, "--limit", 1, "--page", 2)
    assert first["hits"][0]["uri"].endswith("a b.png") and first["hits"][0]["format"] == "png"
    assert second.stdout == f"{store}/photos/gone.png\t<b>dog</b>\n" and second.stderr == "2-2 of 2 found\n"
    for arguments, words in (
        (("dog", "--page", 1, "--offset", 1), "one of --offset and --page"),
        ((), "words to search for"),
        (("dog", "--since", "soon"), "--since soon: write a day"),
        (("dog", "--output", store / "nowhere" / "x.html"), "can't write the contact sheet"),
    ):
        refused = search(store, *arguments)
        assert (refused.exit_code, refused.stdout) == (2, "") and words in refused.stderr
        assert refused.stderr.count("\n") == 1
