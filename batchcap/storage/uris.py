"""How places are written: what stands in the catalog, and what leads back to a file.

A local file is known by its absolute path, or by a `file://` URI with percent-escapes if the path isn't valid
UTF-8 (such names exist on Linux, and neither SQL nor Parquet can hold them). Everything else has a scheme.
"""

import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

from batchcap.errors import UsageError

FILE_SCHEME = "file://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(location: str) -> str | None:
    """The scheme of a URI in lower case; None for what is a path."""
    if location.startswith("/"):
        return None
    found = _SCHEME.match(location)
    return found and found[1].lower()


def path_to_uri(path: str) -> str:
    """The uri of a local file, whose path is absolute."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return FILE_SCHEME + quote_from_bytes(os.fsencode(path))
    return path


def absolute_uri(path: str) -> str:
    """The uri of a local file or folder as somebody named it, be it there or not."""
    # POSIX lets a path start with exactly two slashes. One file must not have two uris.
    return path_to_uri("/" + os.path.abspath(path).lstrip("/"))


def uri_to_path(uri: str) -> str:
    """Turns the uri of a local file into a path for `open`.

    The path of a `file://` URI holds lone surrogates where its bytes aren't UTF-8, as everywhere in
    Python: hand it to the operating system, but don't print or store it.

    Raises:
        UsageError: the uri is neither an absolute path nor a `file://` URI.
    """
    if uri.startswith("/"):
        return uri
    if uri.startswith(FILE_SCHEME + "/"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE_SCHEME)))
    raise UsageError(f"{printable(uri)} is no local file")


def printable(text: str) -> str:
    """The text as it is, or escaped where it would break a message of one line."""
    return text if text.isprintable() else repr(text)
