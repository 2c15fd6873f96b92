"""Poison pictures are real here: a Pillow plugin of the child's own crashes or hangs on them."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.images import ImageSpec, decode
from batchcap.decoder_child import LoadedFile, load_file
from batchcap.errors import PipelineError, Reason
from batchcap.hashing import FileHasher
from batchcap.loading import ImageLoader
from tests.conftest import make_photo

SPEC = ImageSpec(32)
# Every hanging file costs it twice; a good one of these needs a hundredth, even on a busy machine.
TIMEOUT_S = 2.0

# Python imports `sitecustomize` on its start, in the children too. Pillow asks each plugin in turn.
POISON_PLUGIN = """
import os, threading
from PIL import Image, ImageFile

opened = 0

def accept(prefix):
    global opened
    opened += 1
    if prefix.startswith(b"HARMED!!") and opened > 1:
        os.abort()
    if prefix.startswith(b"CRASHME!"):
        os.abort()
    if prefix.startswith(b"HANGME!!"):
        threading.Event().wait()
    if prefix.startswith(b"EXITME!!"):
        os._exit(0)
    if prefix.startswith(b"GROWME!!"):
        bytes(6 * 2**30)
    return False

class PoisonImageFile(ImageFile.ImageFile):
    format = "POISON"

# In the place of a format that is read; all are registered first, or this one would be overwritten.
Image.init()
Image.register_open("QOI", PoisonImageFile, accept)
"""


@pytest.fixture
def _poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "sitecustomize.py").write_text(POISON_PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugin"), prepend=os.pathsep)


@pytest.fixture
def loader() -> Iterator[ImageLoader]:
    with ImageLoader(SPEC, TIMEOUT_S) as loader:
        yield loader


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def children() -> set[int]:
    """The processes that this one has started and that still run (or were not waited for)."""
    ps = subprocess.Popen(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True)
    output, _ = ps.communicate()
    pairs = [line.split() for line in output.splitlines()]
    return {int(pid) for pid, parent in pairs if int(parent) == os.getpid()} - {ps.pid}


def assert_equals_in_process(loaded: LoadedFile, path: Path) -> None:
    data = path.read_bytes()
    expected = decode(data, SPEC)
    assert loaded.reason is None, loaded
    assert loaded.content_hash == hashlib.sha256(data).hexdigest()
    assert loaded.image is not None
    np.testing.assert_array_equal(loaded.image.pixels, expected.pixels)
    assert (loaded.image.width, loaded.image.height) == (expected.width, expected.height)
    assert (loaded.image.format, loaded.image.taken_at) == (expected.format, expected.taken_at)


def test_good_and_bad_files_in_their_order(loader: ImageLoader, tmp_path: Path) -> None:
    photos = [make_photo(tmp_path / f"{number}.jpg", number) for number in range(3)]
    cut = write(tmp_path / "cut.jpg", photos[0].read_bytes()[:700])
    text = write(tmp_path / "text.jpg", b"hello, this is text")
    empty = write(tmp_path / "empty.png", b"")
    paths = [photos[0], empty, photos[1], cut, tmp_path / "missing.jpg", tmp_path, text, photos[2]]
    loaded = loader.load([str(path) for path in paths])
    assert [one.reason for one in loaded] == [
        None,
        Reason.EMPTY,
        None,
        Reason.TRUNCATED,
        Reason.IO_ERROR,
        Reason.IO_ERROR,
        Reason.UNSUPPORTED,
        None,
    ]
    for index in (0, 2, 7):
        assert_equals_in_process(loaded[index], paths[index])
    for index in (1, 3, 6):  # What could be read has a hash, decoded or not.
        assert loaded[index].content_hash == hashlib.sha256(paths[index].read_bytes()).hexdigest()
        assert loaded[index].image is None and loaded[index].detail
    assert "No such file" in loaded[4].detail and loaded[4].content_hash is None


def test_a_name_that_is_not_utf8(loader: ImageLoader, tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "good.png", 1)
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        os.rename(photo, name)
    except OSError:
        pytest.skip("this file system takes no such names")
    (loaded,) = loader.load([name])
    assert loaded.image is not None


def test_a_file_over_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = make_photo(tmp_path / "good.png", 1)
    size = path.stat().st_size
    assert load_file(str(path), ImageSpec(32, max_bytes=size)).reason is None
    loaded = load_file(str(path), ImageSpec(32, max_bytes=size - 1))
    assert (loaded.reason, loaded.content_hash) == (Reason.TOO_LARGE, None)
    # A terabyte, of which a hundred bytes at most may be looked at.
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**40)
    assert load_file(str(tmp_path / "sparse.png"), ImageSpec(32, max_bytes=100)).reason is Reason.TOO_LARGE


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = make_photo(tmp_path / "secret.png", 1)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert load_file(str(path), SPEC).reason is Reason.IO_ERROR


def test_nothing_to_load_starts_nothing(loader: ImageLoader) -> None:
    before = children()
    assert loader.load([]) == []
    assert children() == before


def test_one_child_serves_all_batches(loader: ImageLoader, tmp_path: Path) -> None:
    paths = [str(make_photo(tmp_path / f"{number}.png", number)) for number in range(3)]
    before = children()
    loader.load(paths)
    started = children() - before
    assert len(started) == 1
    loader.load(paths[:1])
    assert children() - before == started


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("magic", [b"CRASHME!", b"EXITME!!"])
def test_a_file_that_ends_the_decoder_costs_itself_alone(
    loader: ImageLoader, tmp_path: Path, magic: bytes
) -> None:
    good = [make_photo(tmp_path / f"{number}.jpg", number) for number in range(2)]
    bad = write(tmp_path / "bad.jpg", magic + bytes(100))
    paths = [good[0], bad, good[1]]
    loaded = loader.load([str(path) for path in paths])
    assert loaded[1] == LoadedFile(reason=Reason.WORKER_CRASH, detail=loaded[1].detail)
    assert_equals_in_process(loaded[0], good[0])
    assert_equals_in_process(loaded[2], good[1])
    # The next batch meets a new child.
    assert [one.reason for one in loader.load([str(good[1])])] == [None]


@pytest.mark.usefixtures("_poison")
def test_a_file_that_hangs_costs_itself_alone(loader: ImageLoader, tmp_path: Path) -> None:
    good = [make_photo(tmp_path / f"{number}.jpg", number) for number in range(2)]
    paths = [good[0], write(tmp_path / "bad.jpg", b"HANGME!!" + bytes(100)), good[1]]
    before = children()
    loaded = loader.load([str(path) for path in paths])
    assert [one.reason for one in loaded] == [None, Reason.TIMEOUT, None]
    assert f"{TIMEOUT_S:g} s" in loaded[1].detail
    assert_equals_in_process(loaded[2], good[1])
    assert len(children() - before) == 1  # Those that hung are gone.


def test_a_file_that_cannot_be_opened_in_time(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, as a dead network drive would: `open` itself hangs."""
    os.mkfifo(tmp_path / "fifo.jpg")
    good = make_photo(tmp_path / "good.jpg", 1)
    with ImageLoader(SPEC, TIMEOUT_S) as loader:
        (loaded,) = loader.load([str(tmp_path / "fifo.jpg")])
        assert loaded.reason is Reason.TIMEOUT
        assert_equals_in_process(loader.load([str(good)])[0], good)


