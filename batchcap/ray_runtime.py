"""The Ray side of a run: starting Ray, sharing out the machine, and the two stages that run in its workers.

Importing this module imports Ray, which is why `pipeline` does so only when there is something to caption.
"""

import logging
import math
import os
import re
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# Read when Ray is imported or started: no telemetry, no progress bars but our own.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Ray's own C++ chatter: whatever stops a run arrives as an exception as well.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Passed on to the workers, which import TensorFlow: no chatter, and not the whole memory of a GPU at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from batchcap.captioner.protocol import CaptionerSource
from batchcap.captioner.quiet import quiet_stderr
from batchcap.collection import FileEntry, uri_to_path
from batchcap.errors import PipelineError
from batchcap.loading import ImageLoader

if TYPE_CHECKING:
    from batchcap.pipeline import IndexOptions

# Few enough that a kill costs seconds of work, enough that Ray's own cost an image does not show.
_ROWS_PER_BLOCK = 64
_OBJECT_STORE_BYTES = 1024**3
# Without any progress for at least so long, Ray Data gives up instead of waiting for ever; see `_patience_s`.
_NO_PROGRESS_TIMEOUT_S = 300
# Where there is no GPU: more threads than this don't make one network faster.
_THREADS_PER_WORKER = 4
# An actor that died is started again; what it was working on is tried once more, not for ever.
_MAX_RESTARTS = -1
_MAX_TASK_RETRIES = 1

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
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
]
_CAPTION_FIELDS = [
    pa.field("text", pa.string()),
    pa.field("log_prob", pa.float64()),
    pa.field("confidence", pa.float64()),
    pa.field("token_count", pa.int32()),
]
# The last line of a traceback, unless the exception is Ray's wrapping.
_EXCEPTION_LINE = re.compile(r"(?!ray\.)([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)): (.+)")

FILE_SCHEMA = pa.schema(_FILE_FIELDS)
LOADED_SCHEMA = pa.schema([*_FILE_FIELDS, *_IMAGE_FIELDS, pa.field("pixels", pa.binary())])
CAPTIONED_SCHEMA = pa.schema([*_FILE_FIELDS, *_IMAGE_FIELDS, *_CAPTION_FIELDS])


@dataclass(frozen=True, slots=True)
class Resources:
    """How the machine is shared out.

    Args:
        caption_workers: processes with a network each.
        gpus_per_worker: 0 where there is none.
        threads_per_worker: CPU threads of each network.
        loaders: processes that read and decode.
    """

    caption_workers: int
    gpus_per_worker: int
    threads_per_worker: int
    loaders: int


