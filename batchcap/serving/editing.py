"""The endpoint by which people say what a picture shows: `POST /images/{content_hash}/caption`."""

import json
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse
from python_multipart.multipart import parse_options_header

from batchcap.catalog import Catalog, EditOutcome
from batchcap.errors import UsageError
from batchcap.serving.answers import ErrorAnswer, PictureAnswer
from batchcap.serving.asking import Asked
from batchcap.serving.pictures import check_hash, find_picture, unknown_picture
from batchcap.serving.problems import FORM, NOT_FOUND, UNSUPPORTED, Problem, usage
from batchcap.serving.service import Service
from batchcap.serving.uploads import small_body

# Of the longest caption, each character escaped as JSON does it at worst.
_MAX_BODY_BYTES = 64 * 1024
_TEXT: dict[str, Any] = {
    "type": "object",
    "required": ["caption"],
    "properties": {"caption": {"type": "string", "description": "What the picture shows; one line."}},
    "additionalProperties": False,
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in (
        (400, "The caption is empty, too long or no text."),
        (401, "The token is missing or wrong."),
        (403, "The request comes from a page of another site, or the server shows no collection."),
        (404, "There is no such picture, or no catalog."),
        (408, "The body took too long."),
        (413, "The body is too long for a caption."),
        (415, "The body is neither JSON nor a form."),
        (429, "Too many captions are waiting to be written; see Retry-After."),
        (503, "The catalog can't be written now."),
        (504, "The answer took too long."),
    )
}
_ANSWERS: dict[int | str, dict[str, Any]] = {303: {"description": "To the picture's page, after a form."}}


def editing_router(service: Service) -> APIRouter:
    """The endpoint.

    Args:
        service: has the catalog.
    """
    router = APIRouter(tags=["collection"])

    @router.post(
        "/images/{content_hash}/caption",
        summary="Caption a picture yourself",
        response_model=PictureAnswer,
        responses=_ANSWERS | _ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _TEXT}, FORM: {"schema": _TEXT}},
            }
        },
    )
    async def edit(request: Request, content_hash: str, asked: Annotated[Asked, Query()]) -> Any:
        """Becomes the picture's caption, wherever the picture is; no model replaces it.

        JSON is answered with the picture, a form with the way back to its page, where the parameters lead
        back to a search.
        """
        catalog = service.required_catalog()
        check_hash(content_hash)
        content_type, _ = parse_options_header(request.headers.get("content-type"))
        read = {b"application/json": _of_json, FORM.encode(): _of_form}.get(content_type)
        if read is None:
            raise Problem(415, UNSUPPORTED, f"send the caption as application/json or {FORM}")
        body = await small_body(request, max_bytes=_MAX_BODY_BYTES, timeout_s=service.options.body_timeout_s)
        await service.writing(_write, catalog, content_hash, read(body))
        if read is _of_form:
            return RedirectResponse(f"/pictures/{content_hash}?{asked.query()}".rstrip("?"), 303)
        return await service.blocking(_answer, catalog, content_hash)

    return router


def _of_json(body: bytes) -> str:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise usage("the body is no JSON in UTF-8") from None
    match given:
        case {"caption": str(text), **others} if not others:
            return text
    raise usage('the body must be {"caption": "..."}, and no more')


def _of_form(body: bytes) -> str:
    try:
        given = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=2)
    except ValueError:
        raise usage("the body is no form in UTF-8") from None
    match given:
        case {"caption": [str(text)], **others} if not others:
            return text
    raise usage("the form must have one field `caption`, and no more")


def _write(catalog: Catalog, content_hash: str, text: str) -> None:
    try:
        with catalog.to_edit() as opened:
            outcome = opened.caption_image(content_hash, text)
    except UsageError as error:
        raise usage(str(error)) from error
    if outcome is EditOutcome.UNKNOWN:
        raise unknown_picture()
    if outcome is EditOutcome.VANISHED:
        raise Problem(
            404, NOT_FOUND, "this picture is gone from its place; if it is back, run batchcap index again"
        )


def _answer(catalog: Catalog, content_hash: str) -> PictureAnswer:
    return PictureAnswer.of(find_picture(catalog, content_hash), catalog.gallery.history(content_hash))
