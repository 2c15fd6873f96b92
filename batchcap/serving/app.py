"""The application: endpoints for programs, pages for people, and what stands before both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from batchcap import __version__
from batchcap.captioner.protocol import CaptionerProtocol
from batchcap.catalog import Catalog
from batchcap.errors import BatchcapError, UsageError
from batchcap.serving import metrics
from batchcap.serving.access_log import AccessLog
from batchcap.serving.answers import ErrorAnswer
from batchcap.serving.browsing import browsing_router
from batchcap.serving.captioning import captioning_router
from batchcap.serving.description import PAGE, REFUSALS, DescribedApp
from batchcap.serving.editing import editing_router
from batchcap.serving.guard import SESSION_COOKIE, SESSION_PATH, Guard, is_same, session_of, wants_html
from batchcap.serving.options import ServingOptions
from batchcap.serving.pages import STATIC, Pages
from batchcap.serving.problems import (
    FORM,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    Problem,
    problem_of,
    usage,
)
from batchcap.serving.service import ModelFacts, Service
from batchcap.serving.uploads import small_body

_MAX_FORM_BYTES = 4096
_SESSION_S = 30 * 24 * 3600
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_CODES = {404: (NOT_FOUND, "there is nothing here"), 405: (METHOD_NOT_ALLOWED, "not with this method")}


def create_app(
    captioner: CaptionerProtocol,
    catalog: Catalog | None = None,
    *,
    name: str = "captioner",
    num_beams: int | None = None,
    config: dict[str, Any] | None = None,
    options: ServingOptions | None = None,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """Makes the application; its threads run as long as its lifespan.

    Args:
        captioner: the loaded model; it is used by one thread.
        catalog: the collection to search and browse, opened to read; None for captions alone.
        name: what people call the model.
        num_beams: the model's decoding; None where it has no such thing.
        config: the model's configuration, shown with its status.
        options: of the server.
        access_log: has a line of each answer; it is closed when the application ends.
    """
    options = options or ServingOptions()
    model = ModelFacts(name, captioner.fingerprint, num_beams, config or {})
    service = Service(captioner, model, catalog, options)
    pages = Pages(options, has_catalog=catalog is not None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()
            if access_log is not None:
                access_log.close()

    async def answer_error(request: Request, error: Exception) -> Response:
        problem = _problem_of(error)
        # A form that a script sends asks for JSON.
        is_of_browser = request.method == "GET" or request.headers.get("content-type", "").startswith(FORM)
        if is_of_browser and wants_html(request.headers):
            return pages.render("problem.html", problem.status, active="other", problem=problem)
        return problem.response()

    app = DescribedApp(
        has_token=options.token is not None,
        title="batchcap",
        summary="Captions pictures, and searches the captions of a collection.",
        version=__version__,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys(
            (HTTPException, RequestValidationError, Problem, BatchcapError, TimeoutError), answer_error
        ),
    )
    app.add_middleware(Guard, options=options, metrics=service.metrics, access_log=access_log)
    app.include_router(captioning_router(service))
    app.include_router(browsing_router(service, pages))
    app.include_router(editing_router(service))
    _add_front_page(app, service, pages)
    _add_session(app, service, pages)
    _add_health(app, service)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _add_front_page(app: FastAPI, service: Service, pages: Pages) -> None:
    @app.get("/", tags=["server"], summary="What this server is", responses=REFUSALS | PAGE)
    async def front_page(request: Request) -> Response:
        """The page to caption pictures for a browser; for a program, version and model."""
        if wants_html(request.headers):
            return pages.render(
                "caption.html",
                active="caption",
                model=service.model,
                max_bytes=service.options.max_body_bytes,
            )
        return JSONResponse(
            {
                "message": "batchcap captions pictures: POST /caption",
                "health_check": "OK",
                "version": __version__,
                "model": {
                    "name": service.model.name,
                    "fingerprint": service.model.fingerprint,
                    "num_beams": service.model.num_beams,
                    # Of transformers, it may name the folder that it came from.
                    "config": _without_private(service.model.config),
                },
                "collection": service.catalog is not None and service.options.shows_collection,
            },
            headers={"vary": "accept"},
        )


def _add_session(app: FastAPI, service: Service, pages: Pages) -> None:
    """Where a browser, which can't send the token with every picture, exchanges it for a cookie."""
    token = service.options.token

    @app.get(SESSION_PATH, include_in_schema=False)
    async def ask_for_token() -> Response:
        return RedirectResponse("/", 303) if token is None else pages.render("session.html", is_wrong=False)

    @app.post(SESSION_PATH, include_in_schema=False)
    async def take_token(request: Request) -> Response:
        body = await small_body(request, max_bytes=_MAX_FORM_BYTES, timeout_s=service.options.body_timeout_s)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if token is None or not is_same(given, token):
            return pages.render("session.html", 401, is_wrong=True)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            SESSION_COOKIE,
            session_of(token),
            max_age=_SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["server"], summary="Whether the server runs", responses=REFUSALS)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    not_ready = {"model": ErrorAnswer, "description": "It doesn't."}

    @app.get(
        "/readyz", tags=["server"], summary="Whether it captions", responses={**REFUSALS, 503: not_ready}
    )
    async def readyz() -> dict[str, str]:
        if not service.can_caption:
            raise Problem(503, "not_ready", "the model isn't running")
        return {"status": "ok"}

    @app.get(
        "/metrics",
        tags=["server"],
        summary="Counts for Prometheus",
        # Not that of plain text, which errors would seem to be as well.
        response_class=Response,
        responses=REFUSALS | _TEXT,
    )
    async def prometheus() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _problem_of(error: Exception) -> Problem:
    """What the framework raises as well, in our form."""
    match error:
        case HTTPException():
            code, message = _CODES.get(error.status_code, (UsageError.code, "the request makes no sense"))
            return Problem(error.status_code, code, message, headers=error.headers)
        case RequestValidationError():
            first = error.errors()[0]
            return usage(f"{first['loc'][-1]}: {first['msg']}")
        case _:
            return problem_of(error)


def _without_private(value: Any) -> Any:
    """A configuration without what its maker marks as its own affair."""
    if not isinstance(value, dict):
        return value
    return {key: _without_private(of) for key, of in value.items() if not key.startswith("_")}
