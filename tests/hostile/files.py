"""Which files there are: `hostile_files` has their bytes, `make_hostile` puts them into a folder."""

import functools
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile import broken, odd

_GOLDEN = Path(__file__).parents[1] / "golden" / "hostile.json"


@dataclass(frozen=True, slots=True)
class HostileFile:
    """One file, or what stands in a folder like one.

    Args:
        name: its path below the folder, as `os.fsdecode` gives it.
        data: its bytes; None where it has none of its own: links, FIFOs and the like.
    """

    name: str
    data: bytes | None = None


def golden() -> dict[str, dict[str, Any]]:
    """What becomes of each, by its name: `outcome` is `captioned`, `quarantined` or `skipped`.

    With `captioned` come `format`, `width`, `height` and the `colours` of the four quarters, by row; with
    the others comes the `reason`, of the quarantine or of the scan.
    """
    return json.loads(_GOLDEN.read_text())  # type: ignore[no-any-return]


@functools.cache
def hostile_files() -> tuple[HostileFile, ...]:
    """All files with bytes of their own that can be made here: some formats need an encoder."""
    groups = {**odd.groups(), **broken.groups(), "names": _names()}
    return tuple(
        HostileFile(f"{group}/{name}", data)
        for group, files in groups.items()
        for name, data in files.items()
    )


def make_hostile(folder: Path) -> list[HostileFile]:
    """Makes all of them, links and special files included.

    Args:
        folder: it is made; what is in it must not be in the way.

    Returns:
        What was made. Not every machine can make all: root may read everything, some file systems take no
        names that are not UTF-8, and some formats need an encoder.
    """
    made = []
    for file in hostile_files():
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(file.data or b"")
        except OSError:
            continue  # The name: only those of `_names` can be refused.
        made.append(file)
    for name, make in _PLACES.items():
        path = folder / "places" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if make(path):
            made.append(HostileFile(f"places/{name}"))
    return made


def _names() -> dict[str, bytes]:
    picture = odd.plain_png()
    names = [
        "new\nline.png",
        "tab\tand \x1b[31mcolour.png",
        "dog \U0001f436.png",
        "e\u0301 is not \u00e9.png",
        "100%41.png",
        "what?#.png",
        "-rf.png",
        "a'; DROP TABLE result; --.png",
        "UPPER.PNG",
        "two.jpg.png",
        os.fsdecode(b"latin-\xe9.png"),
        "x" * 251 + ".png",
        # Not looked at.
        "._photo.png",
        ".hidden.png",
        ".DS_Store",
        "Thumbs.db",
        "notes.txt",
        "png",
        ".folder/photo.png",
    ]
    return dict.fromkeys(names, picture)


def _socket(path: Path) -> bool:
    here = os.getcwd()
    # The address of a socket must be short.
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)
    return True


def _fifo(path: Path) -> bool:
    os.mkfifo(path)
    return True


def _link(target: str) -> Callable[[Path], bool]:
    def make(path: Path) -> bool:
        path.symlink_to(target)
        return True

    return make


def _unreadable_file(path: Path) -> bool:
    path.write_bytes(odd.plain_png())
    path.chmod(0)
    return not os.access(path, os.R_OK) or _removed(path)


def _removed(path: Path) -> bool:
    path.unlink()
    return False


# Name -> what makes it and says whether it could.
_PLACES: dict[str, Callable[[Path], bool]] = {
    "fifo.jpg": _fifo,
    "socket.jpg": _socket,
    "link.png": _link("../png/plain.png"),
    "link to a link.png": _link("link.png"),
    "link to a text.jpg": _link("../unsupported/text.jpg"),
    "link to nothing.png": _link("nowhere.png"),
    "link to itself.png": _link("link to itself.png"),
    "one way.png": _link("other way.png"),
    "other way.png": _link("one way.png"),
    "link to a folder": _link("../png"),
    "link to its folder": _link("."),
    "link to a fifo.jpg": _link("fifo.jpg"),
    "link to all files.png": _link("/"),
    "unreadable.png": _unreadable_file,
}
