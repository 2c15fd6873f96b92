"""The command line: what people and programs see of it."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchcap import console, parts
from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.images import decode_image
from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo, SearchHit, named_queries
from batchcap.cli import app
from batchcap.collection import uri_to_path
from batchcap.console import ProgressBar, on_one_line, preview_summary, print_error, summary
from batchcap.errors import Reason
from batchcap.likeness import _model_of
from batchcap.preview import Preview
from batchcap.run_report import RunReport
from tests.conftest import make_photo

DRIVER = Path(__file__).parent / "faults" / "driver.py"
HEAVY = {"keras", "ray", "tensorflow"}
BAD = {"cut.jpg": "truncated", "empty.jpg": "empty", "text.jpg": "unsupported"}
ODD = ["new\nline.png", "dog \U0001f436.png"]


def batchcap(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("batchcap"), *map(os.fspath, map(_argument, arguments))],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def watched(
    report: Path, *arguments: object
) -> tuple[subprocess.CompletedProcess[str], dict[str, list[str]]]:
    """The command in a process of its own, what it imported and which files it opened."""
    done = subprocess.run(
        [sys.executable, DRIVER, "watch", report, "--", *map(_argument, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, json.loads(report.read_text())


def _argument(value: object) -> Any:
    return value if isinstance(value, str | bytes | Path) else str(value)


def invoke(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@dataclass(frozen=True)
class Indexed:
    """A folder after its first `batchcap index`."""

    photos: Path
    store: Path
    bundle: Bundle
    first: subprocess.CompletedProcess[str]
    good: list[str]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Indexed:
    folder = tmp_path_factory.mktemp("indexed")
    photos, store = folder / "photos", folder / "store"
    names = [*(f"{number}.png" for number in range(6)), *ODD]
    for number, name in enumerate(names):
        make_photo(photos / name, number)
    os.rename(make_photo(photos / "latin.png", 100), os.fsencode(photos) + b"/latin-\xe9.png")
    (photos / "cut.jpg").write_bytes(make_photo(folder / "whole.jpg", 50, (400, 300)).read_bytes()[:2000])
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("no picture at all")
    (photos / "notes.txt").touch()
    watching = ("--log-json", folder / "log.jsonl", "--report", folder / "report.html", "--cpus", 1)
    first = batchcap("index", photos, "--store", store, "--model", tiny_bundle.path, *watching)
    good = sorted([*(str(photos / name) for name in names), f"file://{photos}/latin-%E9.png"])
    return Indexed(photos, store, tiny_bundle, first, good)


def test_index_says_what_it_did_and_nothing_else(indexed: Indexed) -> None:
    assert indexed.first.returncode == 3
    assert indexed.first.stderr == "batchcap: 3 files could not be captioned\n"
    captioned, quarantined, skipped = indexed.first.stdout.splitlines()
    assert captioned.startswith("9 captioned, 0 unchanged, ")
    assert quarantined == (
        "1 empty, 1 truncated, 1 unsupported in quarantine: see batchcap status --quarantine"
    )
    assert skipped == "skipped: 1 not_an_image"


def test_every_command_takes_a_catalog_in_postgresql(
    postgres_url: str, indexed: Indexed, tmp_path: Path
) -> None:
    place = ("--catalog", postgres_url, "--store", tmp_path / "store", "--json")
    known = Captioned("/a", 1, 1, None, "h", 2, 3, "PNG", None, "a dog", -1.0, 0.5, 2)
    with Catalog.open(postgres_url, mode="write") as catalog, catalog.run([], ModelInfo("f", "m"), {}) as run:
        run.commit([known], [Failure("/b", 1, 1, None, Reason.EMPTY, "nothing in it")])
    answers = {}
    for command in (
        ("search", "dogs"),
        ("status",),
        ("status", "--quarantine"),
        ("migrate",),
        ("sql", "SELECT sum(size_bytes), avg(size_bytes) / 2 AS half FROM captions"),
        *(("sql", "--named", name) for name in named_queries()),
        ("index", indexed.photos, "--model", indexed.bundle.path, "--dry-run"),
    ):
        done = invoke(*command, *place)
        assert done.exit_code == 0, (command, done.output)
        answers[command] = json.loads(done.stdout)
    assert answers["search", "dogs"]["hits"][0]["uri"] == "/a"
    assert answers["status",]["images"] == 1
    assert answers["migrate",] == {"migrated": False}
    sums = answers["sql", "SELECT sum(size_bytes), avg(size_bytes) / 2 AS half FROM captions"]
    assert sums == {"columns": ["sum", "half"], "rows": [[1, 0.5]]}
    (run_row,) = answers["sql", "--named", "runs"]["rows"]
    assert run_row[3:] == [1, 0, 1, "m"]
    assert answers["index", indexed.photos, "--model", indexed.bundle.path, "--dry-run"]["new"] == 12
    refused = invoke("sql", "DROP TABLE location", *place)
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["code"]) == (1, "query")


def test_index_left_a_log_and_a_page(indexed: Indexed) -> None:
    log = [json.loads(line) for line in (indexed.store.parent / "log.jsonl").read_text().splitlines()]
    assert (log[0]["event"], log[-1]["event"], log[-1]["captioned"]) == ("started", "finished", 9)
    page = (indexed.store.parent / "report.html").read_text()
    assert page.count("<img") == 9
    assert "truncated (1)" in page


def test_sql_parquet_and_captioner_agree(indexed: Indexed) -> None:
    with Catalog.open(f"sqlite:///{indexed.store / 'catalog.db'}") as catalog:
        with catalog.query("SELECT uri, caption FROM captions") as result:
            in_sql = Counter((uri, caption) for uri, caption in result.rows)
        with catalog.query("SELECT count(*) FROM result") as result:
            assert list(result.rows) == [(9,)]
        table = parts.read_parts(parts.open_store(indexed.store, catalog.uuid))
        bad = {Path(file.uri).name: file.reason.value for file in catalog.quarantine()}
    assert bad == BAD
    assert sorted(uri for uri, _ in in_sql) == indexed.good
    assert in_sql == Counter(zip(table["uri"].to_pylist(), table["caption"].to_pylist(), strict=True))
    captioner = Captioner(indexed.bundle, batch_size=2)
    paths = [Path(uri_to_path(uri)) for uri in indexed.good]
    pixels = [decode_image(path.read_bytes(), captioner.image_spec) for path in paths]
    captions = [caption.text for caption in captioner.caption(pixels)]
    assert in_sql == Counter(zip(indexed.good, captions, strict=True))


def test_a_second_run_has_nothing_to_do(indexed: Indexed, tmp_path: Path) -> None:
    arguments = ("index", indexed.photos, "--store", indexed.store, "--model", indexed.bundle.path)
    done, seen = watched(tmp_path / "report", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["captioned"], report["known"], report["unchanged"]) == (0, 0, 9)
    assert (report["still_quarantined"], report["skipped"]) == (3, {"not_an_image": 1})
    assert HEAVY.isdisjoint(seen["modules"])
    assert str(indexed.bundle.path / "weights.safetensors") in seen["opened"]
    assert not [path for path in seen["opened"] if path.startswith(f"{indexed.photos}/")]


def test_where_pictures_were_taken_is_left_out_if_one_says_so(indexed: Indexed, tmp_path: Path) -> None:
    store = shutil.copytree(indexed.store, tmp_path / "store")
    place = ("--store", store, "--model", indexed.bundle.path)
    assert invoke("index", indexed.photos, *place, "--no-gps").exit_code == 0
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        sql = "SELECT options ->> 'gps' FROM run ORDER BY started_at"
        with catalog.query(sql) as found:
            earlier, *_, latest = (bool(gps) for (gps,) in found.rows)
    assert (earlier, latest) == (True, False)


def test_a_list_stands_in_for_a_source(indexed: Indexed, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "n,photo\n" + "".join(f"1,{uri}\n" for uri in indexed.good[:2]) + "2,no.png\n"
    )
    options = ("--store", indexed.store, "--model", indexed.bundle.path, "--dry-run", "--json")
    done = invoke("index", "--list", tmp_path / "list.csv", "--column", "photo", *options)
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)
    assert (seen["unchanged"], seen["to_caption"], seen["skipped"]) == (2, 0, {"missing": 1})


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(indexed: Indexed, tmp_path: Path) -> None:
    photos = shutil.copytree(indexed.photos, tmp_path / "photos", copy_function=shutil.copy2)
    make_photo(photos / "new.png", 77)
    options = (
        "--store",
        indexed.store,
        "--model",
        indexed.bundle.path,
        "--dry-run",
        "--exclude",
        "new*line.png",
    )
    before = hashlib.sha256((indexed.store / "catalog.db").read_bytes()).digest()
    done, seen = watched(tmp_path / "report", "index", photos, indexed.photos, *options, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "to_caption": 4,  # the new one, and three bad ones at a place of their own
        "maybe_known": 8,
        "new": 12,
        "changed": 0,
        "unchanged": 8,
        "quarantined": 3,
        "stale": 0,
        "vanished": 0,
        "known": 12,
        "skipped": {"excluded": 2, "not_an_image": 2},
        "estimate_s": None,
    }
    assert HEAVY.isdisjoint(seen["modules"])
    assert not [path for path in seen["opened"] if path.startswith((f"{photos}/", f"{indexed.photos}/"))]
    assert hashlib.sha256((indexed.store / "catalog.db").read_bytes()).digest() == before
    # Without a catalog all is new, and none is made.
    result = invoke("index", indexed.photos, *options[2:], "--store", tmp_path / "none")
    assert result.stdout.splitlines()[0].startswith("11 to caption, 0 to hash first")
    assert not (tmp_path / "none").exists()


def test_asking_imports_neither_ray_nor_tensorflow(indexed: Indexed, tmp_path: Path) -> None:
    """One command after the other, in one process: what any of them imported would be there in the end."""
    store = ("--store", indexed.store)
    done, seen = watched(
        tmp_path / "report",
        *("--help", "--", "index", "--help"),
        *("--", "search", "dog", *store),
        *("--", "sql", "SELECT uri FROM captions", *store),
        *("--", "status", *store, "--", "verify", *store),
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: batchcap index" in done.stdout
    assert indexed.good[0] in done.stdout
    assert HEAVY.isdisjoint(seen["modules"])


# --- errors ---


def assert_one_line_error(result: Result, status: int, *words: str) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("batchcap: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_index_errors(indexed: Indexed, tmp_path: Path) -> None:
    model = ("--model", indexed.bundle.path)
    store = ("--store", tmp_path / "store")
    missing = invoke("index", tmp_path / "nowhere", *store, *model)
    assert_one_line_error(missing, 2, str(tmp_path / "nowhere"), "does not exist")
    assert not (tmp_path / "store").exists()

    (tmp_path / "empty").mkdir()
    assert_one_line_error(invoke("index", tmp_path / "empty", *store, *model), 1, "no image in")
    remote = invoke("index", indexed.photos, "--store", "s3://bucket/captions", *model)
    assert_one_line_error(remote, 2, "s3://bucket/captions", "only local folders")
    assert_one_line_error(invoke("index", "ftp://host/photos", *store, *model), 2, "ftp://host/photos")

    assert_one_line_error(invoke("index", *store, *model), 2, "no SOURCE given")
    column = invoke("index", indexed.photos, "--column", "path", *store, *model)
    assert_one_line_error(column, 2, "--column is of a --list")
    alone = invoke("index", "--query", "SELECT 1", *store, *model)
    assert_one_line_error(alone, 2, "--query and --database belong together")
    (tmp_path / "list.csv").write_text("x,y\n")
    listed = invoke("index", "--list", tmp_path / "list.csv", *store, *model)
    assert_one_line_error(listed, 2, "list.csv", "--column")

    (tmp_path / "file").touch()
    below = ("--store", tmp_path / "file" / "store")
    assert_one_line_error(invoke("index", indexed.photos, *below, *model), 1, str(tmp_path / "file"))
    beams = invoke("index", indexed.photos, *store, *model, "--num-beams", 1000)
    assert_one_line_error(beams, 2, "--num-beams 1000")
    postgres = invoke(
        "index", indexed.photos, *store, *model, "--catalog", "postgresql://me:secret@localhost:1/c"
    )
    assert_one_line_error(postgres, 1, "can't reach the catalog at postgresql://localhost:1/c")
    assert "secret" not in postgres.output


def test_a_store_is_not_shared_by_two_catalogs(indexed: Indexed, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    arguments = ("--store", indexed.store, "--model", indexed.bundle.path)
    result = invoke("index", indexed.photos, *arguments, "--catalog", other)
    assert_one_line_error(result, 1, str(indexed.store), "belongs to another catalog")


def test_a_second_index_is_refused_with_who_holds_the_catalog(indexed: Indexed) -> None:
    url = f"sqlite:///{indexed.store / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], ModelInfo("f" * 64, "other"), {}):
        done = batchcap("index", indexed.photos, "--store", indexed.store, "--model", indexed.bundle.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"batchcap: process {os.getpid()} on " in done.stderr
    assert done.stderr.count("\n") == 1


def test_models_that_do_not_work(indexed: Indexed, tmp_path: Path) -> None:
    photo = indexed.photos / "0.png"

    def both(bundle: Path, *words: str) -> None:
        store = tmp_path / f"store-{bundle.name}"
        assert_one_line_error(invoke("caption", photo, "--model", bundle), 1, *words)
        assert_one_line_error(invoke("index", photo, "--store", store, "--model", bundle), 1, *words)
        assert not store.exists()

    both(tmp_path / "nowhere", str(tmp_path / "nowhere"))
    for name in ("config.json", "vocabulary.txt", "generation.json"):
        damaged = shutil.copytree(indexed.bundle.path, tmp_path / f"damaged-{name}")
        (damaged / name).write_text("{")
        both(damaged, str(damaged / name))
    newer = shutil.copytree(indexed.bundle.path, tmp_path / "newer")
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    both(newer, str(newer), "format 99", "upgrade")
    without = shutil.copytree(indexed.bundle.path, tmp_path / "without")
    (without / "weights.safetensors").unlink()
    both(without, str(without / "weights.safetensors"), "missing")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("generation.json", {"length_penalty": "x"}),
        ("generation.json", {"length_penalty": float("nan")}),
        ("generation.json", {"max_length": 7.5}),
        ("generation.json", {"num_beams": 2.5}),
        ("config.json", {"embed_dim": 8.5}),
        ("config.json", {"sequence_length": None}),
        ("config.json", {"image": {"image_size": 64.5}}),
    ],
)
def test_a_bundle_with_values_of_a_wrong_type(
    file: str, values: dict[str, Any], indexed: Indexed, tmp_path: Path
) -> None:
    damaged = shutil.copytree(indexed.bundle.path, tmp_path / "damaged")
    content = json.loads((damaged / file).read_text())
    (content["config"] if file == "config.json" else content).update(values)
    (damaged / file).write_text(json.dumps(content))
    result = invoke("caption", indexed.photos / "0.png", "--model", damaged)
    assert_one_line_error(result, 1, str(damaged / file))


@pytest.mark.parametrize("name", ["a%41b", "what?", "#1 50%"])
def test_any_name_of_a_store_is_taken_as_it_is(name: str, indexed: Indexed, tmp_path: Path) -> None:
    store = shutil.copytree(indexed.store, tmp_path / name)
    assert invoke("status", "--store", store).exit_code == 0
    result = invoke("index", indexed.photos, "--store", store, "--model", indexed.bundle.path)
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (0, [name])


def test_a_query_may_begin_with_what_must_not_be_there(indexed: Indexed) -> None:
    result = invoke("search", "-dog", "--store", indexed.store, "--json")
    assert (result.exit_code, json.loads(result.stdout)["total"]) == (0, 0)


def test_damaged_weights(indexed: Indexed, tmp_path: Path) -> None:
    photo = indexed.photos / "0.png"
    weights = shutil.copytree(indexed.bundle.path, tmp_path / "weights") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_one_line_error(invoke("caption", photo, "--model", weights.parent), 1, str(weights), "damaged")

    # Here a worker finds it: Ray, too, would like to say something about that.
    done = batchcap("index", photo, "--store", tmp_path / "store", "--model", weights.parent, "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "pipeline"
    assert str(weights) in error["message"] and "damaged" in error["message"]
    assert done.stderr == f"batchcap: {error['message']}\n"
    assert done.stderr.count("\n") == 1
    with Catalog.open(f"sqlite:///{tmp_path / 'store' / 'catalog.db'}") as catalog:
        assert catalog.status().runs[0].state == "failed"


@pytest.mark.parametrize(
    "command", [("search", "dog"), ("sql", "SELECT 1"), ("status",), ("verify",), ("migrate",)]
)
def test_no_catalog(command: tuple[str, ...], tmp_path: Path) -> None:
    result = invoke(*command, "--store", tmp_path / "store")
    assert_one_line_error(result, 1, "no catalog at", "batchcap index")
    assert not (tmp_path / "store").exists()


def test_sql_errors(indexed: Indexed, tmp_path: Path) -> None:
    store = ("--store", indexed.store)
    assert_one_line_error(invoke("sql", "SELEKT 1", *store), 1, "the query is wrong")
    assert_one_line_error(invoke("sql", "", *store), 1, "no query")
    assert_one_line_error(invoke("sql", "DELETE FROM result", *store), 1, "only queries are allowed")
    assert_one_line_error(invoke("sql", "SELECT 1; SELECT 2", *store), 1, "more than one statement")
    assert_one_line_error(invoke("sql", "--named", "nonsense", *store), 2, "nonsense", "--list")
    assert_one_line_error(invoke("sql", *store), 2, "--named")
    assert_one_line_error(invoke("sql", "SELECT 1", "--list", *store), 2, "--named")
    assert_one_line_error(invoke("sql", "--file", tmp_path / "nowhere.sql", *store), 2, "nowhere.sql")
    (tmp_path / "blob.sql").write_bytes(b"\xff\xfe")
    assert_one_line_error(invoke("sql", "--file", tmp_path / "blob.sql", *store), 2, "UTF-8")


def test_errors_for_programs(indexed: Indexed, tmp_path: Path) -> None:
    for code, status, command in (
        ("source_not_found", 2, ("index", tmp_path / "nowhere")),
        ("catalog", 1, ("search", "dog", "--store", tmp_path / "nowhere")),
        ("query", 1, ("sql", "SELEKT", "--store", indexed.store)),
        ("catalog", 1, ("status", "--store", tmp_path / "nowhere")),
        ("bundle", 1, ("caption", indexed.photos / "0.png", "--model", tmp_path / "nowhere")),
        ("usage", 2, ("caption", tmp_path / "new\nline", "--model", indexed.bundle.path)),
        ("catalog", 1, ("migrate", "--store", tmp_path / "nowhere")),
        ("store", 1, ("verify", "--rebuild", "--store", tmp_path / "nowhere")),
        ("usage", 2, ("verify", "--force", "--store", indexed.store)),
        ("usage", 2, ("verify", "--skip-damaged", "--store", indexed.store)),
    ):
        result = invoke(*command, "--json")
        assert result.exit_code == status, result.output
        error = json.loads(result.stdout)["error"]
        assert error["code"] == code
        assert error["message"]
        assert result.stderr.count("\n") == 1


def test_what_was_not_foreseen_is_one_line_too(
    indexed: Indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A home that can't be found is as good as any.
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *args, **kwargs: 1 / 0)
    result = invoke("status")
    assert_one_line_error(result, 1, "unexpected ZeroDivisionError", "--debug")
    result = invoke("status", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


# --- answers ---


def test_status(indexed: Indexed) -> None:
    result = invoke("status", "--store", indexed.store)
    lines = result.stdout.splitlines()
    assert lines[0] == "9 images in 9 files"
    assert lines[1].startswith("9 captions by tiny (")
    assert lines[2] == "in quarantine: 1 empty, 1 truncated, 1 unsupported"
    assert lines[3] == "Parquet parts: 1 done; 0 rows not yet in a part"
    assert lines[-1].endswith(f"{indexed.photos}  9 captioned, 3 failed")

    bad = invoke("status", "--quarantine", "--store", indexed.store, "--json")
    found = json.loads(bad.stdout)["quarantine"]
    assert {Path(file["uri"]).name: file["reason"] for file in found} == BAD
    one = invoke("status", "--reason", "empty", "--store", indexed.store)
    assert one.stdout == (
        f"reason\turi\tdetail\nempty\t{indexed.photos / 'empty.jpg'}\tthe file has no bytes\n"
    )
    assert json.loads(invoke("status", "--store", indexed.store, "--json").stdout)["images"] == 9


def test_search(indexed: Indexed) -> None:
    rows = json.loads(
        invoke("sql", "SELECT uri, caption FROM captions", "--store", indexed.store, "--json").stdout
    )["rows"]
    word = rows[0][1].split()[0]
    found = json.loads(invoke("search", word, "--store", indexed.store, "--json").stdout)
    assert found["total"] == len(found["hits"]) >= 1
    assert {hit["uri"] for hit in found["hits"]} <= set(indexed.good)

    plain = invoke("search", word, "--store", indexed.store)
    assert plain.stdout.splitlines() == [
        f"{on_one_line(hit['uri'])}\t{hit['caption']}" for hit in found["hits"]
    ]
    assert plain.stderr == f"1-{found['total']} of {found['total']} found\n"
    nothing = invoke("search", "zebra", "--store", indexed.store)
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "0 found\n")


def test_search_by_likeness(indexed: Indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is known needs no model.
    known = ("search", "--like", indexed.photos / "3.png", "--store", indexed.store, "--json")
    done, seen = watched(tmp_path / "report", *known)
    assert done.returncode == 0, done.stderr
    assert HEAVY.isdisjoint(seen["modules"])
    found = json.loads(done.stdout)
    others = [uri for uri in indexed.good if uri != str(indexed.photos / "3.png")]
    assert sorted(hit["uri"] for hit in found["hits"]) == others
    assert found["hits"][0].keys() >= {"score", "camera", "latitude", "longitude"}

    again = ("index", indexed.photos, *known[3:5], "--model", indexed.bundle.path, "--vectors", "all")
    assert json.loads(invoke(*again, "--dry-run", "--json").stdout)["unchanged"] == 9

    # What is not is looked at by the model that captioned, whatever its decoding options were.
    other = make_photo(tmp_path / "other.bmp", 3)  # the same pixels
    near = ("search", "--like", other, "--store", indexed.store, "--limit", 1)
    monkeypatch.setenv("BATCHCAP_MODEL", str(indexed.bundle.path))
    assert invoke(*near).stdout.startswith(f"{indexed.photos / '3.png'}\t")
    with Catalog.open(f"sqlite:///{indexed.store / 'catalog.db'}") as catalog:
        beams = replace(indexed.bundle, generation=replace(indexed.bundle.generation, num_beams=2))
        assert _model_of(beams, catalog.vector_models()).fingerprint == indexed.bundle.fingerprint()
    assert_one_line_error(invoke(*near[:2], tmp_path / "none.png", *near[3:]), 2, "none.png: io_error")
    monkeypatch.delenv("BATCHCAP_MODEL")
    assert_one_line_error(invoke(*near), 2, "vectors are of the model tiny", "flickr8k-lite0 is not it")
    place = ("--store", tmp_path / "store")
    Catalog.open(f"sqlite:///{tmp_path / 'store' / 'catalog.db'}", mode="write").close()
    assert_one_line_error(invoke(*near[:3], *place), 2, "no image vectors", "--vectors all")


def test_sql(indexed: Indexed, tmp_path: Path) -> None:
    store = ("--store", indexed.store)
    result = invoke("sql", "SELECT uri FROM captions ORDER BY uri", *store)
    assert result.stdout.splitlines() == ["uri", *map(on_one_line, indexed.good)]
    result = invoke("sql", "SELECT 'a\tb' AS \"x\ty\", NULL", *store)
    assert result.stdout == "x\\ty\tNULL\na\\tb\t\n"
    result = invoke("sql", "SELECT 9e999, x'00ff', 'é', NULL", *store, "--json")
    assert json.loads(result.stdout)["rows"] == [["inf", "00ff", "é", None]]

    (tmp_path / "q.sql").write_text("SELECT count(*) AS files FROM captions")
    assert invoke("sql", "--file", tmp_path / "q.sql", *store).stdout == "files\n9\n"
    assert invoke("sql", "SELECT uri FROM captions", "--limit", 2, *store).stdout.count("\n") == 3
    listed = json.loads(invoke("sql", "--list", "--json").stdout)["queries"]
    assert listed
    assert invoke("sql", "--list").stdout.count("\n") == len(listed) + 1
    for query in listed:
        result = invoke("sql", "--named", query["name"], *store, "--json")
        assert result.exit_code == 0, result.stderr
        assert set(json.loads(result.stdout)) == {"columns", "rows"}


def test_output_that_nobody_reads_to_its_end(indexed: Indexed) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT i FROM n"
    command = [Path(sys.executable).with_name("batchcap"), "sql", sql, "--store", indexed.store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"i\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_an_encoding_that_lacks_a_character_is_no_error(indexed: Indexed) -> None:
    done = batchcap("sql", "SELECT uri FROM captions", "--store", indexed.store, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dog \\U0001f436.png" in done.stdout


def test_caption(indexed: Indexed, tmp_path: Path) -> None:
    odd = os.fsencode(indexed.photos) + b"/latin-\xe9.png"
    good, bad = [indexed.photos / "2.png", indexed.photos / ODD[0]], indexed.photos / "empty.jpg"
    arguments = ("caption", good[0], bad, odd, good[1], "--model", indexed.bundle.path)
    done = batchcap(*arguments, "--json")
    assert done.returncode == 3
    assert done.stderr == ""
    captions = json.loads(done.stdout)["captions"]
    assert [caption["image"] for caption in captions] == [
        str(good[0]), str(bad), os.fsdecode(odd), str(good[1])
    ]  # fmt: skip
    assert captions[1] == {"image": str(bad), "reason": "empty", "detail": "the file has no bytes"}
    url = f"sqlite:///{indexed.store / 'catalog.db'}"
    sql = "SELECT uri, caption FROM captions"
    with Catalog.open(url) as catalog, catalog.query(sql) as result:
        in_catalog = dict(result.rows)
    assert captions[0]["caption"] == in_catalog[str(good[0])]
    assert captions[3]["caption"] == in_catalog[str(good[1])]

    lines = invoke(*map(os.fsdecode, map(os.fspath, arguments)))
    assert lines.exit_code == 3
    assert lines.stderr == f"batchcap: {bad}: empty: the file has no bytes\n"
    assert lines.stdout.splitlines() == [
        f"{on_one_line(caption['image'])}\t{caption['caption']}"
        for caption in captions
        if "caption" in caption
    ]


def test_migrate(indexed: Indexed) -> None:
    result = invoke("migrate", "--store", indexed.store)
    assert (result.exit_code, result.stdout) == (0, "the catalog was up to date\n")
    assert json.loads(invoke("migrate", "--store", indexed.store, "--json").stdout) == {"migrated": False}


def test_verify(indexed: Indexed, tmp_path: Path) -> None:
    store = shutil.copytree(indexed.store, tmp_path / "store")
    result = invoke("verify", "--store", store)
    assert (result.exit_code, result.stdout) == (0, "1 Parquet file compared, 9 rows equal\n")
    assert json.loads(invoke("verify", "--store", store, "--json").stdout) == {
        "parts": 1, "rows": 9, "pending_parts": 0, "unsealed_rows": 0, "counts": {}, "findings": []
    }  # fmt: skip

    (part,) = (store / "captions").iterdir()
    other = part.rename(part.with_name("new\nname.parquet"))
    words = (
        "catalog and Parquet files disagree: 1 part_missing, 1 orphan; put a copy of the file back, "
        "or write it again from the catalog: batchcap verify --repair"
    )
    result = invoke("verify", "--store", store)
    assert (result.exit_code, result.stderr) == (1, f"batchcap: {words}\n")
    assert result.stdout.splitlines() == [
        "1 Parquet file compared, 0 rows equal",
        "finding\twhere\twhat",
        f"part_missing\t{part}\t9 rows are in the catalog alone",
        f"orphan\t{on_one_line(other)}\tthe catalog knows no such part",
    ]
    result = invoke("verify", "--store", store, "--json")
    assert (result.exit_code, result.stderr) == (1, f"batchcap: {words}\n")
    found = json.loads(result.stdout)
    assert found["error"] == {"code": "verification", "message": words}
    assert found["counts"] == {"orphan": 1, "part_missing": 1}
    assert found["findings"][1] == {
        "kind": "orphan", "subject": str(other), "detail": "the catalog knows no such part"
    }  # fmt: skip

    with (store / "catalog.db").open("r+b") as file:
        file.write(b"no database")
    assert_one_line_error(invoke("verify", "--store", store), 1, "not an SQLite database", "verify --rebuild")


def test_verify_counts_what_is_not_yet_in_parquet(indexed: Indexed, tmp_path: Path) -> None:
    store = shutil.copytree(indexed.store, tmp_path / "store")
    url = f"sqlite:///{store / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], ModelInfo("f" * 64, "other"), {}) as run:
        row = Captioned("/new", 1, 1, None, "new", 1, 1, "PNG", None, "a dog", None, None, None)
        run.commit([row])
        catalog.assign_part(run.id)
        run.commit([replace(row, uri="/newer")])
    assert invoke("verify", "--store", store).stdout.splitlines() == [
        "1 Parquet file compared, 9 rows equal",
        "not yet in Parquet: 1 file to be written, 1 row in none; the next run writes them",
    ]


def test_verify_rebuild(indexed: Indexed, tmp_path: Path) -> None:
    store = shutil.copytree(indexed.store, tmp_path / "store")
    assert_one_line_error(invoke("verify", "--rebuild", "--store", store), 1, "is not damaged", "--force")
    result = invoke("verify", "--rebuild", "--force", "--store", store)
    (aside,) = store.glob("*.replaced-*")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "made again from 1 Parquet file with 9 rows",
            f"the old catalog is {aside} now",
            "the next `batchcap index` reads each file once, to see that it is what was captioned",
        ],
    )
    (store / "catalog.db").unlink()
    # What people try first.
    result = invoke("index", indexed.photos, "--store", store, "--model", indexed.bundle.path)
    assert_one_line_error(result, 1, "belongs to another catalog", "batchcap verify --rebuild")
    result = invoke("verify", "--rebuild", "--store", store, "--json")
    report = json.loads(result.stdout)
    assert (report["parts"], report["rows"], report["damaged"]) == (1, 9, [])
    assert Path(report["aside"]) in set(store.glob("*.replaced-*")) - {aside}
    assert invoke("verify", "--store", store).exit_code == 0
    sql = ("sql", "SELECT uri, caption, confidence, captioned_at FROM captions ORDER BY uri", "--store")
    assert invoke(*sql, store).stdout == invoke(*sql, indexed.store).stdout


# --- console ---


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("plain é \U0001f436", "plain é \U0001f436"),
        ("a\nb\tc\rd\\e", r"a\nb\tc\rd\\e"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\udce9 \u2028", r"\udce9 \u2028"),
        (1.5, "1.5"),
    ],
)
def test_on_one_line(value: object, line: str) -> None:
    assert on_one_line(value) == line


def test_print_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("no\nline \\ break \udce9")
    assert capsys.readouterr().err == "batchcap: no\\nline \\ break \\udce9\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.print_hits([SearchHit("/a\nb.png", "a dog runs", None, "model", 1, 1, 1.0, ((2, 5),))])
    assert "a \x1b[1;32mdog\x1b[0m runs" in terminal.getvalue()
    assert "/a\\nb.png" in terminal.getvalue()
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.print_rows(["uri", "n"], [("[bold]", 1)])
    assert "━━━" in terminal.getvalue()
    assert "[bold]" in terminal.getvalue()


def test_colours_are_off_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.print_hits([SearchHit("/a.png", "a dog runs", None, "model", 1, 1, 1.0, ((2, 5),))])
    with ProgressBar() as progress:
        progress.plan(2)
        progress.advance(1, 1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("/a.png\ta dog runs\n", "")


def test_a_terminal_gets_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with ProgressBar() as progress:
        progress.plan(3)
        progress.plan(1)
        progress.advance(2, 1)
    assert "2/4" in terminal.getvalue()
    assert "1 quarantined" in terminal.getvalue()


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (RunReport(unchanged=1200, total_s=0.04), ["0 captioned, 1,200 unchanged, 0.0 s"]),
        (
            RunReport(captioned=64, timed_files=32, captioning_s=2.0, total_s=9.26),
            ["64 captioned (16.0 images/s), 0 unchanged, 9.3 s"],
        ),
        (
            RunReport(
                captioned=1,
                known=2,
                unchanged=3,
                quarantined=Counter(truncated=1, empty=4),
                still_quarantined=5,
                stale=6,
                vanished=8,
                moved=1,
                skipped=Counter(hidden=7),
            ),
            [
                "1 captioned, 2 moved, copied or touched, 3 unchanged, 0.0 s",
                "4 empty, 1 truncated in quarantine: see batchcap status --quarantine",
                "5 in quarantine from earlier, not tried again",
                "6 captioned by another model: --recaption does them again",
                "8 vanished, 1 of them moved",
                "skipped: 7 hidden",
            ],
        ),
    ],
)
def test_summary(report: RunReport, lines: list[str]) -> None:
    assert summary(report).splitlines() == lines


def test_preview_summary() -> None:
    preview = Preview(
        to_caption=5000,
        maybe_known=2,
        new=5001,
        changed=1,
        unchanged=3,
        quarantined=4,
        stale=5,
        vanished=6,
        known=7,
        skipped=Counter(excluded=8),
        estimate_s=65.4,
    )
    assert preview_summary(preview).splitlines() == [
        "5,000 to caption (about 0:01:05 at the pace of the latest run), 2 to hash first: moved or copied?",
        "of these 5,001 new, 1 changed; 3 unchanged",
        "4 in quarantine, not to be tried again",
        "5 captioned by another model",
        "6 of 7 known files are gone",
        "skipped: 8 excluded",
    ]
