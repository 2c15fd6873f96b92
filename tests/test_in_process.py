"""Captioning in this process: as Ray's workers do it, without Ray."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from batchcap.balance import available_cpus
from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import Caption
from batchcap.errors import BundleError, PipelineError
from batchcap.in_process import InProcess
from batchcap.run_options import IndexOptions
from batchcap.stages import CAPTIONED_SCHEMA
from tests.conftest import make_photo, table_of
from tests.costless import Costless, CostlessCaptioner
from tests.processes import descendants, title


def decoders() -> set[int]:
    """Decoder processes below this one."""
    return {pid for pid in descendants(os.getpid()) if "decoder_child" in title(pid)}


def in_process(source: Costless, **options: object) -> InProcess:
    return InProcess(source, source.fingerprint(), IndexOptions(**options))  # type: ignore[arg-type]


def test_every_file_is_there_once_in_order_and_nothing_is_left_running(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    paths = [*sorted(photos.iterdir()), tmp_path / "bad.jpg"]
    before = decoders()
    with in_process(Costless(), batch_size=4) as stages:
        for _ in range(2):
            tables = list(stages.caption_files(table_of(*paths)))
            assert decoders() > before
            assert [len(table) for table in tables] == [4, 37]
            assert all(table.schema == CAPTIONED_SCHEMA for table in tables)
            rows = [row for table in tables for row in table.to_pylist()]
            assert [row["uri"] for row in rows] == list(map(str, paths))
            assert rows[-1]["reason"] == "unsupported"
            pixels = decode_image(paths[7].read_bytes(), Costless().image_spec)
            assert rows[7]["text"] == Costless().caption_one(pixels).text
    assert decoders() == before


class Loads(Costless):
    """Counts how often it is loaded."""

    count = 0

    def load_captioner(self, *, batch_size: int, num_threads: int) -> CostlessCaptioner:
        Loads.count += 1
        return super().load_captioner(batch_size=batch_size, num_threads=num_threads)


def test_the_network_is_loaded_once_for_all_waves(photos: Path) -> None:
    with in_process(Loads()) as stages:
        assert Loads.count == 0
        for _ in range(3):
            assert sum(map(len, stages.caption_files(table_of(photos / "000.jpg")))) == 1
    assert Loads.count == 1


class Damaged(Costless):
    def load_captioner(self, *, batch_size: int, num_threads: int) -> CostlessCaptioner:
        raise BundleError("weights are damaged")


class Speechless(Costless):
    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        raise ValueError


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (Costless(fails=True), "ValueError: the captioner is"),
        (Speechless(), "ValueError"),
        (Damaged(), "weights are damaged"),
    ],
)
def test_a_captioner_that_fails_stops_the_run_with_one_line(
    source: Costless, cause: str, photos: Path
) -> None:
    with in_process(source) as stages, pytest.raises(PipelineError) as caught:
        list(stages.caption_files(table_of(photos / "000.jpg")))
    assert str(caught.value) == f"captioning stopped: {cause}; run again to go on from here"


def test_a_model_that_changed_since_the_run_began_is_refused(photos: Path) -> None:
    stages = InProcess(Costless(), Costless(name="older").fingerprint(), IndexOptions())
    with stages, pytest.raises(PipelineError, match="the model costless has changed since the run began"):
        list(stages.caption_files(table_of(photos / "000.jpg")))


@pytest.mark.usefixtures("poison")
def test_who_stops_early_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    """Only the end of the test's own limit would end it otherwise."""
    good, hang = make_photo(tmp_path / "a.png", 1), tmp_path / "b.jpg"
    hang.write_bytes(b"HANGME!")
    before = decoders()
    with in_process(Costless(), batch_size=1, decode_timeout_s=1e6) as stages:
        tables = stages.caption_files(table_of(good, hang))
        next(tables)
        tables.close()
    assert decoders() == before


def test_the_machine_is_shared_out_for_so_many_files() -> None:
    one = in_process(Costless(), batch_size=8).resources(8)
    assert (one.caption_workers, one.loaders, one.gpus_per_worker) == (1, 1, 0)
    assert one.threads_per_worker == one.cpus == available_cpus()
    assert in_process(Costless(), batch_size=8, cpus=1).resources(1000).cpus == 1
