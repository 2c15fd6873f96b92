"""How the machine is shared out, and what the report makes of the seconds that the stages took."""

from collections import Counter

import pyarrow as pa
import pytest

from batchcap.balance import (
    Resources,
    StageTimes,
    block_starts,
    rows_per_block,
    share_out,
    share_out_cluster,
)
from batchcap.console import summary
from batchcap.run_report import RunReport


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "threads", "loaders"),
    [
        (1, 0, 1, 1, 1),
        (2, 0, 1, 2, 2),
        (4, 0, 1, 4, 3),
        (8, 0, 2, 4, 6),
        (16, 0, 4, 4, 12),
        (64, 0, 16, 4, 48),
        (2, 1, 1, 2, 1),
        (16, 1, 1, 16, 14),
        (64, 4, 4, 16, 59),
        (4, 8, 8, 1, 2),
    ],
)
def test_share_out(cpus: int, gpus: int, workers: int, threads: int, loaders: int) -> None:
    found = share_out(cpus, gpus)
    assert found == Resources(workers, int(gpus > 0), threads, loaders, cpus)


@pytest.mark.parametrize("gpus", [0, 1, 4, 8])
@pytest.mark.parametrize("cpus", [*range(1, 33), 64, 96, 128])
def test_actors_leave_ray_half_of_the_cpus_and_are_not_fused(cpus: int, gpus: int) -> None:
    """With all CPUs taken nothing else could start, and the run would stand still for ever."""
    found = share_out(cpus, gpus)
    taken = found.caption_workers * found.cpus_per_worker + found.loaders * found.cpus_per_loader
    assert taken <= cpus / 2
    assert (found.cpus_per_worker, found.gpus_per_worker) != (found.cpus_per_loader, 0)
    assert min(found.cpus_per_worker, found.cpus_per_loader) > 0


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "workers", "loaders"),
    [
        (16, 2, 0.5, 4, 11),
        (16, 2, 0.3, 6, 9),
        (16, 4, 2, 2, 13),
        (16, 1, 2, 0, 15),
        (16, 0, 1, 0, 15),
        (16, 2, 1, 2, 13),
    ],
)
def test_gpus_are_shared_as_wanted(cpus: int, gpus: int, each: float, workers: int, loaders: int) -> None:
    found = share_out(cpus, gpus, each)
    assert (found.caption_workers, found.gpus_per_worker, found.loaders) == (workers, each, loaders)


def test_gpus_can_be_left_alone() -> None:
    assert share_out(16, 2, 0) == share_out(16, 0)


@pytest.mark.parametrize(
    ("nodes", "each", "workers", "gpus_per_worker", "threads", "loaders"),
    [
        ([(8, 0), (16, 0)], None, 6, 0, 4, 18),
        # A head that takes no work; GPUs on some nodes: the networks are there, all others load.
        ([(0, 0), (16, 2), (16, 0)], None, 2, 1, 8, 13 + 15),
        ([(16, 2), (16, 0)], 0, 8, 0, 4, 24),
        ([(16, 1), (8, 1)], 0.5, 4, 0.5, 4, 13 + 5),
        ([(16, 0), (8, 0)], 1, 0, 1, 1, 22),
        ([(0, 4)], None, 0, 0, 1, 0),
        ([], None, 0, 0, 1, 0),
    ],
)
def test_a_cluster_is_shared_out_node_by_node(
    nodes: list[tuple[int, int]],
    each: float | None,
    workers: int,
    gpus_per_worker: float,
    threads: int,
    loaders: int,
) -> None:
    found = share_out_cluster(nodes, each)
    assert found.caption_workers == workers
    assert found.gpus_per_worker == gpus_per_worker
    assert found.threads_per_worker == threads
    assert found.loaders == loaders
    assert found.cpus == sum(cpus for cpus, _ in nodes)


def test_a_cluster_of_one_node_is_shared_out_as_a_machine() -> None:
    for cpus, gpus in ((2, 0), (64, 0), (16, 1), (4, 8)):
        alone, found = share_out(cpus, gpus), share_out_cluster([(cpus, gpus)])
        for name in (*Resources.__dataclass_fields__, "cpus_per_worker", "cpus_per_loader"):
            assert getattr(found, name) == getattr(alone, name)


