"""How people write a day or a format, and what a filter makes of it."""

import re
from datetime import UTC, datetime, timedelta

from batchcap.errors import UsageError

_DAYS_AGO = re.compile(r"(\d{1,5})\s*d(?:ays?)?")
_FORMATS = {"jpg": "jpeg", "tif": "tiff", "heic": "heif", "jp2": "jpeg2000"}


def parse_time(text: str, option: str, now: datetime | None = None) -> datetime:
    """A day or time as people write it, in their own time zone; of a day, its beginning.

    Args:
        text: ISO 8601, `today`, `yesterday`, or `7d` for the day so many days ago.
        option: whose value it is, for the error.
        now: aware; the time now.

    Raises:
        UsageError: it can't be understood.
    """
    today = (now or datetime.now(UTC).astimezone()).replace(hour=0, minute=0, second=0, microsecond=0)
    days = {"today": 0, "yesterday": 1}.get(text.strip().lower())
    if ago := _DAYS_AGO.fullmatch(text.strip().lower()):
        days = int(ago[1])
    try:
        if days is None:
            # A naive one is taken for local time.
            return datetime.fromisoformat(text.strip()).astimezone()
        # Through the naive day: the clock may have been changed in between.
        return (today.replace(tzinfo=None) - timedelta(days=days)).astimezone()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text}: write a day as 2026-01-31, or '2026-01-31 18:00', today, yesterday, 7d"
        ) from None


def parse_format(text: str) -> str:
    """A format as the catalog has it, of its name or a suffix of its files."""
    return _FORMATS.get(text.lower(), text)
