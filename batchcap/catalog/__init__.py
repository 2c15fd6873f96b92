"""The catalog: what is where, and what it shows, in SQL.

`Catalog` is the way in; the other names are what it takes and gives.
"""

from batchcap.catalog.catalog import Catalog
from batchcap.catalog.editing import EditOutcome, one_caption
from batchcap.catalog.findings import Finding, FindingKind
from batchcap.catalog.gallery import Gallery, Picture, Said
from batchcap.catalog.live import LiveCaption
from batchcap.catalog.missing import MissingFiles, UriList
from batchcap.catalog.query import QueryResult
from batchcap.catalog.rebuild import Rebuild
from batchcap.catalog.records import (
    PEOPLE,
    CaptionCount,
    Captioned,
    CaptionFilter,
    Failure,
    Forgotten,
    Likeness,
    ModelInfo,
    PartInfo,
    QuarantinedFile,
    RunInfo,
    SearchHit,
    SearchResult,
    Status,
    Uncertain,
    VectorModel,
    Wave,
)
from batchcap.catalog.resources import NamedQuery, named_queries
from batchcap.catalog.run import Run
from batchcap.catalog.run_facts import CaptionedFile, FailedFile
from batchcap.catalog.sealing import PART_ROWS, PartRow
from batchcap.catalog.vanishing import Vanished
from batchcap.catalog.wording import parse_format, parse_time

__all__ = [
    "PART_ROWS",
    "PEOPLE",
    "CaptionCount",
    "CaptionFilter",
    "Captioned",
    "CaptionedFile",
    "Catalog",
    "EditOutcome",
    "FailedFile",
    "Failure",
    "Finding",
    "FindingKind",
    "Forgotten",
    "Gallery",
    "Likeness",
    "LiveCaption",
    "MissingFiles",
    "ModelInfo",
    "NamedQuery",
    "PartInfo",
    "PartRow",
    "Picture",
    "QuarantinedFile",
    "QueryResult",
    "Rebuild",
    "Run",
    "RunInfo",
    "Said",
    "SearchHit",
    "SearchResult",
    "Status",
    "Uncertain",
    "UriList",
    "Vanished",
    "VectorModel",
    "Wave",
    "named_queries",
    "one_caption",
    "parse_format",
    "parse_time",
]
