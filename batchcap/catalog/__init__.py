"""The catalog: what is where, and what it shows, in SQL.

`Catalog` is the way in; the other names are what it takes and gives.
"""

from batchcap.catalog.catalog import Catalog
from batchcap.catalog.query import QueryResult
from batchcap.catalog.records import (
    CaptionCount,
    Captioned,
    Failure,
    ModelInfo,
    PartInfo,
    QuarantinedFile,
    RunInfo,
    SearchHit,
    SearchResult,
    Status,
    Wave,
)
from batchcap.catalog.resources import NamedQuery, named_queries
from batchcap.catalog.run import Run
from batchcap.catalog.sealing import PART_ROWS, PartRow

__all__ = [
    "PART_ROWS",
    "CaptionCount",
    "Captioned",
    "Catalog",
    "Failure",
    "ModelInfo",
    "NamedQuery",
    "PartInfo",
    "PartRow",
    "QuarantinedFile",
    "QueryResult",
    "Run",
    "RunInfo",
    "SearchHit",
    "SearchResult",
    "Status",
    "Wave",
    "named_queries",
]