@pytest.mark.parametrize("most", [1, 4, 100])
def test_every_node_keeps_half_of_its_cpus(most: int) -> None:
    """Each node has room for its networks beside its loaders, however few CPUs there are beside its GPUs."""
    nodes = [(64, 0), (4, 8), (16, 1)]
    found = share_out_cluster(nodes)
    more = found.with_workers(found.caption_workers * most)
    for (cpus, _), node in zip(nodes, found.nodes, strict=True):
        taken = node.caption_workers * most * more.cpus_per_worker + node.loaders * more.cpus_per_loader
        assert taken <= cpus / 2 + 1e-9


def test_more_networks_have_fewer_threads_each() -> None:
    assert share_out(16, 0).with_workers(8) == Resources(8, 0, 2, 12, 16)
    assert share_out(16, 0).with_workers(1) == Resources(1, 0, 4, 12, 16)


def test_a_small_run_starts_no_process_that_would_get_no_block() -> None:
    assert share_out(16, 0).limited_to(1) == Resources(1, 0, 4, 1, 16)
    assert share_out(16, 0).limited_to(1000) == share_out(16, 0)


@pytest.mark.parametrize(
    ("batch_size", "rows"), [(1, 64), (8, 64), (30, 60), (32, 64), (48, 48), (64, 64), (100, 100)]
)
def test_a_block_is_a_whole_number_of_batches(batch_size: int, rows: int) -> None:
    assert rows_per_block(batch_size) == rows


def test_blocks_begin_with_a_single_batch_and_hold_every_row_once() -> None:
    assert block_starts(32, 32) == [0]
    assert block_starts(33, 32) == [0, 32]
    assert block_starts(200, 32) == [0, 32, 96, 160]
    assert block_starts(300, 128) == [0, 32, 160, 288]
    assert block_starts(5, 8) == [0]


def batch(loading_s: float, captioning_s: float, waiting_s: float) -> pa.Table:
    return pa.table(
        {
            "loading_s": [loading_s, 0.0],
            "captioning_s": [captioning_s, 0.0],
            "waiting_s": [waiting_s, 0.0],
        }
    )


def test_shares_are_of_all_processes_of_a_stage() -> None:
    stages = StageTimes(share_out(8, 0))
    assert stages.shares == {"loading": 0.0, "captioning": 0.0, "committing": 0.0}
    stages.add([batch(20.0, 10.0, 1.0), batch(10.0, 8.0, 1.0)], committing_s=2.0)
    stages.elapsed_s = 10.0
    assert (stages.loading_s, stages.captioning_s, stages.waiting_s) == (30.0, 18.0, 2.0)
    # Six loaders, two networks, one driver.
    assert stages.shares == {"loading": 0.5, "captioning": 0.9, "committing": 0.2}
    assert stages.binds == "captioning"
    stages.add([batch(60.0, 0.0, 0.0)], committing_s=0.0)
    assert stages.shares["loading"] == 1.0
    assert stages.binds == "loading"
    described = stages.describe()
    assert described["resources"]["loaders"] == 6
    assert described["binds"] == "loading"


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (8, 0, "6 loaders busy 50%, 2 networks with 4 threads each busy 90%"),
        (2, 0, "2 loaders busy 100%, 1 network with 2 threads busy 100%"),
        (2, 1, "1 loader busy 100%, 1 network on a GPU busy 100%"),
    ],
)
def test_the_summary_says_what_binds(cpus: int, gpus: int, expected: str) -> None:
    stages = StageTimes(share_out(cpus, gpus), 30.0, 18.0, 1.0, committing_s=2.0, elapsed_s=10.0)
    report = RunReport(captioned=100, timed_files=90, captioning_s=10.0, total_s=30.0, stages=stages)
    first, second = summary(report).splitlines()
    assert first == "100 captioned (9.0 images/s), 0 unchanged, 30.0 s"
    assert second == f"{stages.binds} binds: {expected}, committing 20% of the time"


def test_a_run_of_one_commit_has_no_stages_to_speak_of() -> None:
    report = RunReport(captioned=5, quarantined=Counter(), stages=StageTimes(share_out(2, 0)))
    assert summary(report) == "5 captioned, 0 unchanged, 0.0 s"
