"""What people do with captions on the command line: edit, export, import, forget, and docs/captions.md."""

import hashlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.cli import app
from tests.conftest import make_photo

TEXTS = {"a.png": ("a dog", 0.9), "b c.png": ("a cat", 0.1), "d.png": ("a cow", 0.5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three pictures, captioned."""
    rows = []
    for number, (name, (text, confidence)) in enumerate(TEXTS.items()):
        photo = make_photo(tmp_path / "photos" / name, number, (30, 20))
        content = f"{number:x}" * 64
        rows.append(
            Captioned(str(photo), 1, 1, None, content, 30, 20, "png", None, text, -1.0, confidence, 3)
        )
    url = f"sqlite:///{tmp_path / 'store' / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], ModelInfo("f" * 64, "m"), {}) as run:
        run.commit(rows)
    return tmp_path


def batchcap(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--store", str(folder / "store")])


def fails(result: Result, status: int, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert result.stderr.startswith("batchcap: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def captions(folder: Path) -> dict[str, str]:
    url = f"sqlite:///{folder / 'store' / 'catalog.db'}"
    with Catalog.open(url) as catalog, catalog.query("SELECT uri, caption FROM captions") as result:
        return {Path(uri).name: caption for uri, caption in result.rows}


def test_edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "photos")
    assert batchcap(folder, "edit", "b c.png", "Minka sleeps").stdout == "written\n"
    assert batchcap(folder, "edit", "b c.png", "Minka sleeps").stdout == "that was its caption already\n"
    uri = str(folder / "photos" / "b c.png")
    done = batchcap(folder, "edit", f"file://{folder}/photos/b%20c.png", "Minka", "--json")
    assert json.loads(done.stdout) == {"uri": uri, "outcome": "written"}
    assert captions(folder)["b c.png"] == "Minka"
    fails(batchcap(folder, "edit", "nowhere.png", "x"), 1, f"knows no file {folder}/photos/nowhere.png")
    fails(batchcap(folder, "edit", "a.png", " "), 2, "can't be empty")
    fails(batchcap(folder, "edit", "a.png"), 2, "--review")
    fails(batchcap(folder, "edit", "a.png", "x", "--review"), 2, "give no URI")
    fails(batchcap(folder, "edit", "--review"), 2, "asks a person, in a terminal")
    fails(batchcap(folder / "photos", "edit", "a.png", "x"), 1, "no catalog at")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def review(folder: Path, answers: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answers))
    app(["edit", "--review", "--store", str(folder / "store"), *arguments], standalone_mode=False)


def test_review(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    review(folder, "o\n" + "x" * 6000 + "\nMinka\n\nq\n", monkeypatch)
    said = capsys.readouterr()
    assert said.out == "1 kept, 1 written, 0 skipped\n"
    assert f"1/3  {folder}/photos/b c.png\n  a cat (10% sure)\n> " in said.err
    assert "5,000 characters at most" in said.err
    assert opened == [f"{folder}/photos/b c.png"]
    assert captions(folder) == {"a.png": "a dog", "b c.png": "Minka", "d.png": "a cow"}
    # What was kept is a person's now; the input ends before there is an answer.
    review(folder, "s\n", monkeypatch, "--json", "--limit", "2")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"kept": 0, "written": 0, "skipped": 1}
    assert "1/1" in said.err and "a dog (90% sure)" in said.err


def test_export_and_import(folder: Path) -> None:
    table = folder / "captions.csv"
    assert batchcap(folder, "export", table).stdout == f"3 captions written to {table}\n"
    fails(batchcap(folder, "export", table), 2, "--overwrite")
    fails(batchcap(folder, "export"), 2, "--sidecars")
    fails(batchcap(folder, "export", "--sidecars", "pdf"), 2, "there are txt and xmp")
    done = batchcap(folder, "export", table, "--overwrite", "--json", "--min-confidence", "0.5")
    assert json.loads(done.stdout) == {"file": str(table), "rows": 2}
    (folder / "photos" / "d.txt").write_text("mine")
    done = batchcap(folder, "export", "--sidecars", "txt")
    assert (done.exit_code, done.stdout) == (0, "2 written, 0 unchanged, 1 kept\n")
    assert "d.txt: not written by batchcap; --overwrite replaces it" in done.stderr
    (folder / "photos" / "a.png").unlink()
    done = batchcap(folder, "export", "--sidecars", "xmp", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["written"], found["error"]["code"]) == (2, "exchange")
    assert found["failed"] == [{"file": f"{folder}/photos/a.png.xmp", "what": "the picture is not there"}]

    table.write_text("image,caption\na.png,Rex\nx.png,y\n" + "".join(f"{n}.png,y\n" for n in range(20)))
    fails(batchcap(folder, "import", folder / "x.csv"), 2, "does not exist")
    fails(batchcap(folder, "import", table, "--model", "people"), 2, "people are no model")
    done = batchcap(folder, "import", table)
    assert done.exit_code == 1 and "no caption could be imported; see --under" in done.stderr
    done = batchcap(folder, "import", table, "--under", folder / "photos")
    assert (done.exit_code, done.stdout) == (0, "1 imported, 0 known, 21 of unknown files\n")
    assert "and 11 more; --json lists them" in done.stderr
    assert captions(folder)["a.png"] == "Rex"
    done = batchcap(folder, "import", table, "--under", folder / "photos", "--json", "--model", "gpt")
    assert json.loads(done.stdout)["written"] == 1 and captions(folder)["a.png"] == "Rex"


def test_forget(folder: Path) -> None:
    done = batchcap(folder, "forget", folder / "photos" / "a.png")
    assert (done.exit_code, done.stdout) == (0, "forgotten: captions: 1; Parquet files written anew: 0\n")
    assert "a.png" not in captions(folder)
    fails(batchcap(folder, "forget", folder / "photos" / "a.png"), 1, "knows no file")
    done = batchcap(folder, "forget", folder / "photos" / "d.png", "--json")
    expected = {"results": 1, "captions": 1, "parts": 0, "elsewhere": 0}
    assert json.loads(done.stdout) == {"uri": f"{folder}/photos/d.png", **expected}


def test_every_command_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, as a reader would, who has a table of another model's captions."""
    (folder / "photos" / "a.png").rename(folder / "photos" / "a.jpg")
    uri = str(folder / "photos" / "a.jpg")
    content = hashlib.sha256(Path(uri).read_bytes()).hexdigest()
    row = Captioned(uri, 1, 1, None, content, 30, 20, "jpeg", None, "a dog", -1.0, 0.4, 3, vector=b"\x00<")
    url = f"sqlite:///{folder / 'store' / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], ModelInfo("f" * 64, "m"), {}) as run:
        run.commit([row])
        run.vanish([str(folder / "photos" / "a.png")], lambda vanished: None)
    (folder / "others.csv").write_text(f"uri,caption\n{uri},a hound\n")
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[1] / "docs" / "captions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) > 15
    said = {}
    for command in commands:
        program, *arguments = shlex.split(command)
        done = batchcap(folder, *arguments)
        assert (program, done.exit_code) == ("batchcap", 0), (command, done.output)
        said[command] = done.stdout
    assert said["batchcap export mine.tsv --human --under photos"] == "1 caption written to mine.tsv\n"
    assert (folder / "mine.tsv").read_text() == "image\tcaption\na.jpg\tRex sleeps on the sofa\n"
    assert said["batchcap import captions.csv"] == "0 imported, 3 known, 0 of unknown files\n"
    assert said["batchcap import photos"] == "0 imported, 3 known, 0 of unknown files\n"
    assert said["batchcap import others.csv --model other"] == "1 imported, 0 known, 0 of unknown files\n"
    assert (folder / "dogs.html").exists() and (folder / "photos" / "a.txt").exists()


def test_all_of_it_with_a_catalog_in_postgresql(folder: Path, postgres_url: str) -> None:
    uri = str(folder / "photos" / "a.png")
    row = Captioned(uri, 1, 1, None, "a" * 64, 30, 20, "png", None, "a dog", -1.0, 0.4, 3)
    with Catalog.open(postgres_url, mode="write") as catalog, catalog.run([], ModelInfo("f", "m"), {}) as run:
        run.commit([row])
        parts.seal(catalog, parts.open_store(folder / "parts", catalog.uuid), run)
    place = ("--catalog", postgres_url, "--store", str(folder / "parts"), "--json")
    table = str(folder / "all.jsonl")
    expected: list[tuple[tuple[str, ...], dict[str, object]]] = [
        (("edit", uri, "Rex"), {"outcome": "written"}),
        (("search", "rex", "--model", "people", "--under", str(folder)), {"total": 1}),
        (("sql", "--named", "corrections"), {"rows": [["Rex", "m", "a dog", 0.4, uri]]}),
        (("export", table), {"rows": 1}),
        (("export", "--sidecars", "xmp"), {"written": 1, "failed": []}),
        (("import", table, str(folder / "photos")), {"written": 0, "unchanged": 2}),
        (("verify",), {"rows": 1, "unsealed_rows": 1, "findings": []}),
        (("forget", uri), {"results": 2, "captions": 2, "parts": 1}),
        (("verify",), {"rows": 0, "unsealed_rows": 0, "findings": []}),
    ]
    for command, answer in expected:
        done = CliRunner().invoke(app, [*command, *place])
        assert done.exit_code == 0, (command, done.output)
        assert answer.items() <= json.loads(done.stdout).items(), (command, done.stdout)
