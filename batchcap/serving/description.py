"""The OpenAPI description, where it must say more, or less, than the framework finds out by itself."""

from typing import Any

from fastapi import FastAPI

from batchcap.serving.answers import ErrorAnswer
from batchcap.serving.guard import needs_token

# What the guard says to any request.
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The token is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "The request comes by an unknown name, or from another site."},
}
# What an endpoint answers to browsers.
PAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}
_TOKEN = "token"
# The framework's own form of what a request does wrong, which is never answered: see `app.answer_error`.
_UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")
_UNUSED_REFERENCE = "#/components/schemas/HTTPValidationError"


class DescribedApp(FastAPI):
    """An application whose description is what it does.

    Args:
        has_token: whether requests must carry one.
        **options: of FastAPI.
    """

    def __init__(self, *, has_token: bool, **options: Any) -> None:
        self._has_token = has_token
        super().__init__(**options)

    def openapi(self) -> dict[str, Any]:
        """The description."""
        described = super().openapi()
        for path, operations in described["paths"].items():
            for operation in operations.values():
                responses = operation["responses"]
                if _UNUSED_REFERENCE in str(responses.get("422")):
                    del responses["422"]
                if self._has_token and needs_token(path):
                    operation["security"] = [{_TOKEN: []}]
        components = described.setdefault("components", {})
        for name in _UNUSED_SCHEMAS:
            components.get("schemas", {}).pop(name, None)
        if self._has_token:
            components["securitySchemes"] = {_TOKEN: {"type": "http", "scheme": "bearer"}}
        return described
