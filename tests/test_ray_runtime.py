"""The two stages and how Ray runs them."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from batchcap.captioner.images import decode_image
from batchcap.collection import FileEntry
from batchcap.errors import PipelineError
from batchcap.pipeline import IndexOptions
from batchcap.ray_runtime import (
    CAPTIONED_SCHEMA,
    FILE_SCHEMA,
    LOADED_SCHEMA,
    CaptionWorker,
    LoadImages,
    Resources,
    _cause,
    build_dataset,
    caption_files,
    share_out,
)
from tests.conftest import make_photo
from tests.costless import Costless
from tests.processes import descendants, ends, title


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (1, 0, Resources(caption_workers=1, gpus_per_worker=0, threads_per_worker=1, loaders=1)),
        (2, 0, Resources(caption_workers=1, gpus_per_worker=0, threads_per_worker=2, loaders=1)),
        (16, 0, Resources(caption_workers=4, gpus_per_worker=0, threads_per_worker=4, loaders=8)),
        (16, 2, Resources(caption_workers=2, gpus_per_worker=1, threads_per_worker=8, loaders=8)),
        (4, 8, Resources(caption_workers=8, gpus_per_worker=1, threads_per_worker=1, loaders=2)),
    ],
)
def test_share_out(cpus: int, gpus: int, expected: Resources) -> None:
    assert share_out(cpus, gpus) == expected


def entry_of(path: Path) -> FileEntry:
    return FileEntry(str(path), path.stat().st_size, path.stat().st_mtime_ns)


def table_of(*paths: Path) -> pa.Table:
    rows = [
        {"uri": str(path), "size_bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
        for path in paths
    ]
    return pa.Table.from_pylist(rows, schema=FILE_SCHEMA)


def worker(source: Costless) -> CaptionWorker:
    return CaptionWorker(source, source.fingerprint(), batch_size=8, num_threads=1)


def test_a_model_that_changed_since_the_run_began_is_refused() -> None:
    """Its captions would stand under the fingerprint of the one that the run was planned with."""
    with pytest.raises(PipelineError, match="the model costless has changed since the run began"):
        CaptionWorker(Costless(), Costless(name="older").fingerprint(), batch_size=8, num_threads=1)


@pytest.mark.usefixtures("local_ray")
def test_patience_outlasts_a_block_of_files_that_all_hang() -> None:
    """A block, 64 files at most, is tried at once and then file by file, before any of its rows is seen."""
    rows = [{"uri": f"/{number}.jpg", "size_bytes": 1, "mtime_ns": 1} for number in range(1000)]
    files = pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
    for timeout_s in (1.0, 60.0, 600.0):
        options = IndexOptions(decode_timeout_s=timeout_s)
        dataset = build_dataset(files, Costless(), Costless().fingerprint(), options, share_out(2, 0))
        assert dataset.context.execution_no_progress_timeout_s >= max(300, 65 * timeout_s)


def test_stages_turn_files_into_captions_and_reasons(tmp_path: Path) -> None:
    good, bad = make_photo(tmp_path / "good.png", 1), tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    load = LoadImages(Costless(), 30.0)
    loaded = load(table_of(bad, good))
    assert loaded.schema == LOADED_SCHEMA
    assert loaded["reason"].to_pylist() == ["unsupported", None]
    assert loaded["pixels"].is_valid().to_pylist() == [False, True]

    captioned = worker(Costless())(loaded)
    assert captioned.schema == CAPTIONED_SCHEMA
    pixels = decode_image(good.read_bytes(), Costless().image_spec)
    assert captioned["text"].to_pylist() == [None, Costless().caption_one(pixels).text]
    assert captioned["uri"].to_pylist() == [str(bad), str(good)]
    assert captioned.to_pylist()[1]["width"] == 80


def test_a_captioner_is_not_asked_about_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    loaded = LoadImages(Costless(), 30.0)(table_of(tmp_path / "empty.jpg"))
    captioned = worker(Costless(fails=True))(loaded)
    assert captioned["reason"].to_pylist() == ["empty"]


class Forgetful(Costless):
    def caption(self, images: list[np.ndarray]) -> list:  # type: ignore[override,type-arg]
        return super().caption(images)[1:]


def test_a_captioner_that_loses_an_image_is_refused(tmp_path: Path) -> None:
    loaded = LoadImages(Costless(), 30.0)(table_of(make_photo(tmp_path / "one.png", 1)))
    with pytest.raises(PipelineError, match="0 captions for 1 images"):
        worker(Forgetful())(loaded)


@pytest.mark.usefixtures("local_ray")
def test_stages_are_operators_of_their_own(photos: Path) -> None:
    files = table_of(*sorted(photos.iterdir()))
    dataset = build_dataset(files, Costless(), Costless().fingerprint(), IndexOptions(), share_out(2, 0))
    stats = dataset.materialize().stats()
    assert "MapBatches(LoadImages):" in stats
    assert "MapBatches(CaptionWorker):" in stats
    assert "MapBatches(LoadImages)->" not in stats


@pytest.mark.usefixtures("local_ray")
def test_settings_of_the_process_are_left_alone(photos: Path) -> None:
    before = ray.data.DataContext.get_current().copy()
    build_dataset(
        table_of(photos / "000.jpg"), Costless(), Costless().fingerprint(), IndexOptions(), share_out(2, 0)
    )
    assert ray.data.DataContext.get_current().execution_no_progress_timeout_s == (
        before.execution_no_progress_timeout_s
    )


@pytest.mark.usefixtures("local_ray")
def test_a_killed_worker_loses_nothing(photos: Path, tmp_path: Path) -> None:
    entries = [entry_of(path) for path in sorted(photos.iterdir())]
    died = tmp_path / "died"
    batches = list(caption_files(entries, Costless(dies_once=died), Costless().fingerprint(), IndexOptions()))
    assert died.exists()
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert sorted(row["uri"] for row in rows) == [entry.uri for entry in entries]
    assert all(row["text"] for row in rows)


@pytest.mark.usefixtures("local_ray")
def test_a_failing_captioner_stops_the_run_with_one_line(photos: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        list(
            caption_files(
                [entry_of(photos / "000.jpg")], Costless(fails=True), Costless().fingerprint(), IndexOptions()
            )
        )
    assert str(caught.value) == (
        "captioning stopped: ValueError: the captioner is; run again to go on from here"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.usefixtures("local_ray")
def test_no_worker_outlives_its_run(photos: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(200)]
    for path in paths:
        path.hardlink_to(photos / "000.jpg")
    before = set(descendants(os.getpid()))
    batches = caption_files(
        [entry_of(path) for path in paths], Costless(), Costless().fingerprint(), IndexOptions()
    )
    next(batches)
    started = set(descendants(os.getpid())) - before
    workers = {pid: title(pid) for pid in started if "MapBatches" in title(pid)}
    assert len(workers) >= 2
    batches.close()
    assert not {title for pid, title in workers.items() if not ends(pid, within_s=30)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "ray::MapWorker (pid=1)\nx.SomeError: low level\n\nThe above exception was the direct cause of\n"
            "batchcap.errors.BundleError: weights are damaged\nray.exceptions.RayTaskError: wrapped",
            "weights are damaged",
        ),
        ("KeyError: 1\nDuring handling of the above\nValueError: 2", "ValueError: 2"),
        ("The node is gone.\nMore about it.", "The node is gone."),
        ("", "RuntimeError"),
    ],
)
def test_a_worker_s_error_becomes_one_line(text: str, line: str) -> None:
    assert _cause(RuntimeError(text)) == line
