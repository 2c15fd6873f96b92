"""The one form in which the server says no: `{"error": {"code": ..., "message": ...}}`.

`code` is that of an error in `batchcap.errors`, or one of those below; a picture that can't be captioned has
`code` "image" and, as `reason`, what the quarantine would store. No message quotes a path of this machine.
"""

import logging
from collections.abc import Mapping

from fastapi.responses import JSONResponse

from batchcap.errors import (
    BatchcapError,
    CatalogError,
    CatalogUnavailableError,
    ImageError,
    PipelineError,
    Reason,
    UsageError,
)

logger = logging.getLogger("batchcap.serving")

UNAUTHORIZED = "unauthorized"
FORBIDDEN = "forbidden"
NOT_FOUND = "not_found"
METHOD_NOT_ALLOWED = "method_not_allowed"
TIMEOUT = "timeout"
TOO_LARGE = "too_large"
UNSUPPORTED = "unsupported"
BUSY = "busy"

# What a browser sends of a form without files.
FORM = "application/x-www-form-urlencoded"
_RETRY_SOON = {"retry-after": "10"}

# A picture that is bad is its sender's doing, whatever it did to the decoder.
_STATUS_OF_REASON = {
    Reason.EMPTY: 400,
    Reason.TOO_LARGE: 413,
    Reason.UNSUPPORTED: 415,
    Reason.UNREADABLE: 422,
    Reason.TRUNCATED: 422,
    Reason.TIMEOUT: 422,
    Reason.WORKER_CRASH: 422,
    # It was our own copy that could not be read.
    Reason.IO_ERROR: 503,
}


class Problem(Exception):
    """Why a request gets no answer but this.

    Args:
        status: of HTTP.
        code: for programs; stable.
        message: one line for a person.
        reason: why a picture can't be captioned.
        headers: that the answer has besides.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        reason: Reason | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.reason = reason
        self.headers = dict(headers or {})

    def describe(self) -> dict[str, str]:
        """The inside of the error form."""
        reason = {} if self.reason is None else {"reason": self.reason.value}
        return {"code": self.code, **reason, "message": self.message}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse({"error": self.describe()}, self.status, headers=self.headers)


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; what only its owner may know goes to the log."""
    match error:
        case Problem():
            return error
        case ImageError():
            return Problem(_STATUS_OF_REASON[error.reason], error.code, error.detail, reason=error.reason)
        case CatalogUnavailableError():
            logger.error("%s", error)
            return Problem(
                503, error.code, "the catalog is out of reach or in use; try again", headers=_RETRY_SOON
            )
        case CatalogError():
            logger.error("%s", error)
            return Problem(503, error.code, "the catalog can't be used now; the server's log says why")
        case PipelineError():
            logger.error("%s", error)
            return Problem(503, error.code, "pictures can't be decoded now; the server's log says why")
        case TimeoutError():
            return Problem(504, TIMEOUT, "the answer took too long; try again when there is less to do")
        case _:
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
            return Problem(500, BatchcapError.code, "something is wrong here; the server's log says what")


def usage(message: str) -> Problem:
    """A request that makes no sense."""
    return Problem(400, UsageError.code, message)
