"""The catalog's tables as mapped classes.

`image` is content (the sha256 of a file's bytes), `location` a path to it, `caption` what a model or a
person said of it, and `result` the log of what was said where: the rows that the Parquet parts hold.

::

    location ──> image <──> caption ──> model          image_vector ──> caption
                   ^           ^          ^            shown ─────────> caption
    part <──────── result ─────┘          │
      └──────────────┴─────────> run ─────┘            quarantine ────> run

The migrations in `sql/versions` create the tables, and with them what is not declared here: the view
`captions`, the full-text index (SQLite's `caption_fts`, PostgreSQL's column `shown.search_vector`), and the
triggers that keep that index and the table `shown`. A test holds both descriptions equal.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def utc_now() -> datetime:
    """The time now, in UTC, as the catalog stores it."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC.

    SQLite keeps it as text, `2026-01-31 09:30:00.000000`: it sorts, a person can read it, and SQLite's
    date functions take it. Python sees an aware datetime on every database.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """SQLite has no time zones; a database that has them shall know that this is UTC."""
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turns an aware datetime into UTC; a naive one is an error in the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a time zone can't be stored: {value}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Says that what was stored is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# An INTEGER PRIMARY KEY is SQLite's rowid and needs no index of its own; elsewhere ids are 64 bits wide.
RowId = BigInteger().with_variant(Integer, "sqlite")

# Text is sorted by code points, as Python sorts it and SQLite does anyway: the plan merges a scan with rows.
CodePointText = Text().with_variant(Text(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """The base of the mapped classes."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {
        str: CodePointText,
        bytes: LargeBinary(),
        int: BigInteger(),
        float: Double(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
    }


class CatalogInfo(Base):
    """The one row that says which catalog this is."""

    __tablename__ = "catalog"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    uuid: Mapped[str]
    created_at: Mapped[datetime]
    # The release that made the schema what it is: an older one, refusing the catalog, can name it.
    batchcap_version: Mapped[str]


class Run(Base):
    """One run of `batchcap index`."""

    __tablename__ = "run"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'done', 'failed', 'interrupted')", name="state"),
        Index(None, "started_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[list[str]]
    fingerprint: Mapped[str] = mapped_column(ForeignKey("model.fingerprint"))
    options: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    state: Mapped[str]
    counts: Mapped[dict[str, Any]]


class Model(Base):
    """A model that has captioned; its fingerprint covers weights, vocabulary and decoding options."""

    __tablename__ = "model"

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    # Numbers of its image vectors; NULL while none is stored.
    vector_size: Mapped[int | None] = mapped_column(Integer)


class Image(Base):
    """The content of one or more files."""

    __tablename__ = "image"
    # Clustered by its key: half the space and one page less to read than a rowid table and its index.
    __table_args__ = {"sqlite_with_rowid": False}

    content_hash: Mapped[str] = mapped_column(primary_key=True)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    format: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(index=True)
    # Cameras write local time without a zone, so this is no instant in UTC.
    taken_at: Mapped[datetime | None] = mapped_column(DateTime())
    # Make and model.
    camera: Mapped[str | None]
    # Where it was taken, in degrees, north and east positive; both or neither.
    latitude: Mapped[float | None]
    longitude: Mapped[float | None]
    # The live caption. The two tables point at each other, hence `use_alter`.
    caption_id: Mapped[int | None] = mapped_column(
        RowId, ForeignKey("caption.id", use_alter=True), index=True
    )


class Location(Base):
    """A path or URI at which an image was found."""

    __tablename__ = "location"
    # Clustered by uri, for the plan reads it in that order.
    __table_args__ = {"sqlite_with_rowid": False}

    uri: Mapped[str] = mapped_column(primary_key=True)
    content_hash: Mapped[str] = mapped_column(ForeignKey("image.content_hash"), index=True)
    size_bytes: Mapped[int]
    mtime_ns: Mapped[int]
    etag: Mapped[str | None]
    first_seen_at: Mapped[datetime]
    vanished_at: Mapped[datetime | None]


class Caption(Base):
    """What a model or a person said of an image. Never updated: a new caption is a new row."""

    __tablename__ = "caption"
    __table_args__ = (
        CheckConstraint("source IN ('model', 'human')", name="source"),
        CheckConstraint("(source = 'model') = (fingerprint IS NOT NULL)", name="fingerprint"),
        # One caption of each model; people, whose fingerprint is NULL, may say as much as they like.
        UniqueConstraint("content_hash", "fingerprint"),
        # For lists, newest first.
        Index(None, "created_at"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    content_hash: Mapped[str] = mapped_column(ForeignKey("image.content_hash"))
    source: Mapped[str]
    fingerprint: Mapped[str | None] = mapped_column(ForeignKey("model.fingerprint"))
    text: Mapped[str]
    # The text folded and stemmed by `catalog.text`, so that every database searches alike.
    search_text: Mapped[str]
    log_prob: Mapped[float | None]
    confidence: Mapped[float | None]
    token_count: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime]


class ImageVector(Base):
    """Where an image lies among others, as the model sees it that made a caption of it.

    A caption is one model's of one content, so it says whose vector of which image this is.
    """

    __tablename__ = "image_vector"

    caption_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("caption.id"), primary_key=True, autoincrement=False
    )
    # float16[D], little-endian, of length one.
    vector: Mapped[bytes]


class Shown(Base):
    """A caption that people find: it is the live one of an image that is at one location or more.

    Written by triggers alone, whoever changes images and locations. A search counts and ranks its hits by
    this table and looks up only those of its page.
    """

    __tablename__ = "shown"
    __table_args__ = (CheckConstraint("files >= 1", name="files"),)

    caption_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("caption.id"), primary_key=True, autoincrement=False
    )
    # How many: locations of the image that have not vanished.
    files: Mapped[int] = mapped_column(Integer)


class Result(Base):
    """One line of the log: this caption was given to this location. Parquet holds these rows."""

    __tablename__ = "result"
    # A caption belongs to one content, so the content_hash would add nothing to the key but size. The
    # caption comes first: new rows then go to the end of the index, and a caption's rows are found by it.
    __table_args__ = (UniqueConstraint("caption_id", "uri"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    uri: Mapped[str]
    # Follows from caption_id; it is here so that the log can be read by itself.
    content_hash: Mapped[str]
    caption_id: Mapped[int] = mapped_column(RowId, ForeignKey("caption.id"))
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    # NULL until a part takes the row; the index finds both the unsealed rows and those of one part.
    part_id: Mapped[int | None] = mapped_column(RowId, ForeignKey("part.id"), index=True)
    created_at: Mapped[datetime]


class Quarantine(Base):
    """A file that could not be captioned, and why."""

    __tablename__ = "quarantine"
    __table_args__ = (
        CheckConstraint("attempts >= 1", name="attempts"),
        {"sqlite_with_rowid": False},
    )

    uri: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    mtime_ns: Mapped[int]
    etag: Mapped[str | None]
    reason: Mapped[str] = mapped_column(index=True)
    detail: Mapped[str]
    attempts: Mapped[int] = mapped_column(Integer)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    updated_at: Mapped[datetime]


class Part(Base):
    """A Parquet file. `pending` until it is known to be on disk, whole; then `done`."""

    __tablename__ = "part"
    __table_args__ = (CheckConstraint("state IN ('pending', 'done')", name="state"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    state: Mapped[str]
    row_count: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str | None]