@pytest.mark.usefixtures("_poison")
def test_files_are_hashed_and_not_decoded(tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "good.jpg", 1)
    crash = write(tmp_path / "crash.jpg", b"CRASHME!")
    os.mkfifo(tmp_path / "fifo.jpg")
    paths = [photo, tmp_path / "fifo.jpg", crash, tmp_path / "missing.jpg"]
    uris = [str(path) for path in paths]
    before = children()
    # More than one process has work, and what hangs is not waited for by the others.
    with FileHasher(SPEC, TIMEOUT_S) as hasher:
        hashed = hasher.hash_files([*uris, *[str(photo)] * 40])
        assert len(children() - before) == 3
    assert children() == before
    detail = f"reading it took more than {TIMEOUT_S:g} s"
    assert hashed[1] == LoadedFile(reason=Reason.TIMEOUT, detail=detail)
    hash_of = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (photo, crash)}
    assert [file.content_hash for file in (hashed[0], hashed[2])] == [hash_of[photo], hash_of[crash]]
    # Without a reason: who loads it finds that.
    assert hashed[3] == LoadedFile()
    assert hashed[4:] == [LoadedFile(hash_of[photo])] * 40


@pytest.mark.usefixtures("_poison")
def test_several_bad_files_in_one_batch(loader: ImageLoader, tmp_path: Path) -> None:
    good = make_photo(tmp_path / "good.jpg", 1)
    bad = [write(tmp_path / f"bad{number}.jpg", b"CRASHME!") for number in range(2)]
    loaded = loader.load([str(path) for path in (bad[0], good, bad[1])])
    assert [one.reason for one in loaded] == [Reason.WORKER_CRASH, None, Reason.WORKER_CRASH]


