"""The endpoints that show the collection; each answers JSON to a program and a page to a browser."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

from batchcap.catalog import CaptionFilter, Catalog
from batchcap.errors import UsageError
from batchcap.serving.answers import ErrorAnswer, PictureAnswer, SearchAnswer, search_answer
from batchcap.serving.asking import Asked
from batchcap.serving.description import PAGE
from batchcap.serving.guard import is_head, wants_html
from batchcap.serving.pages import Pages, bars, marked
from batchcap.serving.pictures import (
    Description,
    check_hash,
    describe_original,
    find_picture,
    open_original,
)
from batchcap.serving.problems import usage
from batchcap.serving.service import Remembered, Service

_DAYS = 30
# Counting them reads every caption, as counting by a column without an index does.
_DAYS_REMEMBERED_S = 60.0
_QUARANTINED = 100
_CHUNK_BYTES = 2**18
# What has this hash stays as it is; but a token may be taken away.
_CACHE_CONTROL = "private, max-age=3600"
# What browsers show as it is.
_SHOWN_FORMATS = frozenset({"jpeg", "png", "gif", "webp", "avif", "bmp"})
_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "A JPEG file."}}
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already."}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}}, "description": "The file as it is."},
    415: {"model": ErrorAnswer, "description": "Browsers don't show files of its type."},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The token is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "The server shows no collection beyond its own machine."},
    400: {"model": ErrorAnswer, "description": "A parameter makes no sense."},
    404: {"model": ErrorAnswer, "description": "There is no such picture, or no catalog."},
    503: {"model": ErrorAnswer, "description": "The catalog can't be used now."},
    504: {"model": ErrorAnswer, "description": "The answer took too long."},
}


def browsing_router(service: Service, pages: Pages) -> APIRouter:
    """The endpoints.

    Args:
        service: has the catalog.
        pages: for browsers.
    """
    router = APIRouter(tags=["collection"], responses=_ERRORS)

    catalog = service.required_catalog
    days_of_captions = Remembered(lambda: catalog().gallery.captions_a_day(_DAYS), for_s=_DAYS_REMEMBERED_S)

    @router.get("/search", summary="Search the captions", response_model=SearchAnswer, responses=PAGE)
    async def search(request: Request, asked: Annotated[Asked, Query()]) -> Any:
        """Finds pictures by the words of their captions, best first; by filters alone, newest first."""
        opened = catalog()
        answer = await service.blocking(_search, opened, asked, _meant(asked))
        if not wants_html(request.headers):
            return answer
        return pages.render(
            "search.html",
            active="search",
            asked=asked,
            answer=answer,
            hits=[(hit, marked(hit)) for hit in answer.hits],
            models=await service.blocking(opened.gallery.models),
        )

    @router.get("/collection", summary="What the catalog holds, counted", responses=PAGE)
    async def collection(request: Request) -> Response:
        """Counts of images, captions, runs and quarantined files; the same as `batchcap status --json`."""
        opened = catalog()
        status = await service.blocking(opened.status)
        if not wants_html(request.headers):
            return JSONResponse(_plain(asdict(status)))
        quarantine = await service.blocking(lambda: opened.quarantine(limit=_QUARANTINED))
        days = await service.blocking(days_of_captions)
        return pages.render(
            "collection.html",
            active="collection",
            status=status,
            quarantine=quarantine,
            bars=bars(days),
            most=max((captions for _, captions in days), default=0),
        )

    @router.get(
        "/pictures/{content_hash}",
        summary="What is known of a picture",
        response_model=PictureAnswer,
        responses=PAGE,
    )
    async def picture(request: Request, content_hash: str, asked: Annotated[Asked, Query()]) -> Any:
        """Its caption and those before, its files and its size; a search leads back from the page to it."""
        opened = catalog()
        found = await service.blocking(find_picture, opened, content_hash)
        history = await service.blocking(opened.gallery.history, content_hash)
        if not wants_html(request.headers):
            return PictureAnswer.of(found, history)
        return pages.render(
            "picture.html",
            active="search",
            asked=asked,
            picture=found,
            history=history,
            is_shown=found.format.lower() in _SHOWN_FORMATS,
        )

    @router.get(
        "/images/{content_hash}",
        summary="A picture of the collection",
        response_class=StreamingResponse,
        responses=_FILE | _UNCHANGED,
    )
    async def image(request: Request, content_hash: str) -> Response:
        """The file as it was captioned; not one that has changed since, nor one that is no picture."""
        opened = catalog()
        headers = _picture_headers(content_hash)
        is_known = request.headers.get("if-none-match") == headers["etag"]
        if is_head(request.scope):
            described = await service.blocking(lambda: describe_original(find_picture(opened, content_hash)))
            if is_known:
                return Response(status_code=304, headers=headers)
            return Response(media_type=described.media_type, headers=headers | _file_headers(described))
        original = await service.blocking(lambda: open_original(find_picture(opened, content_hash)))
        if is_known:
            original.file.close()
            return Response(status_code=304, headers=headers)
        return StreamingResponse(
            _chunks(original.file),
            media_type=original.media_type,
            headers=headers | _file_headers(original),
            background=BackgroundTask(original.file.close),
        )

    @router.get(
        "/thumbnails/{content_hash}",
        summary="A small picture",
        response_class=Response,
        responses=_JPEG | _UNCHANGED,
    )
    async def thumbnail(request: Request, content_hash: str) -> Response:
        """The middle of a picture as a small square."""
        opened = catalog()

        headers = _picture_headers(check_hash(content_hash))
        is_known = request.headers.get("if-none-match") == headers["etag"]

        def find_out() -> Response:
            # The catalog is asked although there may be a copy: the picture may have vanished.
            picture = find_picture(opened, content_hash)
            if not is_head(request.scope):
                data = service.thumbnails.make(picture)
                return Response(data, media_type="image/jpeg", headers=headers)
            service.thumbnails.check(picture)
            response = Response(media_type="image/jpeg", headers=headers)
            # Nobody knows before it is made.
            del response.headers["content-length"]
            return response

        response = await service.blocking(find_out)
        return Response(status_code=304, headers=headers) if is_known else response

    return router


def _meant(asked: Asked) -> CaptionFilter:
    try:
        return asked.filter()
    except UsageError as error:
        raise usage(str(error)) from error


def _search(catalog: Catalog, asked: Asked, where: CaptionFilter) -> SearchAnswer:
    result = catalog.search(asked.q, limit=asked.limit, offset=asked.offset, where=where)
    pictures = catalog.gallery.at([hit.uri for hit in result.hits])
    return search_answer(asked.q, result, pictures, limit=asked.limit, offset=asked.offset)


def _picture_headers(content_hash: str) -> dict[str, str]:
    return {"etag": f'"{content_hash}"', "cache-control": _CACHE_CONTROL}


def _file_headers(file: Description) -> dict[str, str]:
    return {
        "content-length": str(file.size_bytes),
        "content-disposition": f"inline; filename*=UTF-8''{quote(file.name, safe='')}",
    }


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _plain(value: Any) -> Any:
    """Times as text."""
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
