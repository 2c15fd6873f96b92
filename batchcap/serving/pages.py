"""The pages: templates filled in on the server. What the catalog says is text there, never HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse

from batchcap import __version__
from batchcap.serving.answers import Hit
from batchcap.serving.options import ServingOptions
from batchcap.serving.pictures import name_of

_HERE = Path(__file__).parent
STATIC = _HERE / "static"

# What people read of a filter that is set, before its value.
_FILTER_NAMES = {
    "since": "since",
    "model": "by",
    "min_confidence": "confidence ≥",
    "under": "in",
    "width": "width ≥",
    "format": "format",
}

# In units of the SVG.
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_TOP = 720, 160, 20


@dataclass(frozen=True, slots=True)
class Bar:
    """A day of the plot; in units of the SVG, but for `day` and `captions`."""

    day: date
    captions: int
    x: float
    y: float
    width: float
    height: float


class Pages:
    """Renders pages.

    Args:
        options: of the server: which pages there are.
        has_catalog: whether there is a collection to show.
    """

    def __init__(self, options: ServingOptions, *, has_catalog: bool) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._environment.globals |= {
            "version": __version__,
            "filter_names": _FILTER_NAMES,
            "shows_collection": has_catalog and options.shows_collection,
        }
        self._environment.filters |= {
            "count": lambda number: f"{number:,}",
            "percent": lambda share: f"{share:.0%}",
            "filename": name_of,
            "instant": _instant,
            "size": _size,
        }

    def render(self, template: str, http_status: int = 200, **values: Any) -> HTMLResponse:
        """A page.

        Args:
            template: its name.
            http_status: of the answer.
            **values: what the template shows.
        """
        page = self._environment.get_template(template).render(**values)
        # A name may hold what UTF-8 can't.
        return HTMLResponse(page.encode("utf-8", "replace"), http_status, headers={"vary": "accept"})


def marked(hit: Hit) -> list[tuple[str, bool]]:
    """The caption of a hit in pieces, each with whether it is one of the words that were found."""
    pieces, end = [], 0
    for start, stop in hit.spans:
        pieces += [(hit.caption[end:start], False), (hit.caption[start:stop], True)]
        end = stop
    return [piece for piece in [*pieces, (hit.caption[end:], False)] if piece[0]]


def bars(days: Sequence[tuple[date, int]]) -> list[Bar]:
    """Captions a day as bars of a plot, oldest first."""
    most = max((captions for _, captions in days), default=0) or 1
    step = _PLOT_WIDTH / max(len(days), 1)
    height = _PLOT_HEIGHT - _PLOT_TOP
    return [
        Bar(
            day,
            captions,
            x=round(number * step + 0.1 * step, 1),
            y=round(_PLOT_HEIGHT - captions / most * height, 1),
            width=round(0.8 * step, 1),
            height=round(captions / most * height, 1),
        )
        for number, (day, captions) in enumerate(days)
    ]


def _instant(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}" + (" UTC" if time.tzinfo else "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
