"""docs/backup.md is done as it is written, on both databases: a backup beside a run, and its restoring."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchcap.catalog import Catalog, FindingKind
from batchcap.pipeline import Progress, index_collection
from batchcap.run_options import IndexOptions
from batchcap.verify import verify_store
from tests.conftest import make_photo
from tests.costless import Costless
from tests.postgresql import Server

PAGE = (Path(__file__).parents[1] / "docs" / "backup.md").read_text(encoding="utf-8")
# What the shell blocks say of themselves in their first lines.
SQLITE, POSTGRESQL, BOTH = "# SQLite", "# PostgreSQL", "# then, for both"


def blocks(section: str, kinds: tuple[str, ...]) -> list[str]:
    """The shell blocks of a section of the page that are of these kinds."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return [block for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) if block.startswith(kinds)]


def run(block: str, **env: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-eu", "-c", block], env=os.environ | {"PATH": path} | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class BackUpMeanwhile(Progress):
    """Makes the first half of a backup after the first commit of a run, and waits for it."""

    def __init__(self, block: str, env: dict[str, str]) -> None:
        self._block, self._env, self.made_at = block, env, 0

    def advance(self, files: int, quarantined: int) -> None:
        if not self.made_at:
            run(self._block, **self._env)
            self.made_at = files


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_backup_beside_a_run_is_restored(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    program = "sqlite3" if database == "sqlite" else "pg_restore"
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    photos, store, backup, restored = (tmp_path / name for name in ("photos", "store", "backup", "restored"))
    for folder in (photos, store, backup):
        folder.mkdir()
    for number in range(6):
        make_photo(photos / f"{number}.jpg", number)
    if database == "sqlite":
        kind, old, new = SQLITE, f"sqlite:///{store}/catalog.db", f"sqlite:///{restored}/catalog.db"
    else:
        server: Server = request.getfixturevalue("postgres_server")
        kind, (old, new) = POSTGRESQL, (server.url(server.new_database()) for _ in range(2))
    env = {"STORE": str(store), "BACKUP": str(backup), "DATABASE": old.replace("+psycopg", "")}
    back_up_catalog, back_up_files = blocks("Back up", (kind, BOTH))
    options = IndexOptions(wave_size=2)

    with Catalog.open(old, mode="write") as catalog:
        # One part before the backup, and captions that are in none yet while it is made.
        index_collection([str(photos)], catalog, store, Costless(), options=options)
        catalog.write_captions([(str(photos / "0.jpg"), "Rex")])
        for number in range(6, 12):
            make_photo(photos / f"{number}.jpg", number)
        meanwhile = BackUpMeanwhile(back_up_catalog, env)
        report = index_collection(
            [str(photos)], catalog, store, Costless(), options=options, progress=meanwhile
        )
        run(back_up_files, **env)
        assert (report.captioned, 0 < meanwhile.made_at < 6) == (6, True)
        shown = dict(rows(catalog))

    (restore,) = blocks("Restore", (kind,))
    run(restore, **env | {"STORE": str(restored), "DATABASE": new.replace("+psycopg", ""), "CATALOG": new})
    with Catalog.open(new, mode="write") as catalog:
        found = verify_store(catalog, restored)
        # What the run wrote after the catalog was copied.
        assert [finding.kind for finding in found.findings] == [FindingKind.ORPHAN]
        Path(found.findings[0].subject).rename(tmp_path / "moved away.parquet")
        assert verify_store(catalog, restored).findings == []
        known = dict(rows(catalog))
        assert len(known) == 6 + meanwhile.made_at
        assert known.items() <= shown.items()
        # Nothing is captioned again, and the run that was cut off is gone on with.
        report = index_collection([str(photos)], catalog, restored, Costless())
        assert (report.captioned, report.unchanged) == (12 - len(known), len(known))
        assert dict(rows(catalog)) == shown
        found = verify_store(catalog, restored)
        assert (found.findings, found.rows, found.unsealed_rows) == ([], 13, 0)
        report = index_collection([str(photos)], catalog, restored, Costless())
        assert (report.captioned, report.unchanged) == (0, 12)


def rows(catalog: Catalog) -> list[tuple[str, str]]:
    """What is shown; through the role that `sql` needs."""
    with catalog.query("SELECT uri, caption FROM captions ORDER BY uri") as result:
        return [(uri, caption) for uri, caption in result.rows]
