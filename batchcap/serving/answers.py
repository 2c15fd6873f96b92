"""What the server answers, as the OpenAPI description has it."""

import math
from dataclasses import asdict
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from batchcap.captioner.protocol import Caption
from batchcap.catalog import Picture, Said, SearchHit, SearchResult
from batchcap.serving.pictures import name_of
from batchcap.serving.service import ModelFacts

_FINGERPRINT = "4fd1c0f09be2a0c2e3d3a3b4cf9e6b4f5f6f1f3f9f0e8d7c6b5a493827160f1e"
_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]}, protected_namespaces=())


class CaptionAnswer(BaseModel):
    """The caption of one picture."""

    model_config = _example(
        image="example.jpg",
        caption="a brown dog runs on the beach",
        confidence=0.61,
        log_prob=-6.3,
        token_count=8,
        model="default",
        fingerprint=_FINGERPRINT,
        elapsed_s=0.12,
    )

    image: str = Field(description="The name of the file, as it was sent.")
    caption: str
    confidence: float | None = Field(
        description="The probability that the caption is acceptable; null where the model isn't calibrated."
    )
    log_prob: float | None = Field(
        description="Natural logarithm of the probability that the model gives the caption."
    )
    token_count: int
    model: str
    fingerprint: str = Field(description="The identity of model and decoding options.")
    elapsed_s: float = Field(description="Seconds from the last byte of the request to the caption.")


class ErrorDetail(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="For programs; stable.")
    reason: str | None = Field(
        None, description="Why a picture can't be captioned, as the quarantine has it."
    )
    message: str = Field(description="For people.")


class ErrorAnswer(BaseModel):
    """The form of every error."""

    model_config = _example(
        error={"code": "image", "reason": "truncated", "message": "image file is truncated"}
    )

    error: ErrorDetail


class FailedCaption(BaseModel):
    """A picture that can't be captioned, among others."""

    image: str
    error: ErrorDetail


class CaptionsAnswer(BaseModel):
    """A caption or an error for each file, in their order."""

    captions: list[CaptionAnswer | FailedCaption]


class Hit(BaseModel):
    """A picture that a search has found."""

    name: str = Field(description="Of the file, without its folders.")
    uri: str = Field(description="Where the file is, on the server's side.")
    caption: str
    confidence: float | None
    source: str = Field(description="`model` or `human`.")
    model: str | None
    score: float = Field(description="The higher, the better; comparable within this search only.")
    spans: list[tuple[int, int]] = Field(description="Where in the caption the words of the query stand.")
    width: int
    height: int
    content_hash: str
    image: str = Field(description="Path of the file on this server.")
    thumbnail: str = Field(description="Path of a small JPEG on this server.")


class SearchAnswer(BaseModel):
    """One page of a search."""

    model_config = _example(
        query="dog beach",
        total=1,
        limit=20,
        offset=0,
        hits=[
            {
                "name": "0001.jpg",
                "uri": "/photos/0001.jpg",
                "caption": "a brown dog runs on the beach",
                "confidence": 0.61,
                "source": "model",
                "model": "default",
                "score": 1.9,
                "spans": [[8, 11], [24, 29]],
                "width": 4000,
                "height": 3000,
                "content_hash": _HASH,
                "image": f"/images/{_HASH}",
                "thumbnail": f"/thumbnails/{_HASH}",
            }
        ],
    )

    query: str
    total: int = Field(description="Of all pages.")
    limit: int
    offset: int
    hits: list[Hit]


class SaidAnswer(BaseModel):
    """One of the captions that a picture has had."""

    caption: str
    source: str = Field(description="`model` or `human`.")
    model: str | None
    fingerprint: str | None
    confidence: float | None
    captioned_at: datetime
    is_live: bool = Field(description="Whether it is the one that is shown.")

    @classmethod
    def of(cls, said: Said) -> Self:
        """What is answered of one."""
        return cls(**asdict(said))


class PictureAnswer(BaseModel):
    """A picture of the collection, with its caption and those before."""

    model_config = _example(
        name="0001.jpg",
        uris=["/photos/0001.jpg"],
        caption="Rex runs on the beach",
        confidence=None,
        source="human",
        model=None,
        fingerprint=None,
        captioned_at="2026-01-31T18:00:00Z",
        width=4000,
        height=3000,
        format="jpeg",
        size_bytes=2_400_000,
        taken_at=None,
        content_hash=_HASH,
        image=f"/images/{_HASH}",
        thumbnail=f"/thumbnails/{_HASH}",
        history=[
            {
                "caption": "Rex runs on the beach",
                "source": "human",
                "model": None,
                "fingerprint": None,
                "confidence": None,
                "captioned_at": "2026-01-31T18:00:00Z",
                "is_live": True,
            }
        ],
    )

    name: str = Field(description="Of the first file, without its folders.")
    uris: list[str] = Field(description="Where it is, on the server's side; at most twenty.")
    caption: str
    confidence: float | None
    source: str = Field(description="`model` or `human`.")
    model: str | None
    fingerprint: str | None
    captioned_at: datetime
    width: int
    height: int
    format: str
    size_bytes: int
    taken_at: datetime | None = Field(description="By the camera's own clock.")
    content_hash: str
    image: str = Field(description="Path of the file on this server.")
    thumbnail: str = Field(description="Path of a small JPEG on this server.")
    history: list[SaidAnswer] = Field(description="What was said of it, the latest first; at most fifty.")

    @classmethod
    def of(cls, picture: Picture, history: list[Said]) -> Self:
        """What is answered of a picture."""
        return cls(
            name=name_of(picture.uris[0]),
            image=f"/images/{picture.content_hash}",
            thumbnail=f"/thumbnails/{picture.content_hash}",
            history=[SaidAnswer.of(said) for said in history],
            **asdict(picture),
        )


def caption_answer(name: str, caption: Caption, model: ModelFacts, elapsed_s: float) -> CaptionAnswer:
    """What is answered to a picture.

    Args:
        name: of its file.
        caption: of the model.
        model: what made it.
        elapsed_s: seconds it took.
    """
    return CaptionAnswer(
        image=name,
        caption=caption.text,
        confidence=caption.confidence,
        # JSON knows no infinity.
        log_prob=caption.log_prob if math.isfinite(caption.log_prob) else None,
        token_count=caption.token_count,
        model=model.name,
        fingerprint=model.fingerprint,
        elapsed_s=round(elapsed_s, 4),
    )


def search_answer(
    query: str, result: SearchResult, pictures: dict[str, Picture], *, limit: int, offset: int
) -> SearchAnswer:
    """A page of a search, with what is needed to show it.

    Args:
        query: as it was asked.
        result: what was found.
        pictures: at the locations found; one that has vanished since is left out.
        limit: of the page.
        offset: of the page.
    """
    hits = [_hit(hit, pictures[hit.uri]) for hit in result.hits if hit.uri in pictures]
    return SearchAnswer(query=query, total=result.total, limit=limit, offset=offset, hits=hits)


def _hit(hit: SearchHit, picture: Picture) -> Hit:
    return Hit(
        name=name_of(hit.uri),
        uri=hit.uri,
        caption=hit.caption,
        confidence=hit.confidence,
        source=hit.source,
        model=picture.model,
        score=hit.score,
        spans=list(hit.spans),
        width=hit.width,
        height=hit.height,
        content_hash=picture.content_hash,
        image=f"/images/{picture.content_hash}",
        thumbnail=f"/thumbnails/{picture.content_hash}",
    )
