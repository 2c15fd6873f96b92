"""The endpoints that caption: `POST /caption` and `POST /captions`."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request

from batchcap.errors import ImageError
from batchcap.serving.answers import (
    CaptionAnswer,
    CaptionsAnswer,
    ErrorAnswer,
    ErrorDetail,
    FailedCaption,
    caption_answer,
)
from batchcap.serving.problems import Problem, problem_of, usage
from batchcap.serving.service import Service
from batchcap.serving.uploads import Upload

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in (
        (400, "The request makes no sense, or the file is empty."),
        (401, "The token is missing or wrong."),
        (403, "The request comes from a page of another site, or by an unknown name."),
        (408, "The body took too long."),
        (413, "The body, or the picture, is too large."),
        (415, "The file is no picture of a known format."),
        (422, "The picture is damaged, or decoding it fails."),
        (429, "Too many pictures are waiting; see Retry-After."),
        (503, "Pictures can't be decoded now."),
        (504, "The answer took too long."),
    )
}


def _form(field: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["file"], "properties": {"file": field}}
    return {"multipart/form-data": {"schema": schema}}


_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_NUM_BEAMS = {
    "name": "num_beams",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1},
    "description": "Refused unless it is the number that the server decodes with: beams are chosen when "
    "it is started, and are part of the model's fingerprint.",
}


def captioning_router(service: Service) -> APIRouter:
    """The endpoints.

    Args:
        service: what captions.
    """
    router = APIRouter(tags=["captions"], responses=_ERRORS)
    max_files = min(service.options.max_files, service.options.max_queue)

    @asynccontextmanager
    async def received(request: Request, max_files: int) -> AsyncIterator[list[Upload]]:
        """The files of a request, each with its place in the queue, for as long as they are needed."""
        _check_parameters(request, service)
        taken = 0

        def admit() -> None:
            nonlocal taken
            service.admit()
            taken += 1

        try:
            # Before anything is read: who must come back shall not send it first.
            admit()
            async with service.uploads.received(request, max_files=max_files, admit=admit) as uploads:
                yield uploads
        finally:
            service.release(taken)

    async def caption_of(upload: Upload, started: float) -> CaptionAnswer:
        found = await service.caption(upload)
        return caption_answer(upload.name, found, service.model, time.monotonic() - started)

    @router.post(
        "/caption",
        summary="Caption one picture",
        openapi_extra={
            "parameters": [_NUM_BEAMS],
            "requestBody": {
                "required": True,
                "content": {**_form(_FILE), "image/*": _PICTURE, "application/octet-stream": _PICTURE},
            },
        },
    )
    async def caption(request: Request) -> CaptionAnswer:
        """Takes a form with the field `file` (`curl -F file=@example.jpg`), or the bytes of a picture."""
        async with received(request, max_files=1) as (upload,):
            return await caption_of(upload, time.monotonic())

    @router.post(
        "/captions",
        summary="Caption several pictures",
        openapi_extra={
            "parameters": [_NUM_BEAMS],
            "requestBody": {"required": True, "content": _form({"type": "array", "items": _FILE})},
        },
    )
    async def captions(request: Request) -> CaptionsAnswer:
        """Takes a form with a field `file` for each picture; a bad one keeps none of the others back."""
        async with received(request, max_files=max_files) as uploads:
            started = time.monotonic()
            found = await asyncio.gather(
                *(caption_of(upload, started) for upload in uploads), return_exceptions=True
            )
            return CaptionsAnswer(
                captions=[_or_failed(upload, one) for upload, one in zip(uploads, found, strict=True)]
            )

    return router


def _or_failed(upload: Upload, found: CaptionAnswer | BaseException) -> CaptionAnswer | FailedCaption:
    """A picture's answer; what is no picture's fault fails the whole request."""
    if isinstance(found, CaptionAnswer):
        return found
    if not isinstance(found, ImageError):
        raise found
    return FailedCaption(image=upload.name, error=ErrorDetail(**problem_of(found).describe()))


def _check_parameters(request: Request, service: Service) -> None:
    """Refuses what would have no effect."""
    unknown = sorted(request.query_params.keys() - {"num_beams"})
    if unknown:
        raise usage(f"unknown parameter {unknown[0][:50]!r}; there is num_beams")
    asked = request.query_params.get("num_beams")
    offered = service.model.num_beams
    if asked is not None and asked != str(offered):
        has = "has no beams" if offered is None else f"decodes with {offered}"
        raise Problem(
            400, "usage", f"num_beams can't be chosen here: this server {has}; see batchcap serve --num-beams"
        )
