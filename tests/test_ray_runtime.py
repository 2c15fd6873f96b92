"""How Ray runs the two stages."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from batchcap.balance import ComputeOptions, share_out
from batchcap.errors import ClusterError, PipelineError
from batchcap.ray_cluster import check_address, wait_for_room
from batchcap.ray_runtime import _pools, build_dataset, caption_files, machine_resources
from batchcap.ray_start import one_line
from batchcap.run_options import IndexOptions
from batchcap.stages import FILE_SCHEMA
from tests.conftest import table_of
from tests.costless import Costless
from tests.processes import descendants, ends, title


@pytest.mark.usefixtures("local_ray")
def test_patience_outlasts_a_block_of_files_that_all_hang() -> None:
    """A block, 64 files here, is tried at once and then file by file, before any of its rows is seen."""
    rows = [{"uri": f"/{number}.jpg", "size_bytes": 1, "mtime_ns": 1} for number in range(1000)]
    files = pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
    for timeout_s in (1.0, 60.0, 600.0):
        options = IndexOptions(decode_timeout_s=timeout_s)
        dataset = build_dataset(files, Costless(), Costless().fingerprint(), options, share_out(2, 0))
        assert dataset.context.execution_no_progress_timeout_s >= max(300, 65 * timeout_s)


@pytest.mark.usefixtures("local_ray")
def test_networks_are_as_many_as_wanted() -> None:
    options = IndexOptions(batch_size=8, compute=ComputeOptions(workers=(1, 3)))
    resources = machine_resources(1000, options)
    assert resources.caption_workers == 3
    rows = [{"uri": f"/{number}.jpg", "size_bytes": 1, "mtime_ns": 1} for number in range(1000)]
    files = pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
    dataset = build_dataset(files, Costless(), Costless().fingerprint(), options, resources)
    loaders, networks = _pools(resources, options.compute, 16)
    assert (networks.min_size, networks.max_size) == (1, 3)
    assert (loaders.min_size, loaders.max_size) == (resources.loaders, min(16, 3 * resources.loaders))
    assert dataset.context.execution_options.resource_limits.object_store_memory == float("inf")


@pytest.mark.usefixtures("local_ray")
def test_too_few_gpus_are_told_of() -> None:
    options = IndexOptions(compute=ComputeOptions(gpus_per_worker=64))
    with pytest.raises(PipelineError, match="this machine has too few GPUs for --gpus-per-worker 64"):
        machine_resources(10, options)


@pytest.mark.usefixtures("local_ray")
def test_memory_is_a_limit_of_one_run_on_a_cluster() -> None:
    before = ray.data.DataContext.get_current().execution_options.resource_limits.object_store_memory
    options = IndexOptions(compute=ComputeOptions("auto", object_store_bytes=2**30))
    files = pa.Table.from_pylist([{"uri": "/1.jpg", "size_bytes": 1, "mtime_ns": 1}], schema=FILE_SCHEMA)
    dataset = build_dataset(files, Costless(), Costless().fingerprint(), options, share_out(2, 0))
    assert dataset.context.execution_options.resource_limits.object_store_memory == 2**30
    after = ray.data.DataContext.get_current().execution_options.resource_limits.object_store_memory
    assert after == before


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("free", "each", "message"),
    [
        ({"CPU": 0.2}, None, "others use all CPUs of the cluster at head:6379"),
        (
            {"CPU": 2.0},
            64.0,
            "no node of the cluster at head:6379 has room for a network.* 64 GPU",
        ),
    ],
)
def test_a_cluster_without_room_is_told_of(
    free: dict[str, float], each: float | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ComputeOptions("head:6379", gpus_per_worker=each, wait_s=0.0)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    with pytest.raises(ClusterError, match=message):
        wait_for_room(compute, heeds_others=True)
    if each is None:
        # In mid-run it is the run itself that takes them.
        assert wait_for_room(compute, heeds_others=False).caption_workers > 0


def test_nobody_at_an_address_is_told_of() -> None:
    with pytest.raises(ClusterError, match="no cluster answers at 127.0.0.1:9: Connection refused"):
        check_address("127.0.0.1:9")


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
def test_killed_workers_lose_nothing(photos: Path, tmp_path: Path) -> None:
    """Three in a row: more than Ray itself starts again for one block."""
    files = table_of(*sorted(photos.iterdir()))
    captioner = Costless(deaths=tmp_path / "deaths", dies=3)
    batches = list(caption_files(files, captioner, captioner.fingerprint(), IndexOptions(batch_size=64)))
    assert len((tmp_path / "deaths").read_text().splitlines()) == 3
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert sorted(row["uri"] for row in rows) == files["uri"].to_pylist()
    assert all(row["text"] for row in rows)


@pytest.mark.usefixtures("local_ray")
def test_files_that_kill_every_worker_stop_the_run(photos: Path, tmp_path: Path) -> None:
    captioner = Costless(deaths=tmp_path / "deaths", dies=1000)
    with pytest.raises(PipelineError, match=r"captioning stopped: .*; run again to go on from here"):
        list(caption_files(table_of(photos / "000.jpg"), captioner, captioner.fingerprint(), IndexOptions()))
    assert 4 <= len((tmp_path / "deaths").read_text().splitlines()) <= 8


@pytest.mark.usefixtures("local_ray")
def test_a_failing_captioner_stops_the_run_with_one_line(photos: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        list(
            caption_files(
                table_of(photos / "000.jpg"), Costless(fails=True), Costless().fingerprint(), IndexOptions()
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

    def workers() -> set[int]:
        return {pid for pid in descendants(os.getpid()) if "MapBatches" in title(pid)}

    before = workers()
    batches = caption_files(table_of(*paths), Costless(), Costless().fingerprint(), IndexOptions())
    next(batches)
    # Those that load may have done so already.
    running = workers() - before
    assert running
    batches.close()
    assert not {pid for pid in running | (workers() - before) if not ends(pid, within_s=30)}


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
    assert one_line(RuntimeError(text)) == line
