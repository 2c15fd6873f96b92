"""A contact sheet: pictures, as of what a search has found, as one HTML page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from batchcap.catalog import SearchHit
from batchcap.collection import uri_to_path
from batchcap.errors import UsageError
from batchcap.publishing import replace, temporary
from batchcap.storage import is_local
from batchcap.thumbnails import thumbnails

_SIZE = 224
# The first bytes of a page of ours, which may be replaced without asking.
_BEGINNING = '<!doctype html>\n<html lang="en">\n<meta name="generator" content="batchcap">\n'
_PAGE = Template(
    _BEGINNING
    + """\
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 1.5rem; padding: 0; }
li { list-style: none; overflow-wrap: anywhere; }
img, .missing { display: block; width: 224px; height: 224px; background: #eee; }
.missing { display: grid; place-content: center; color: #666; }
small { color: #555; }
@media print { li { break-inside: avoid; } }
</style>
<h1>$title</h1>
<p>$shown</p>
<ul>
$pictures
</ul>
</html>
"""
)


@dataclass(frozen=True, slots=True)
class SheetItem:
    """A picture on a sheet.

    Args:
        uri: of the picture.
        alt: what is shown of it to who can't see it.
        html: what stands below it.
    """

    uri: str
    alt: str
    html: str


def write_contact_sheet(path: Path, title: str, hits: Sequence[SearchHit], total: int) -> None:
    """Writes what a search has found; see `write_sheet`.

    Args:
        path: of the page.
        title: what was searched for.
        hits: what is shown.
        total: hits that there are.
    """
    items = [SheetItem(hit.uri, hit.caption, _marked(hit.snippet())) for hit in hits]
    write_sheet(path, title, f"{len(hits):,} of {total:,}", items)


def write_sheet(path: Path, title: str, shown: str, items: Sequence[SheetItem]) -> None:
    """Writes the page; an earlier one of ours is replaced, anything else in its place is not.

    Args:
        path: of the page.
        title: its heading.
        shown: what stands below the heading.
        items: the pictures.

    Raises:
        UsageError: there is a file that is no contact sheet, or the page can't be written.
    """
    try:
        if path.exists() and not path.read_bytes().startswith(_BEGINNING.encode()):
            raise UsageError(f"{path} is there already and is no contact sheet; give another --output")
        written = temporary(path)
        try:
            written.write_text(_sheet(title, shown, items), encoding="utf-8", errors="backslashreplace")
            replace(written, path)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"can't write the contact sheet {path}: {error.strerror}") from error


def _sheet(title: str, shown: str, items: Sequence[SheetItem]) -> str:
    pictures = thumbnails([item.uri for item in items], _SIZE)
    return _PAGE.substitute(
        title=escape(title),
        shown=escape(shown),
        pictures="\n".join(_item(item, data) for item, data in zip(items, pictures, strict=True)),
    )


def _item(item: SheetItem, data: str | None) -> str:
    picture = '<span class="missing">not there</span>'
    if data is not None:
        picture = f'<img src="{data}" alt="{escape(item.alt)}" title="{escape(item.alt)}">'
        # What is in an archive has no address that a browser knows; objects have, but not without a key.
        link = Path(uri_to_path(item.uri)).as_uri() if is_local(item.uri) else item.uri
        picture = f'<a href="{escape(link)}">{picture}</a>'
    return f"<li>{picture}{item.html}<br><small>{escape(item.uri)}</small></li>"


def _marked(hit: SearchHit) -> str:
    """The caption in HTML, with the words of the query marked."""
    pieces, end = [], 0
    for start, stop in hit.spans:
        pieces += [escape(hit.caption[end:start]), f"<mark>{escape(hit.caption[start:stop])}</mark>"]
        end = stop
    return "".join([*pieces, escape(hit.caption[end:])])
