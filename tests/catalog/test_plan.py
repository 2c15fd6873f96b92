"""The plan: who is captioned, who is hashed first, and who is left alone."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo, Wave, plan
from batchcap.collection import FileEntry
from batchcap.errors import Reason


def one_wave(catalog: Catalog, entries, fingerprint: str, **options) -> Wave:
    (wave,) = catalog.plan(entries, fingerprint, **options)
    return wave


def test_an_empty_scan_has_no_wave(catalog: Catalog) -> None:
    assert list(catalog.plan([], "f")) == []


def test_what_is_the_same_is_only_counted(catalog: Catalog, model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a"), captioned("/b", etag="x"), captioned("/c", etag="x")])
    entries = [entry("/a"), entry("/b", mtime_ns=9, etag="x"), entry("/c", etag="y"), entry("/d", 7)]
    wave = one_wave(catalog, entries, model.fingerprint)
    assert wave == Wave([entries[3]], [entries[2]], unchanged=2, new=1, changed=1)


def test_a_size_and_a_time_that_are_known_are_hashed_first(catalog: Catalog, model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    entries = [entry("/b", 100), entry("/c", 101)]
    assert one_wave(catalog, entries, model.fingerprint) == Wave([entries[1]], [entries[0]], new=2)


def test_it_is_told_early_that_something_is_to_be_captioned(
    catalog: Catalog, model, captioned, entry
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    told: list[str] = []
    scanned: list[str] = []

    def entries(*uris: str):
        for number, uri in enumerate(uris):
            scanned.append(uri)
            # `/a` is done; `/b` has a size that is known, so that it may be a copy.
            yield entry(uri, 100 if uri < "/c" else 101 + number)

    def on_todo() -> None:
        told.append(scanned[-1])

    known = catalog.plan(entries("/a", "/b"), model.fingerprint, on_todo=on_todo)
    assert [len(wave.maybe_known) for wave in known] == [1]
    assert told == []
    more = ["/a", "/b", *(f"/c{number:04}" for number in range(3000))]
    (wave,) = catalog.plan(entries(*more), model.fingerprint, on_todo=on_todo)
    assert len(wave.todo) == 3000
    # Of each, and while most of the scan was still to come.
    assert len(told) == 3000 and told[0] < "/c1000"


def test_a_file_that_came_back_is_hashed_first(
    catalog: Catalog, other_program, model, captioned, entry
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    other_program("UPDATE location SET vanished_at = '2026-01-01 00:00:00.000000'")
    assert catalog.search("dog").total == 0
    assert one_wave(catalog, [entry("/a")], model.fingerprint) == Wave([], [entry("/a")], new=1)
    with catalog.run(["/"], model, {}) as run:
        run.commit_known([(entry("/a"), "hash of /a")])
    assert one_wave(catalog, [entry("/a")], model.fingerprint) == Wave(unchanged=1)
    assert catalog.search("dog").total == 1


def test_another_model_makes_stale_and_recaption_does_them(
    catalog: Catalog, model, other_model, captioned, entry
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    assert one_wave(catalog, [entry("/a")], other_model.fingerprint) == Wave(unchanged=1, stale=1)
    wave = one_wave(catalog, [entry("/a")], other_model.fingerprint, recaption=True)
    assert wave == Wave([entry("/a")], stale=1)


@pytest.mark.parametrize(
    ("reason", "attempts", "retry", "tried"),
    [
        (Reason.UNREADABLE, 1, [], False),
        (Reason.UNREADABLE, 1, [Reason.UNREADABLE], True),
        (Reason.IO_ERROR, 9, [], True),
        (Reason.TIMEOUT, 2, [], True),
        (Reason.TIMEOUT, 3, [], False),
        (Reason.WORKER_CRASH, 3, [], False),
        (Reason.WORKER_CRASH, 3, [Reason.WORKER_CRASH], True),
    ],
)
def test_who_leaves_the_quarantine(
    catalog: Catalog, model, failure, entry, reason, attempts, retry, tried
) -> None:
    with catalog.run(["/"], model, {}) as run:
        for _ in range(attempts):
            run.commit([], [failure("/a", reason)])
    wave = one_wave(catalog, [entry("/a")], model.fingerprint, retry=retry)
    assert wave == (Wave([entry("/a")], new=1) if tried else Wave(quarantined=1))
    changed = entry("/a", mtime_ns=2)
    assert one_wave(catalog, [changed], model.fingerprint).todo == [changed]


@pytest.mark.parametrize("reason", Reason)
def test_a_file_that_is_what_it_was_again_leaves_the_quarantine(
    catalog: Catalog, model, other_model, captioned, failure, entry, reason
) -> None:
    old, broken = entry("/a"), entry("/a", mtime_ns=2)
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
        run.commit([], [failure("/a", reason, mtime_ns=2)] * plan.MAX_ATTEMPTS)
    wave = one_wave(catalog, [broken], model.fingerprint)
    assert wave.quarantined == (reason is not Reason.IO_ERROR)
    # With another model, too: its caption is stale, but good enough.
    for later in (model, other_model):
        assert one_wave(catalog, [old], later.fingerprint).maybe_known == [old]
    with catalog.run(["/"], other_model, {}) as run:
        assert run.commit_known([(old, "hash of /a")]) == []
    assert catalog.quarantine() == []
    assert catalog.search("dog").total == 1
    assert one_wave(catalog, [old], model.fingerprint) == Wave(unchanged=1)


def test_going_back_to_an_earlier_model_costs_no_inference(
    catalog: Catalog, model, other_model, captioned, entry
) -> None:
    entries = [entry("/a"), entry("/b")]
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", "a dog")])
    with catalog.run(["/"], other_model, {}) as run:
        run.commit([captioned("/a", "a wolf"), captioned("/b", "a wolf")])
    assert one_wave(catalog, entries, model.fingerprint) == Wave(unchanged=2, stale=2)
    wave = one_wave(catalog, entries, model.fingerprint, recaption=True)
    # Only what this model has captioned is hashed.
    assert wave == Wave([entries[1]], [entries[0]], stale=2)
    with catalog.run(["/"], model, {}) as run:
        assert run.commit_known([(entries[0], "hash of /a")], recaption=True) == []
    wave = one_wave(catalog, entries, model.fingerprint, recaption=True)
    assert wave == Wave([entries[1]], unchanged=1, stale=1)
    assert [hit.uri for hit in catalog.search("dog").hits] == ["/a"]


def test_a_file_that_kills_the_new_model_is_not_tried_for_ever(
    catalog: Catalog, model, other_model, captioned, failure, entry
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    with catalog.run(["/"], other_model, {}) as run:
        run.commit([], [failure("/a", Reason.UNREADABLE)])
    wave = one_wave(catalog, [entry("/a")], other_model.fingerprint, recaption=True)
    assert wave == Wave(quarantined=1, stale=1)


def test_waves_are_bounded_and_complete(catalog: Catalog, model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{number:04d}", size_bytes=number) for number in range(0, 3000, 3)])
        entries = [entry(f"/{number:04d}", number) for number in range(3000)]
        seen: list[FileEntry] = []
        waves = []
        for wave in catalog.plan(entries, model.fingerprint, wave_size=300):
            waves.append(wave)
            # What a wave commits doesn't confuse the next.
            run.commit([captioned(e.uri, size_bytes=e.size_bytes) for e in wave.todo + wave.maybe_known])
            seen += wave.todo + wave.maybe_known
    assert [len(w.todo) + len(w.maybe_known) for w in waves] == [300] * 6 + [200]
    assert sum(w.unchanged for w in waves) == 1000
    assert seen == [e for e in entries if int(e.uri[1:]) % 3]
    assert one_wave(catalog, entries, model.fingerprint) == Wave(unchanged=3000)


@pytest.mark.parametrize(("patience_s", "sizes"), [(0.0, [3, 5, 1]), (math.inf, [5, 4])])
def test_the_first_wave_is_what_is_found_at_once(
    catalog: Catalog, entry, patience_s: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_FIRST_WAVE", 3)
    monkeypatch.setattr(plan, "_FIRST_WAVE_S", patience_s)
    waves = catalog.plan([entry(f"/{number}") for number in range(9)], "f", wave_size=5)
    assert [len(wave.todo) for wave in waves] == sizes


def test_a_copy_of_an_earlier_wave_is_hashed_first(catalog: Catalog, model, captioned, entry) -> None:
    entries = [entry("/a", 5), entry("/b", 5)]
    with catalog.run(["/"], model, {}) as run:
        waves = catalog.plan(entries, model.fingerprint, wave_size=1)
        assert next(waves).todo == [entries[0]]
        run.commit([captioned("/a", size_bytes=5)])
        assert next(waves).maybe_known == [entries[1]]


def test_a_copy_in_the_same_wave_waits_for_the_next(catalog: Catalog, model, captioned, entry) -> None:
    """Else a folder that was put aside for safety would be captioned twice by the first run."""
    entries = [
        entry("/a/1.jpg", 5),
        entry("/a/2.jpg", 5),
        entry("/b/1.jpg", 5),
        entry("/b/2.jpg", 6),
        entry("/c/1.jpg", 5),
        entry("/c/2.jpg", 5),
    ]
    waves = list(catalog.plan(entries, model.fingerprint))
    assert waves == [
        Wave(todo=[entries[0], entries[1], entries[3]], new=6),
        Wave(same_size=[entries[2], entries[4], entries[5]]),
    ]
    # Waves are bounded all the same, and nothing is lost between them.
    for wave_size in range(1, 7):
        waves = list(catalog.plan(entries, model.fingerprint, wave_size=wave_size))
        found = [entry for wave in waves for entry in (*wave.todo, *wave.same_size)]
        assert sorted(found, key=lambda entry: entry.uri) == entries
        assert max(wave.size for wave in waves) <= wave_size
        assert sum(wave.new for wave in waves) == len(entries)
    # Where one of them is captioned by then, the others may be known for sure.
    with catalog.run(["/"], model, {}) as run:
        planned = catalog.plan(entries, model.fingerprint, wave_size=3)
        assert next(planned).todo == entries[:2]
        run.commit([captioned("/a/1.jpg", size_bytes=5), captioned("/a/2.jpg", size_bytes=5)])
        wave = next(planned)
        assert (wave.todo, wave.same_size, wave.maybe_known) == (
            [entries[3]],
            [entries[2]],
            [entries[4]],
        )


@pytest.mark.parametrize("most", [0, 2])
def test_a_size_alone_makes_no_copy(
    catalog: Catalog, model, captioned, entry, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the whole collection has it: then more is not looked at."""
    monkeypatch.setattr(plan, "_MOST_OF_A_SIZE", most)
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a/one", size_bytes=100, mtime_ns=1), captioned("/a/two", size_bytes=7)])
        # What was there before is an image still.
        run.commit([captioned("/a/two", content="another", size_bytes=8)])
    other, touched, renamed, larger, replaced = (
        entry("/b/other", 100, mtime_ns=2),
        entry("/c/one", 100, mtime_ns=2),
        entry("/d/new", 100, mtime_ns=1),
        entry("/e/one", 101, mtime_ns=1),
        entry("/f/two", 7, mtime_ns=1),
    )
    wave = one_wave(catalog, [other, touched, renamed, larger, replaced], model.fingerprint)
    if most:
        assert (wave.maybe_known, wave.same_size) == ([touched, renamed], [other, replaced])
    else:
        assert (wave.maybe_known, wave.same_size) == ([other, touched, renamed, replaced], [])


