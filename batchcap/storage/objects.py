"""Object stores: S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage; through pyarrow.

Credentials are found as everywhere: in the environment, in the files of the store's own command line, or from
the machine. `AWS_ENDPOINT_URL` names another store than Amazon's, `AWS_NO_SIGN_REQUEST` one that is open to
everybody; for Azure, which calls a bucket a container, see `azure`. In S3 and Azure a prefix is listed like a
tree of folders, one request a folder with a few under way at a time, so memory is bounded by the folders that
are open, not by the bucket; in Google's store at once.

An object has changed if its size or its time has: pyarrow does not say etags when it lists.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as fs

from batchcap.errors import BatchcapError, SourceError, SourceNotFoundError
from batchcap.globs import Selection, SelectionState
from batchcap.storage import azure
from batchcap.storage.entries import FileEntry, SkipReason, has_image_suffix, skip_by_name, skip_by_path
from batchcap.storage.named import NamedFile
from batchcap.storage.sorting import sort_entries
from batchcap.storage.uris import printable, scheme_of

# Together less than a file may take by default, so that a store that is away is told from a file that hangs.
_CONNECT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 10.0
_ATTEMPTS = 3
_GCS_RETRIES_S = 20
# Folders that are listed ahead of the one whose turn it is.
_LISTED_AHEAD = 8
# How pyarrow's messages call what a person can do something about.
_DENIED = (
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "HTTP response code 403"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("] 401 ", "] 403 ", "Failed to get token"),
)
_AWAY = (
    *("NETWORK_CONNECTION", "curlCode", "resolve"),
    *("Could not connect", "Fail to get a new connection", "Timeout waiting"),
)
# What lets somebody into Azure's store stands in the URLs that pyarrow names in its messages.
_SECRET = re.compile(r"\?\S*\bsig=[^\s'\"]*")
_CREDENTIALS = {
    "az": "(AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_CONNECTION_STRING, or az login)",
    "gs": "(GOOGLE_APPLICATION_CREDENTIALS), or GS_NO_SIGN_REQUEST=1 if it is open to all",
    "s3": "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), "
    "or AWS_NO_SIGN_REQUEST=1 if it is open to all",
}
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Prefix:
    """All objects below a prefix that a user named.

    Args:
        uri: `s3://bucket/prefix`, without a slash at its end.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def entries(self, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """What may be an image, sorted by uri.

        Raises:
            SourceError: it can't be listed.
        """
        # In Google's store pyarrow shows folders only if somebody has made objects for them. In Azure's it
        # shows those that names imply, too. All at once, it would ask folder by folder as well, but one after
        # the other, and hold everything; at a name with nothing between two slashes it goes round until the
        # process dies.
        list_all = _list_at_once if self.uri.startswith("gs:") else _list_tree
        return list_all(self.uri, selection, skipped)

    def whole_prefixes(self) -> list[str]:
        """How the uris of its objects begin."""
        return [f"{self.uri}/"]


def resolve(source: str) -> Prefix | NamedFile:
    """Looks whether there is what a user named.

    Args:
        source: `s3://bucket`, `s3://bucket/key`, and so for `gs` and `az`.

    Raises:
        SourceNotFoundError: it does not exist.
        SourceError: it can't be reached, or not with these credentials.
    """
    if not source.partition("://")[2].strip("/"):
        raise SourceNotFoundError(f"{printable(source)} names no {_bucket_word(source)}")
    try:
        scheme, path = _split(source.rstrip("/"))
        uri = f"{scheme}://{path}"
        file_system = _file_system(scheme, _bucket_of(path))
        with _one_kind_of_error():
            info = _looked_up(file_system, scheme, path)
            if info.type is fs.FileType.File and source.endswith("/"):
                # There is an object of the name of the prefix, too.
                file_system.get_file_info(fs.FileSelector(path))
                return Prefix(uri)
    except OSError as error:
        raise _explained(source, error) from error
    if info.type is fs.FileType.Directory:
        return Prefix(uri)
    if info.type is fs.FileType.NotFound:
        if "/" not in path:
            raise _no_bucket(source)
        hint = "; a wildcard is not understood here, --include is" if set("*?[") & set(path) else ""
        raise SourceNotFoundError(f"{printable(source)} does not exist{hint}")
    return NamedFile(uri)


def stat(uri: str) -> FileEntry:
    """A look at one object.

    Raises:
        FileNotFoundError: there is certainly no such object.
        OSError: it can't be told.
    """
    scheme, path = _split(uri)
    with _one_kind_of_error():
        (info,) = _file_system(scheme, _bucket_of(path)).get_file_info([path])
    if info.type is not fs.FileType.File:
        raise FileNotFoundError("there is no such object")
    return _entry(uri, info)


def read_bytes(location: str, limit: int) -> bytes:
    """The content of an object, or `limit` + 1 bytes of one that is larger.

    Raises:
        OSError: it can't be read, after a few attempts.
    """
    scheme, path = _split(location)
    try:
        with (
            _one_kind_of_error(),
            _file_system(scheme, _bucket_of(path)).open_input_stream(path) as stream,
        ):
            data: bytes = stream.read(limit + 1)
            return data
    except OSError as error:
        raise OSError(_short(error)) from error


class _Folder(NamedTuple):
    """A folder that is open: what is in it, in order; of its folders, those still to list, and listings."""

    pending: deque[tuple[str, Any, SelectionState]]
    folders: deque[str]
    listings: deque["Future[list[Any]]"]


def _list_tree(uri: str, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
    scheme, path = _split(uri)
    try:
        file_system = _file_system(scheme, _bucket_of(path))
    except OSError as error:
        raise _explained(uri, error) from error

    def list_folder(path: str) -> list[Any]:
        with _one_kind_of_error():
            found: list[Any] = file_system.get_file_info(fs.FileSelector(path))
        return found

    def opened(path: str, found: list[Any], where: SelectionState) -> _Folder:
        pending = []
        for info in found:
            name, is_folder = info.base_name, info.type is fs.FileType.Directory
            if not name or info.path != f"{path}/{name}":
                # A key with nothing between two slashes: pyarrow gives the folder itself for what is there.
                skipped[SkipReason.UNREADABLE_FOLDER] += 1
            elif reason := skip_by_name(name, is_folder=is_folder):
                skipped[reason] += 1
            elif not is_folder and not has_image_suffix(name):
                skipped[SkipReason.NOT_AN_IMAGE] += 1
            elif (below := selection.enter(where, name, is_folder=is_folder)) is None:
                skipped[SkipReason.EXCLUDED] += 1
            else:
                # As in a whole key: "a-b" sorts before what is in "a".
                pending.append((name + "/" if is_folder else name, info, below))
        pending.sort(key=lambda item: item[0])
        folders = deque(info.path for name, info, _ in pending if name.endswith("/"))
        return _Folder(deque(pending), folders, deque())

    pool = ThreadPoolExecutor(_LISTED_AHEAD, thread_name_prefix="list-objects")
    try:
        try:
            levels = [opened(path, list_folder(path), selection.start())]
        except OSError as error:
            raise _explained(uri, error) from error
        while levels:
            level = levels[-1]
            while level.folders and len(level.listings) < _LISTED_AHEAD:
                level.listings.append(pool.submit(list_folder, level.folders.popleft()))
            if not level.pending:
                levels.pop()
                continue
            name, info, below = level.pending.popleft()
            if not name.endswith("/"):
                yield _entry(f"{scheme}://{info.path}", info)
                continue
            try:
                levels.append(opened(info.path, level.listings.popleft().result(), below))
            except FileNotFoundError:
                skipped[SkipReason.VANISHED] += 1
            except OSError:
                skipped[SkipReason.UNREADABLE_FOLDER] += 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _list_at_once(uri: str, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
    scheme, path = _split(uri)

    def entries() -> Iterator[FileEntry]:
        for info in file_system.get_file_info(fs.FileSelector(path, recursive=True)):
            if info.type is not fs.FileType.File:
                continue
            if reason := skip_by_path(info.path[len(path) + 1 :], selection):
                skipped[reason] += 1
            else:
                yield _entry(f"{scheme}://{info.path}", info)

    try:
        file_system = _file_system(scheme, _bucket_of(path))
        yield from sort_entries(entries(), skipped)
    except OSError as error:
        raise _explained(uri, error) from error


@lru_cache(maxsize=64)
def _file_system(scheme: str, bucket: str) -> fs.FileSystem:
    """What talks to a bucket; each may be in a region of its own.

    Raises:
        OSError: where it is can't be found out.
    """
    try:
        return _azure_account() if scheme == "az" else _connected(scheme, bucket)
    except ValueError as error:
        raise OSError(f"it can't be asked, is AWS_ENDPOINT_URL a URL: {error}") from error


def _connected(scheme: str, bucket: str) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=_is_set("GS_NO_SIGN_REQUEST"), retry_time_limit=timedelta(seconds=_GCS_RETRIES_S)
        )
    options: dict[str, Any] = {
        "anonymous": _is_set("AWS_NO_SIGN_REQUEST"),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "request_timeout": _REQUEST_TIMEOUT_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        address = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        options |= {"scheme": address.scheme, "endpoint_override": address.netloc}
    elif not region:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(region=region or "us-east-1", **options)


def _azure_account() -> fs.FileSystem:
    options = azure.options()
    try:
        make = fs.AzureFileSystem
    except (AttributeError, ImportError):
        raise OSError(
            f"this build of pyarrow, {pa.__version__}, has no Azure Blob Storage; install pyarrow from PyPI"
        ) from None
    azure.knock(options)
    try:
        return make(**options)
    except (ValueError, TypeError) as error:
        raise OSError(f"pyarrow does not take what the variables AZURE_STORAGE_* say: {error}") from error


def _looked_up(file_system: fs.FileSystem, scheme: str, path: str) -> fs.FileInfo:
    """What pyarrow knows of a path that may be a prefix."""
    try:
        (info,) = file_system.get_file_info([path])
    except OSError as error:
        # Who is let into one container of Azure's may list it, but not ask about it.
        if scheme != "az" or "/" in path or "] 403 " not in str(error):
            raise
    else:
        if scheme != "az" or info.type is not fs.FileType.NotFound:
            return info
    # There it does not see a prefix `a` beside an `a-b/c.jpg`, which sorts before it; a listing does.
    try:
        file_system.get_file_info(fs.FileSelector(path))
    except FileNotFoundError:
        return fs.FileInfo(path, type=fs.FileType.NotFound)
    return fs.FileInfo(path, type=fs.FileType.Directory)


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Of Azure's errors, pyarrow raises some as its own kind of exception."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _split(uri: str) -> tuple[str, str]:
    """The scheme, and bucket and key as pyarrow wants them.

    Raises:
        OSError: the key is one that pyarrow can't name.
    """
    path = uri.partition("://")[2]
    if "//" in path or path.startswith("/"):
        raise OSError("keys with nothing between two slashes can't be read")
    return scheme_of(uri) or "", path


def _bucket_of(path: str) -> str:
    return path.partition("/")[0]


def _entry(uri: str, info: fs.FileInfo) -> FileEntry:
    # A listing says thousandths of seconds, a look at one object says seconds.
    mtime_ns = (info.mtime_ns or 0) // _NS_PER_S * _NS_PER_S
    return FileEntry(uri, info.size, mtime_ns)


def _explained(source: str, error: OSError) -> BatchcapError:
    """What went wrong, for a person."""
    message, name = str(error), printable(source)
    scheme = scheme_of(source)
    if "NO_SUCH_BUCKET" in message or ("Bucket" in message and "not found" in message):
        return _no_bucket(source)
    if isinstance(error, FileNotFoundError):
        return SourceNotFoundError(f"{name} does not exist")
    if any(word in message for word in _DENIED):
        return SourceError(f"{name}: access denied; give credentials {_CREDENTIALS[scheme or 's3']}")
    if any(word in message for word in _AWAY):
        hint = {
            "az": ", and AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING right",
            "s3": ", and AWS_ENDPOINT_URL right if it is set",
        }.get(scheme or "", "")
        return SourceError(f"{name} can't be reached; is the network there{hint}?")
    return SourceError(f"{name} can't be read: {_short(error)}")


def _no_bucket(source: str) -> SourceNotFoundError:
    bucket = _bucket_of(source.partition("://")[2])
    return SourceNotFoundError(f"{printable(source)}: there is no {_bucket_word(source)} {printable(bucket)}")


def _bucket_word(source: str) -> str:
    return "container" if scheme_of(source) == "az" else "bucket"


def _short(error: OSError) -> str:
    """The error in one line, without secrets."""
    if isinstance(error, FileNotFoundError):
        return "there is no such object"
    return " ".join(_SECRET.sub("?...", str(error)).split())[:300]