@pytest.mark.usefixtures("_poison")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit does not count such memory")
def test_a_file_that_takes_all_memory_is_too_large(loader: ImageLoader, tmp_path: Path) -> None:
    good = make_photo(tmp_path / "good.jpg", 1)
    bad = write(tmp_path / "bad.jpg", b"GROWME!!")
    loaded = loader.load([str(bad), str(good)])
    assert [one.reason for one in loaded] == [Reason.TOO_LARGE, None]


@pytest.mark.usefixtures("_poison")
def test_a_file_is_condemned_only_by_a_decoder_of_its_own(loader: ImageLoader, tmp_path: Path) -> None:
    """What an earlier file left behind may crash the decoder later, at a file that is good."""
    harmed = write(tmp_path / "harmed.jpg", b"HARMED!!" + make_photo(tmp_path / "good.jpg", 1).read_bytes())
    good = str(tmp_path / "good.jpg")
    # The plugin crashes the decoder at this one, unless it is the first file that it opens.
    loaded = loader.load([good, str(harmed), good, str(harmed)])
    assert [one.reason for one in loaded] == [None, Reason.UNSUPPORTED, None, Reason.UNSUPPORTED]


@pytest.mark.usefixtures("_poison")
def test_close_leaves_no_process_behind(tmp_path: Path) -> None:
    before = children()
    loader = ImageLoader(SPEC, TIMEOUT_S)
    loader.close()  # Nothing to end yet.
    loader.load([str(make_photo(tmp_path / "good.jpg", 1)), str(write(tmp_path / "bad.jpg", b"CRASHME!"))])
    loader.load([str(tmp_path / "good.jpg")])
    assert children() > before
    loader.close()
    assert children() == before
    loader.close()
    # A closed loader can be used again.
    assert loader.load([str(tmp_path / "good.jpg")])[0].reason is None
    loader.close()
    assert children() == before


def test_a_dropped_loader_leaves_no_process_behind(tmp_path: Path) -> None:
    before = children()
    loader = ImageLoader(SPEC)
    loader.load([str(make_photo(tmp_path / "good.jpg", 1))])
    assert children() > before
    del loader
    assert children() == before


def test_a_child_that_dies_at_its_start_is_no_fault_of_the_files(
    loader: ImageLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    photo = str(make_photo(tmp_path / "good.jpg", 1))
    before = children()
    for paths in ([photo], [photo, photo]):
        with pytest.raises(PipelineError, match="can't be started"):
            loader.load(paths)
    assert children() == before


def test_no_python_to_start_is_no_fault_of_the_files(
    loader: ImageLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(PipelineError, match="can't be started"):
        loader.load([str(make_photo(tmp_path / "good.jpg", 1))])


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Even while it hangs: a killed worker must not leave decoders behind."""
    os.mkfifo(tmp_path / "fifo.jpg")
    script = (
        "import sys, threading\n"
        "from batchcap.captioner.images import ImageSpec\n"
        "from batchcap.loading import ImageLoader\n"
        "loader = ImageLoader(ImageSpec(32))\n"
        "loader.load([sys.argv[1]])\n"  # Starts the child.
        "print(loader._child._process.pid, flush=True)\n"
        "loader.load([sys.argv[2]])\n"
    )
    photo = make_photo(tmp_path / "good.jpg", 1)
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(photo), str(tmp_path / "fifo.jpg")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # Opening the other end succeeds as soon as the child hangs in `open`; it then hangs in `read`.
        with open(tmp_path / "fifo.jpg", "wb"):
            parent.kill()
            parent.wait()
            if hasattr(os, "pidfd_open"):
                wait_for_exit(child)


def wait_for_exit(pid: int) -> None:
    """Blocks until a process that is not our child has ended; fails after 30 s."""
    import select

    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([pidfd], [], [], 30)
        assert readable, "the child outlives its parent"
    finally:
        os.close(pidfd)