def test_a_scan_of_little_reads_little(catalog: Catalog, model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{number:05d}") for number in range(2000)])
    read = []

    def page(connection, first_uri: str, rows: int):
        found = plan._location_page(connection, first_uri, rows, fingerprint="f")
        read.append(len(found))
        return found

    rows = plan._SortedRows(catalog._database, page)
    assert rows.find("/00100").uri == "/00100"
    assert rows.find("/01900").uri == "/01900"
    assert rows.find("/01900x") is None
    assert sum(read) <= 2 * plan._FIRST_PAGE_ROWS


def test_the_scan_must_be_sorted(catalog: Catalog, entry) -> None:
    with pytest.raises(ValueError, match="sorted by uri"):
        list(catalog.plan([entry("/b"), entry("/a")], "f"))
    assert one_wave(catalog, [entry("/a"), entry("/a")], "f").new == 1
    with pytest.raises(ValueError, match="wave_size"):
        list(catalog.plan([entry("/a")], "f", wave_size=0))


MODELS = [ModelInfo("model one", "one"), ModelInfo("model two", "two")]
# Few letters, so that files meet; among them those on which UTF-8 and UTF-16 disagree about the order.
URIS = st.text(alphabet="ab/Z\u00c5\u030a\ufb01\U0001f600", max_size=3)


@dataclass
class Naive:
    """The catalog as dictionaries and a set; of the models that captioned a content the last is live."""

    locations: dict[str, tuple[int, int, str]]
    vanished: set[str]
    captions: dict[str, list[str]]
    quarantine: dict[str, tuple[int, int, Reason, int]]

    def waves(
        self, entries: list[FileEntry], fingerprint: str, retry: set[Reason], recaption: bool
    ) -> list[Wave]:
        wave, twins = Wave(), Wave()
        seen: set[tuple[int, str]] = set()
        evidence = {
            (int(content.partition(":")[0]), what)
            for uri, (_, mtime, content) in self.locations.items()
            for what in (mtime, uri.rpartition("/")[2])
        }
        for entry in entries:
            identity = (entry.size_bytes, entry.mtime_ns)
            known = self.locations.get(entry.uri)
            there = known is not None and entry.uri not in self.vanished
            same = there and known[:2] == identity
            stale = same and self.captions[known[2]][-1] != fingerprint
            wave.stale += stale
            failed = self.quarantine.get(entry.uri)
            if same and not (recaption and stale) and (failed is None or failed[:2] == identity):
                wave.unchanged += 1
                continue
            size, mtime, reason, attempts = failed or (0, 0, Reason.EMPTY, 0)
            again = (
                reason in retry
                or reason is Reason.IO_ERROR
                or (reason in (Reason.TIMEOUT, Reason.WORKER_CRASH) and attempts < 3)
            )
            if (size, mtime) == identity and not again:
                wave.quarantined += 1
                continue
            wave.new += not there
            wave.changed += there and not (recaption and stale)
            name = entry.uri.rpartition("/")[2]
            if recaption and stale:
                where = wave.maybe_known if fingerprint in self.captions[known[2]] else wave.todo
            elif known is not None or not evidence.isdisjoint({(entry.size_bytes, name), identity}):
                where = wave.maybe_known
            elif entry.size_bytes in {int(content.partition(":")[0]) for content in self.captions}:
                where = wave.same_size
            elif (entry.size_bytes, name) in seen:
                where = twins.same_size
            else:
                where = wave.todo
                seen.add((entry.size_bytes, name))
            where.append(entry)
        return [wave, twins] if twins.size else [wave]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_merge_equals_a_naive_one(data, empty_catalog: Path, tmp_path_factory) -> None:
    path = shutil.copy(empty_catalog, tmp_path_factory.mktemp("plan") / "catalog.db")
    check_merge(data, f"sqlite:///{path}")


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_merge_equals_a_naive_one_in_postgresql(data, postgres_catalogs) -> None:
    check_merge(data, postgres_catalogs.new())


def check_merge(data, url: str) -> None:
    naive = Naive({}, set(), {}, {})
    # Few files, so that one is captioned, fails and is scanned again.
    uris = data.draw(st.lists(URIS, min_size=1, max_size=8, unique=True))
    files = st.tuples(st.sampled_from(uris), st.integers(1, 3), st.integers(1, 2))
    with Catalog.open(url, mode="write") as catalog:
        for model in data.draw(st.permutations(MODELS + MODELS)):
            captioned, failures = [], []
            for uri, size, mtime in data.draw(st.lists(files, max_size=12)):
                content = f"{size}:{data.draw(st.sampled_from('xy'))}"
                captioned.append(
                    Captioned(uri, size, mtime, None, content, 1, 1, "PNG", None, "a dog", None, None, None)
                )
                naive.locations[uri] = (size, mtime, content)
                naive.vanished.discard(uri)
                models = naive.captions.setdefault(content, [])
                naive.captions[content] = [m for m in models if m != model.fingerprint] + [model.fingerprint]
                naive.quarantine.pop(uri, None)
            for uri, size, mtime in data.draw(st.lists(files, max_size=8)):
                reason = data.draw(st.sampled_from(Reason))
                failures.append(Failure(uri, size, mtime, None, reason, ""))
                before = naive.quarantine.get(uri, (0, 0, reason, 0))
                attempts = before[3] + 1 if before[:2] == (size, mtime) else 1
                naive.quarantine[uri] = (size, mtime, reason, attempts)
                of_content = reason not in (Reason.IO_ERROR, Reason.TIMEOUT, Reason.WORKER_CRASH)
                if of_content and uri in naive.locations and naive.locations[uri][:2] != (size, mtime):
                    naive.vanished.add(uri)
            with catalog.run(["/"], model, {}) as run:
                run.commit(captioned, failures)
        scanned = data.draw(st.lists(files, unique_by=lambda file: file[0], max_size=20))
        entries = sorted((FileEntry(*file) for file in scanned), key=lambda entry: entry.uri)
        retry = data.draw(st.sets(st.sampled_from(Reason), max_size=2))
        recaption = data.draw(st.booleans())
        fingerprint = data.draw(st.sampled_from(MODELS)).fingerprint
        waves = list(catalog.plan(entries, fingerprint, retry=retry, recaption=recaption))
    assert (waves or [Wave()]) == naive.waves(entries, fingerprint, retry, recaption)
