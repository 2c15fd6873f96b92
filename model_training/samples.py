"""A few photographs with the captions that each epoch gave them, as one page to look at."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from PIL import Image

from batchcap.captioner.images import ImageSpec, decode
from batchcap.errors import ImageError

THUMBNAIL_SIZE = 256  # pixels, of the longer side
_JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Sample:
    """What the network says of one photograph.

    Args:
        name: of the photograph.
        image_path: its file.
        caption: the network's.
        references: what people wrote.
    """

    name: str
    image_path: Path
    caption: str
    references: tuple[str, ...]


@dataclass(slots=True)
class _Entry:
    """One photograph.

    Args:
        image_path: its file.
        references: what people wrote.
        captions: epoch and caption, in the order in which they came.
        thumbnail: a JPEG, or None where the file can't be read.
    """

    image_path: Path
    references: tuple[str, ...]
    captions: list[tuple[int, str]] = field(default_factory=list)
    thumbnail: bytes | None = None


class Gallery:
    """Photographs and their captions over the epochs; small enough to go into a checkpoint."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """What `rows` gave; the files are read again for their thumbnails."""
        gallery = cls()
        for row in rows:
            captions = [(int(epoch), str(caption)) for epoch, caption in row["captions"]]
            path = Path(row["image_path"])
            gallery._entries[row["name"]] = _Entry(
                path, tuple(row["references"]), captions, read_thumbnail(path)
            )
        return gallery

    def rows(self) -> list[dict[str, Any]]:
        """Everything but the thumbnails, as plain values for JSON."""
        return [
            {
                "name": name,
                "image_path": str(entry.image_path),
                "references": list(entry.references),
                "captions": [list(caption) for caption in entry.captions],
            }
            for name, entry in self._entries.items()
        ]

    def add(self, epoch: int, samples: Iterable[Sample]) -> None:
        """Takes the captions of one epoch."""
        for sample in samples:
            if sample.name not in self._entries:
                thumbnail = read_thumbnail(sample.image_path)
                self._entries[sample.name] = _Entry(sample.image_path, sample.references, thumbnail=thumbnail)
            self._entries[sample.name].captions.append((epoch, sample.caption))

    def thumbnail(self, name: str) -> bytes | None:
        """The thumbnail of a photograph, a JPEG; None where its file can't be read."""
        return self._entries[name].thumbnail

    def page(self, title: str) -> str:
        """A page of HTML that holds its pictures and opens without a network."""
        figures = "\n".join(_figure(name, entry) for name, entry in self._entries.items())
        return _PAGE.format(title=html.escape(title), count=len(self._entries), figures=figures)


def read_thumbnail(path: Path) -> bytes | None:
    """A small JPEG of a picture, upright and in its own proportions; None where it can't be read."""
    try:
        return make_thumbnail(path.read_bytes(), THUMBNAIL_SIZE)
    except (ImageError, OSError):
        return None


def make_thumbnail(data: bytes, longer_side: int) -> bytes:
    """A small JPEG of a picture, upright and in its own proportions.

    Args:
        data: a picture file.
        longer_side: of the thumbnail, in pixels.

    Raises:
        ImageError: it can't be decoded.
    """
    decoded = decode(data, ImageSpec(longer_side))
    # The decoder stretches every picture into a square, as the network takes it.
    factor = longer_side / max(decoded.width, decoded.height)
    size = (max(round(decoded.width * factor), 1), max(round(decoded.height * factor), 1))
    buffer = io.BytesIO()
    Image.fromarray(decoded.pixels).resize(size).save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _figure(name: str, entry: _Entry) -> str:
    """One photograph: its picture, its latest caption, what people wrote, the earlier captions."""
    # What a person wrote says best what is to be seen.
    alt = html.escape(entry.references[0] if entry.references else name)
    if entry.thumbnail is None:
        picture = f'<p class="missing" role="img" aria-label="{alt}">can\'t be read</p>'
    else:
        data = base64.b64encode(entry.thumbnail).decode()
        picture = f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'
    references = "".join(f"<li>{html.escape(text)}</li>" for text in entry.references)
    *earlier, (epochs, latest) = _merged(entry.captions)
    rows = "".join(
        f'<tr><th scope="row">{each}</th><td>{html.escape(caption)}</td></tr>'
        for each, caption in reversed(earlier)
    )
    before = f"<details><summary>earlier epochs</summary><table>{rows}</table></details>" if rows else ""
    return f"""<article>
{picture}
<div>
<h2>{html.escape(name)}</h2>
<p class="caption">{html.escape(latest) or "(no word)"} <span>{epochs}</span></p>
{before}
<h3>people wrote</h3>
<ul>{references}</ul>
</div>
</article>"""


def _merged(captions: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """Epochs in words and caption, with neighbouring epochs of the same caption as one."""
    merged = []
    for caption, group in groupby(captions, key=lambda each: each[1]):
        epochs = [epoch for epoch, _ in group]
        first, last = epochs[0], epochs[-1]
        merged.append((f"epoch {first}" if first == last else f"epochs {first} to {last}", caption))
    return merged


# The policy says the same to the browser: nothing comes from elsewhere, nothing runs.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: sample captions</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
article {{ display: flex; flex-wrap: wrap; gap: 1.25rem; padding: 1.25rem 0; border-top: 1px solid #8886; }}
article > div {{ flex: 1 1 20rem; min-width: 0; overflow-wrap: anywhere; }}
img {{ align-self: flex-start; border-radius: 4px; max-width: 100%; }}
.missing {{ width: 256px; height: 170px; margin: 0; display: grid; place-items: center; background: #8883; }}
h2, h3 {{ font-size: .85rem; font-weight: 600; margin: 0; opacity: .75; }}
h3 {{ margin-top: .75rem; }}
.caption {{ font-size: 1.2rem; margin: .2rem 0 .5rem; }}
.caption span, summary, th {{ font-size: .85rem; font-weight: normal; opacity: .75; }}
th {{ padding-right: 1rem; text-align: left; vertical-align: top; white-space: nowrap; }}
ul {{ margin: .2rem 0 0; padding-left: 1.1rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>What the model says of {count} photographs that it was not trained on.</p>
{figures}
</body>
</html>
"""
