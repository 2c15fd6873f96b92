"""Which captions are meant: the options that search and export share."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from batchcap.catalog import CaptionFilter

SinceOption = Annotated[
    str | None,
    typer.Option(
        help="Captioned on this day or later, in your time zone, whenever the picture was taken: "
        "2026-01-31, '2026-01-31 18:00', today, yesterday, 7d."
    ),
]
TakenSinceOption = Annotated[
    str | None,
    typer.Option(help="Taken on this day or later, by the camera's own clock; leaves out what has no date."),
]
TakenUntilOption = Annotated[
    str | None, typer.Option(help="Taken on this day, the whole of it, or earlier, by the camera's clock.")
]
ModelNameOption = Annotated[
    str | None,
    typer.Option("--model", help="By this model: its name or fingerprint; `people` for what people wrote."),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="At least so sure; what people wrote always is."),
]
UnderOption = Annotated[str | None, typer.Option(help="In this folder or below it, or this one file.")]
WidthOption = Annotated[int | None, typer.Option(min=1, help="At least so many pixels wide.")]
ImageFormatOption = Annotated[
    str | None, typer.Option("--format", help="Of this format, whatever the file is called: jpeg, png, heif.")
]


def caption_filter(
    *,
    since: str | None = None,
    taken_since: str | None = None,
    taken_until: str | None = None,
    model: str | None = None,
    min_confidence: float | None = None,
    under: str | None = None,
    width: int | None = None,
    image_format: str | None = None,
) -> "CaptionFilter":
    """The filter that the options make.

    Raises:
        UsageError: a day can't be understood.
    """
    from batchcap.catalog import CaptionFilter, parse_format, parse_time
    from batchcap.exchange.names import uri_of

    return CaptionFilter(
        since=None if since is None else parse_time(since, "--since"),
        taken_since=None if taken_since is None else _naive(parse_time(taken_since, "--taken-since")),
        taken_before=None if taken_until is None else _end_of(taken_until),
        model=model,
        min_confidence=min_confidence,
        under=None if under is None else uri_of(under),
        min_width=width,
        format=image_format and parse_format(image_format),
    )


def _naive(time: datetime) -> datetime:
    return time.astimezone().replace(tzinfo=None)


def _end_of(text: str) -> datetime:
    """The first instant that is no longer meant."""
    from batchcap.catalog import parse_time

    time = _naive(parse_time(text, "--taken-until"))
    is_day = len(text.strip()) <= len("2026-01-31") or ":" not in text
    try:
        return time + (timedelta(days=1) if is_day else timedelta(microseconds=1))
    except OverflowError:
        return datetime.max