def share_out(cpus: int, gpus: int) -> Resources:
    """One network a GPU, or else one for every few CPUs, and loaders beside them."""
    if gpus:
        return Resources(gpus, 1, max(1, cpus // gpus), loaders=max(1, cpus // 2))
    workers = max(1, cpus // _THREADS_PER_WORKER)
    return Resources(workers, 0, max(1, cpus // workers), loaders=max(1, cpus // 2))


class LoadImages:
    """The first stage: files -> pixels, or the reason why there are none. Never imports TensorFlow.

    Args:
        captioner: says which pictures the model takes.
        decode_timeout_s: how long one file may take.
    """

    def __init__(self, captioner: CaptionerSource, decode_timeout_s: float) -> None:
        self._loader = ImageLoader(captioner.image_spec, decode_timeout_s)

    def __call__(self, files: pa.Table) -> pa.Table:
        """`FILE_SCHEMA` -> `LOADED_SCHEMA`, row by row."""
        loaded = self._loader.load([uri_to_path(uri) for uri in files["uri"].to_pylist()])
        images = [file.image for file in loaded]
        columns = {
            "content_hash": [file.content_hash for file in loaded],
            **{
                name: [image and getattr(image, name) for image in images]
                for name in ("width", "height", "format", "taken_at")
            },
            "reason": [file.reason for file in loaded],
            # What a decoder says may quote bytes of the file; Arrow takes nothing but valid UTF-8.
            "detail": [file.detail.encode("utf-8", "backslashreplace").decode() for file in loaded],
            "pixels": [image and image.pixels.tobytes() for image in images],
        }
        arrays = [pa.array(values, LOADED_SCHEMA.field(name).type) for name, values in columns.items()]
        return pa.Table.from_arrays([*files.columns, *arrays], schema=LOADED_SCHEMA)


class CaptionWorker:
    """The second stage: pixels -> captions. Holds the network.

    Args:
        captioner: what to load.
        fingerprint: what its fingerprint was when the run was planned.
        batch_size: images that go through the network at once.
        num_threads: CPU threads of the network.

    Raises:
        PipelineError: the captioner is not the one that the run was planned with.
    """

    def __init__(
        self, captioner: CaptionerSource, fingerprint: str, batch_size: int, num_threads: int
    ) -> None:
        self._captioner = captioner.load_captioner(batch_size=batch_size, num_threads=num_threads)
        if self._captioner.fingerprint != fingerprint:
            # Somebody trained it anew meanwhile: its captions would stand under the old model's name.
            raise PipelineError(f"the model {captioner.name} has changed since the run began")
        size = self._captioner.image_spec.image_size
        self._shape = (size, size, 3)

    def __call__(self, loaded: pa.Table) -> pa.Table:
        """`LOADED_SCHEMA` -> `CAPTIONED_SCHEMA`, row by row; rows with a reason pass through."""
        pixels = loaded["pixels"]
        images = [
            np.frombuffer(value.as_buffer(), np.uint8).reshape(self._shape)
            for value in pixels
            if value.is_valid
        ]
        captions = self._captioner.caption(images) if images else []
        if len(captions) != len(images):
            raise PipelineError(f"the captioner gave {len(captions)} captions for {len(images)} images")
        following = iter(captions)
        per_row = [next(following) if value.is_valid else None for value in pixels]
        arrays = [
            pa.array([caption and getattr(caption, field.name) for caption in per_row], field.type)
            for field in _CAPTION_FIELDS
        ]
        kept = loaded.drop_columns(["pixels"])
        return pa.Table.from_arrays([*kept.columns, *arrays], schema=CAPTIONED_SCHEMA)


def caption_files(
    entries: Sequence[FileEntry], captioner: CaptionerSource, fingerprint: str, options: "IndexOptions"
) -> Generator[pa.Table, None, None]:
    """Loads and captions files in Ray's workers.

    Args:
        entries: the files.
        captioner: what captions.
        fingerprint: its fingerprint, as the run has it.
        options: batch size and time limits.

    Yields:
        Tables of `CAPTIONED_SCHEMA`, in the order in which they are finished; every file is in one of them.

    Raises:
        PipelineError: Ray or the captioner failed.
    """
    start_ray()
    available = ray.cluster_resources()
    cpus = int(available.get("CPU", 1))
    resources = share_out(cpus, int(available.get("GPU", 0)))
    files = pa.Table.from_pylist(
        [{"uri": e.uri, "size_bytes": e.size_bytes, "mtime_ns": e.mtime_ns, "etag": e.etag} for e in entries],
        schema=FILE_SCHEMA,
    )
    dataset = build_dataset(files, captioner, fingerprint, options, resources)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        # Ray's own errors are of many families, and a worker's exception comes as what it was.
        raise PipelineError(f"captioning stopped: {_cause(error)}; run again to go on from here") from error
    finally:
        # Who stops early must not leave workers behind. Ray Data leaves it to the garbage collector, and has
        # no public way to say it; this one ends the execution, whatever its name.
        dataset._synchronize_progress_bar()


def build_dataset(
    files: pa.Table,
    captioner: CaptionerSource,
    fingerprint: str,
    options: "IndexOptions",
    resources: Resources,
) -> ray.data.Dataset:
    """The two stages over a table of files; nothing runs before its batches are asked for.

    Args:
        files: of `FILE_SCHEMA`.
        captioner: what captions.
        fingerprint: its fingerprint, as the run has it.
        options: batch size and time limits.
        resources: how the machine is shared out.

    Returns:
        Rows of `CAPTIONED_SCHEMA`.
    """
    with warnings.catch_warnings():
        # `max_restarts` and `max_task_retries` have no other way in until Ray 2.64.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = (
            ray.data.from_arrow(files, override_num_blocks=math.ceil(len(files) / _ROWS_PER_BLOCK))
            .map_batches(
                LoadImages,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(captioner, options.decode_timeout_s),
                compute=ray.data.ActorPoolStrategy(size=resources.loaders),
                # Other resources than the next stage's: equal ones would be fused into one process, which
                # would then decode and caption by turns.
                num_cpus=0.25,
                max_restarts=_MAX_RESTARTS,
                max_task_retries=_MAX_TASK_RETRIES,
            )
            .map_batches(
                CaptionWorker,
                # A block at once, as it comes: with a size, Ray would gather blocks until they reach it.
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(
                    captioner,
                    fingerprint,
                    options.batch_size,
                    resources.threads_per_worker,
                ),
                compute=ray.data.ActorPoolStrategy(size=resources.caption_workers),
                num_cpus=0.5,
                num_gpus=resources.gpus_per_worker,
                max_restarts=_MAX_RESTARTS,
                max_task_retries=_MAX_TASK_RETRIES,
            )
        )
    # Set here and not for the process: whoever calls us from a program has settings of their own.
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0
    dataset.context.execution_no_progress_timeout_s = _patience_s(options.decode_timeout_s)
    return dataset


def _patience_s(decode_timeout_s: float) -> int:
    """How long a run may stand still: longer than a block takes of which every file hangs.

    Such a block is tried at once and then file by file, and none of its rows is seen before the last.
    """
    return max(_NO_PROGRESS_TIMEOUT_S, math.ceil(2 * (_ROWS_PER_BLOCK + 1) * decode_timeout_s))


def start_ray() -> None:
    """Starts Ray on this machine, unless the process has it running."""
    if ray.is_initialized():
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with quiet_stderr():
            ray.init(
                address="local",  # never somebody else's cluster that happens to run here
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise PipelineError(f"Ray can't be started: {_cause(error)}") from error
    if in_main_thread:
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own there
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # `log_to_driver` does not cover what Ray says of workers that fail, and it says it on stdout, where
    # results are printed. There is no public switch.
    ray._private.worker._worker_logs_enabled = False


def _cause(error: BaseException) -> str:
    """What went wrong in a worker, in one line: Ray hands its exceptions on as text, wrapped in its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [match.groups() for line in lines if (match := _EXCEPTION_LINE.match(line))]
    ours = [message for name, message in found if name.startswith("batchcap.")]
    if ours:
        return ours[-1]
    # Of a chain the last one is what was raised in the end.
    if found:
        return ": ".join(found[-1])
    return lines[0] if lines else type(error).__name__
