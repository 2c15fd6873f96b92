"""The two stages: files -> pixels -> captions, or reasons."""

from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.images import decode_image
from batchcap.errors import PipelineError
from batchcap.stages import CAPTIONED_SCHEMA, LOADED_SCHEMA, CaptionWorker, LoadImages
from tests.conftest import make_photo, table_of
from tests.costless import Costless, colour_vector
from tests.exif_blocks import WHOLE, saved, whole


def worker(source: Costless) -> CaptionWorker:
    return CaptionWorker(source, source.fingerprint(), batch_size=8, num_threads=1)


def test_a_model_that_changed_since_the_run_began_is_refused() -> None:
    """Its captions would stand under the fingerprint of the one that the run was planned with."""
    with pytest.raises(PipelineError, match="the model costless has changed since the run began"):
        CaptionWorker(Costless(), Costless(name="older").fingerprint(), batch_size=8, num_threads=1)


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
    assert captioned["vector"].to_pylist() == [None, colour_vector(pixels).astype("<f2").tobytes()]
    for without in (
        CaptionWorker(Costless(), Costless().fingerprint(), 8, 1, vectors=False),
        worker(Costless(vector_size=None)),
    ):
        table = without(loaded)
        assert table["vector"].to_pylist() == [None, None]
        assert table["text"].equals(captioned["text"])
    assert captioned.to_pylist()[1]["width"] == 80
    # What the block took stands in its first row; waiting is only what comes after another block.
    assert captioned["loading_s"].to_pylist() == [loaded["loading_s"][0].as_py(), 0.0]
    assert captioned["captioning_s"].to_pylist()[1] == 0.0
    assert captioned["waiting_s"].to_pylist() == [0.0, 0.0]
    assert min(captioned[name][0].as_py() for name in ("loading_s", "captioning_s")) > 0


@pytest.mark.parametrize("gps", [True, False])
def test_what_the_camera_wrote(tmp_path: Path, gps: bool) -> None:
    (tmp_path / "a.png").write_bytes(saved("PNG", exif=b"Exif\0\0" + whole()))
    make_photo(tmp_path / "b.png", 1)
    loaded = LoadImages(Costless(), 30.0, gps)(table_of(tmp_path / "a.png", tmp_path / "b.png"))
    assert loaded.schema == LOADED_SCHEMA
    for table in (loaded, worker(Costless())(loaded)):
        assert table["taken_at"].to_pylist() == [WHOLE.taken_at, None]
        assert table["camera"].to_pylist() == [WHOLE.camera, None]
        assert table["latitude"].to_pylist() == [WHOLE.latitude if gps else None, None]
        assert table["longitude"].to_pylist() == [WHOLE.longitude if gps else None, None]


def test_a_worker_notes_how_long_it_has_waited(tmp_path: Path) -> None:
    loaded = LoadImages(Costless(), 30.0)(table_of(make_photo(tmp_path / "good.png", 1)))
    caption = worker(Costless())
    caption(loaded)
    assert caption(loaded)["waiting_s"][0].as_py() > 0


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
