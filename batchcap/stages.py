"""The two stages of captioning, files -> pixels -> captions: what Ray's workers run, and `in_process`.

A bad file is a row with a reason from here on, never an exception.
"""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from batchcap.balance import block_starts
from batchcap.captioner.protocol import Caption, CaptionerSource, VectorCaptioner, stored_vector
from batchcap.collection import FileEntry
from batchcap.errors import PipelineError
from batchcap.loading import ImageLoader

_FILE_FIELDS = [
    pa.field("uri", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("mtime_ns", pa.int64()),
    pa.field("etag", pa.string()),
]
_IMAGE_FIELDS = [
    pa.field("content_hash", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
    pa.field("taken_at", pa.timestamp("us")),
    pa.field("camera", pa.string()),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
]
_CAPTION_FIELDS = [
    pa.field("text", pa.string()),
    pa.field("log_prob", pa.float64()),
    pa.field("confidence", pa.float64()),
    pa.field("token_count", pa.int32()),
]
# float16[D], little-endian.
_VECTOR_FIELDS = [pa.field("vector", pa.binary())]
# The seconds that a block took stand in its first row, and zeros in the others: the sum is right, however
# Ray may cut it.
_LOADING_FIELDS = [pa.field("loading_s", pa.float64())]
_CAPTIONING_FIELDS = [pa.field("captioning_s", pa.float64()), pa.field("waiting_s", pa.float64())]

FILE_SCHEMA = pa.schema(_FILE_FIELDS)
LOADED_SCHEMA = pa.schema([*_FILE_FIELDS, *_IMAGE_FIELDS, *_LOADING_FIELDS, pa.field("pixels", pa.binary())])
CAPTIONED_SCHEMA = pa.schema(
    [
        *(*_FILE_FIELDS, *_IMAGE_FIELDS, *_LOADING_FIELDS),
        *(*_CAPTION_FIELDS, *_VECTOR_FIELDS, *_CAPTIONING_FIELDS),
    ]
)


def files_table(entries: Sequence[FileEntry]) -> pa.Table:
    """Files as a table of `FILE_SCHEMA`."""
    # By columns: a dictionary an entry would take more memory than all else here.
    columns = [[getattr(entry, field.name) for entry in entries] for field in _FILE_FIELDS]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _FILE_FIELDS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=FILE_SCHEMA)


def cut_into_blocks(files: pa.Table, batch_size: int) -> list[pa.Table]:
    """The blocks in which files go through the stages; views, not copies."""
    starts = block_starts(len(files), batch_size)
    ends = [*starts[1:], len(files)]
    return [files.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


class LoadImages:
    """The first stage: files -> pixels, or the reason why there are none. Never imports TensorFlow.

    Args:
        captioner: says which pictures the model takes.
        decode_timeout_s: how long one file may take.
        gps: whether it is kept where pictures were taken; else it gets no further than here.
    """

    def __init__(self, captioner: CaptionerSource, decode_timeout_s: float, gps: bool = True) -> None:
        self._loader = ImageLoader(captioner.image_spec, decode_timeout_s)
        self._facts = ["width", "height", "format", "taken_at", "camera"]
        self._facts += ["latitude", "longitude"] if gps else []

    def close(self) -> None:
        """Ends its decoder, at once; what it is loading fails. Ray drops its actors without it."""
        self._loader.stop()

    def __call__(self, files: pa.Table) -> pa.Table:
        """`FILE_SCHEMA` -> `LOADED_SCHEMA`, row by row."""
        started = time.perf_counter()
        loaded = self._loader.load(files["uri"].to_pylist())
        images = [file.image for file in loaded]
        columns = {
            "content_hash": [file.content_hash for file in loaded],
            **{name: [image and getattr(image, name) for image in images] for name in self._facts},
            "reason": [file.reason for file in loaded],
            # What a decoder says may quote bytes of the file; Arrow takes nothing but valid UTF-8.
            "detail": [file.detail.encode("utf-8", "backslashreplace").decode() for file in loaded],
            # Views: Arrow makes the only copy.
            "pixels": [image and image.pixels.data.cast("B") for image in images],
            "loading_s": _in_first_row(time.perf_counter() - started, len(files)),
        }
        added = list(LOADED_SCHEMA)[len(FILE_SCHEMA) :]
        nothing = [None] * len(loaded)
        arrays = [pa.array(columns.get(field.name, nothing), field.type) for field in added]
        return pa.Table.from_arrays([*files.columns, *arrays], schema=LOADED_SCHEMA)


class CaptionWorker:
    """The second stage: pixels -> captions. Holds the network.

    Args:
        captioner: what to load.
        fingerprint: what its fingerprint was when the run was planned.
        batch_size: images that go through the network at once.
        num_threads: CPU threads of the network.
        vectors: whether it also gives the vectors of images, where the captioner has such.

    Raises:
        PipelineError: the captioner is not the one that the run was planned with.
    """

    def __init__(
        self,
        captioner: CaptionerSource,
        fingerprint: str,
        batch_size: int,
        num_threads: int,
        vectors: bool = True,
    ) -> None:
        self._captioner = captioner.load_captioner(batch_size=batch_size, num_threads=num_threads)
        if self._captioner.fingerprint != fingerprint:
            # Somebody trained it anew meanwhile: its captions would stand under the old model's name.
            raise PipelineError(f"the model {captioner.name} has changed since the run began")
        size = self._captioner.image_spec.image_size
        self._shape = (size, size, 3)
        self._vectors = vectors
        # When the block before was done; none was before the first, whose wait is the start-up.
        self._done_at: float | None = None

    def __call__(self, loaded: pa.Table) -> pa.Table:
        """`LOADED_SCHEMA` -> `CAPTIONED_SCHEMA`, row by row; rows with a reason pass through."""
        started = time.perf_counter()
        waiting_s = 0.0 if self._done_at is None else started - self._done_at
        pixels = loaded["pixels"]
        images = [
            np.frombuffer(value.as_buffer(), np.uint8).reshape(self._shape)
            for value in pixels
            if value.is_valid
        ]
        captions, vectors = self._caption(images)
        if len(captions) != len(images):
            raise PipelineError(f"the captioner gave {len(captions)} captions for {len(images)} images")
        following = iter(zip(captions, vectors, strict=True))
        per_row = [next(following) if value.is_valid else (None, None) for value in pixels]
        arrays = [
            pa.array([caption and getattr(caption, field.name) for caption, _ in per_row], field.type)
            for field in _CAPTION_FIELDS
        ]
        arrays.append(pa.array([vector for _, vector in per_row], _VECTOR_FIELDS[0].type))
        kept = loaded.drop_columns(["pixels"])
        self._done_at = time.perf_counter()
        seconds = [_in_first_row(s, len(loaded)) for s in (self._done_at - started, waiting_s)]
        return pa.Table.from_arrays([*kept.columns, *arrays, *seconds], schema=CAPTIONED_SCHEMA)

    def _caption(self, images: list[np.ndarray]) -> tuple[list[Caption], Sequence[bytes | None]]:
        """Captions, and the vectors as the catalog holds them."""
        if not images:
            return [], []
        if not (self._vectors and isinstance(self._captioner, VectorCaptioner)):
            captions = self._captioner.caption(images)
            return captions, [None] * len(captions)
        captions, vectors = self._captioner.caption_with_vectors(images)
        return captions, [stored_vector(vector) for vector in vectors]


def _in_first_row(seconds: float, rows: int) -> pa.Array:
    return pa.array([seconds, *[0.0] * (rows - 1)][:rows], pa.float64())
