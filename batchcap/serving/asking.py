"""What is asked of the collection: words and filters, as they stand in a URL."""

from typing import Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field, model_validator

from batchcap.catalog import CaptionFilter, parse_format, parse_time
from batchcap.errors import UsageError
from batchcap.storage.uris import absolute_uri, scheme_of, uri_to_path

PAGE_SIZE = 24
_MAX_LIMIT = 200
_NOT_FILTERS = frozenset({"q", "limit", "offset"})


class Asked(BaseModel):
    """The parameters of a search; `filter` says what the filters mean.

    What is empty counts as not given: a form sends all of its fields. What is unknown is refused: it would
    have no effect.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    q: str = Field(
        "",
        max_length=500,
        description='Words; also "a phrase", begin*, -without, this OR that. Without any: by the filters '
        "alone, newest first.",
    )
    since: str | None = Field(
        None,
        max_length=50,
        description="Captioned on this day or later, in the server's time zone: 2026-01-31, "
        "2026-01-31 18:00, today, yesterday, 7d.",
    )
    model: str | None = Field(
        None,
        max_length=200,
        description="By this model: its name or fingerprint; `people` for what people wrote.",
    )
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="At least so sure; what people wrote always is."
    )
    under: str | None = Field(
        None,
        max_length=4096,
        description="In this folder or below it, or this one file: a whole path or uri.",
    )
    width: int | None = Field(None, ge=1, le=1_000_000, description="At least so many pixels wide.")
    format: str | None = Field(
        None, max_length=50, description="Of this format, whatever the file is called: jpeg, png, heif."
    )
    limit: int = Field(PAGE_SIZE, ge=1, le=_MAX_LIMIT)
    offset: int = Field(0, ge=0, le=1_000_000)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that are given, by name."""
        return self.model_dump(exclude=set(_NOT_FILTERS), exclude_none=True)

    @property
    def is_any(self) -> bool:
        """Whether anything is asked for at all."""
        return bool(self.q.strip() or self.filters)

    def filter(self) -> CaptionFilter:
        """What the filters mean.

        Raises:
            UsageError: one makes no sense.
        """
        return CaptionFilter(
            since=None if self.since is None else parse_time(self.since, "since"),
            model=self.model,
            min_confidence=self.min_confidence,
            under=None if self.under is None else _uri_of(self.under),
            min_width=self.width,
            format=self.format and parse_format(self.format),
        )

    def query(self, **changes: Any) -> str:
        """The same as it stands in a URL; what is as without it is left out.

        Args:
            **changes: parameters that are to be others; they are not left out.
        """
        given = self.model_dump(exclude_defaults=True) | changes
        ordered = {name: given[name] for name in type(self).model_fields if name in given}
        return urlencode(ordered, quote_via=quote)


def _uri_of(name: str) -> str:
    """The uri of a folder or file that is named, be it there or not; a uri stays what it is."""
    if scheme_of(name) not in (None, "file"):
        return name
    if scheme_of(name) is None and not name.startswith("/"):
        raise UsageError(f"under {name}: write the whole path of a folder, as /photos/2024")
    return absolute_uri(uri_to_path(name))
