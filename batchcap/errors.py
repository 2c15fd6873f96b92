"""Every error that batchcap raises on purpose.

::

    BatchcapError                 code "error", exit status 1
    ├── UsageError                "usage", exit status 2: an option or argument that makes no sense
    │   └── SourceNotFoundError   "source_not_found": a SOURCE that does not exist
    ├── SourceError               "source": a SOURCE that can't be listed or holds no image
    ├── ImageError                "image": one picture that can't be captioned; carries its `Reason`
    ├── BundleError               "bundle": a model that is missing, damaged or of a newer format
    ├── TrainingError             "training": training data or options that can't work
    ├── PipelineError             "pipeline": a run that stopped before its end
    ├── ClusterError              "cluster": a Ray cluster that can't be reached, or isn't as a run needs it
    ├── StoreError                "store": a folder of Parquet parts that can't be used or written
    │   └── PartDamagedError      "part_damaged": a Parquet part that can't be read any more
    ├── ExchangeError             "exchange": captions that can't be exported or imported
    ├── VerificationError         "verification": catalog and Parquet parts disagree
    └── CatalogError              "catalog": a catalog that can't be opened, read or written
        ├── NoCatalogError        "catalog" too: there is none to read
        ├── CatalogUnavailableError   "catalog_unavailable": it can't be reached now, but perhaps in a minute
        ├── CatalogBusyError      "catalog_busy": another run holds it
        ├── CatalogDamagedError   "catalog_damaged": it can't be read any more
        ├── CatalogVersionError   "catalog_version": older or newer than this batchcap
        └── QueryError            "query": SQL that is refused or wrong

The message of each is one line for a person: what is wrong and what to do. `code` is stable and meant
for programs; `exit_status` is what the command line returns.
"""

from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Why a file stands in the quarantine. The values are stored in the catalog: never change one."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    IO_ERROR = "io_error"
    WORKER_CRASH = "worker_crash"


class BatchcapError(Exception):
    """The base of all errors that batchcap raises on purpose."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1


class UsageError(BatchcapError):
    """An option or an argument makes no sense."""

    code = "usage"
    exit_status = 2


class SourceNotFoundError(UsageError):
    """A SOURCE does not exist."""

    code = "source_not_found"


class SourceError(BatchcapError):
    """A SOURCE can't be listed, or holds no image."""

    code = "source"


class ImageError(BatchcapError):
    """One picture can't be captioned.

    Args:
        reason: the class of the failure, as the quarantine stores it.
        detail: one line that says what was found.
    """

    code = "image"

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BundleError(BatchcapError):
    """A model bundle is missing, damaged or of a newer format."""

    code = "bundle"


class TrainingError(BatchcapError):
    """Training data or training options can't work."""

    code = "training"


class PipelineError(BatchcapError):
    """A run stopped before its end; what was committed stays."""

    code = "pipeline"


class ClusterError(BatchcapError):
    """A Ray cluster can't be reached, or isn't as a run needs it."""

    code = "cluster"


class StoreError(BatchcapError):
    """The folder of Parquet parts can't be used or written."""

    code = "store"


class PartDamagedError(StoreError):
    """A Parquet part can't be read any more."""

    code = "part_damaged"


class ExchangeError(BatchcapError):
    """Captions can't be exported or imported."""

    code = "exchange"


class VerificationError(BatchcapError):
    """Catalog and Parquet parts disagree."""

    code = "verification"


class CatalogError(BatchcapError):
    """The catalog can't be opened, read or written."""

    code = "catalog"


class NoCatalogError(CatalogError):
    """There is no catalog to read."""


class CatalogUnavailableError(CatalogError):
    """The catalog can't be written or read now; the same may work in a minute."""

    code = "catalog_unavailable"


class CatalogBusyError(CatalogError):
    """Another run holds the catalog."""

    code = "catalog_busy"


class CatalogDamagedError(CatalogError):
    """The catalog can't be read any more: what is in the file is no database, or a damaged one."""

    code = "catalog_damaged"


class CatalogVersionError(CatalogError):
    """The catalog's schema is older or newer than this batchcap."""

    code = "catalog_version"


class QueryError(CatalogError):
    """A query is refused or wrong."""

    code = "query"
