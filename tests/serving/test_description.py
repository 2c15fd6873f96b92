"""The OpenAPI description: whatever is asked, the server answers what stands in it."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from batchcap.catalog import Catalog
from batchcap.serving.app import create_app
from batchcap.serving.options import ServingOptions
from tests.costless import Costless, CostlessCaptioner
from tests.serving.conftest import TOKEN, Collection

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
BEARER = {"authorization": f"Bearer {TOKEN}"}
URL = "http://127.0.0.1:8012"


@pytest.fixture(scope="module")
def catalog(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """A catalog that may be written to."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    shutil.copy(collection.url.removeprefix("sqlite:///"), path)
    with Catalog.open(f"sqlite:///{path}") as opened:
        yield opened
        # They are started with the first request.
        shutdown_lifespans()


def operations_of(catalog: Catalog, **options: Any) -> Iterator[Any]:
    """What a server does, to be called in this process."""
    app = create_app(
        CostlessCaptioner(Costless()), catalog, num_beams=3, options=ServingOptions(decoders=1, **options)
    )
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    for found in schema.get_all_operations():
        yield found.ok()


def statuses_of(
    operation: Any, headers: dict[str, str], *, mode: GenerationMode, examples: int = 12, **fixed: Any
) -> set[int]:
    """Sends requests, each answered as is described; the statuses of the answers."""
    found: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, **fixed))
    def ask(case: Any) -> None:
        found.add(case.call_and_validate(base_url=URL, headers=headers, checks=CHECKS).status_code)

    ask()
    return found


@pytest.mark.parametrize(("token", "headers"), [(None, {}), (TOKEN, BEARER)], ids=["open", "token"])
def test_answers_are_those_that_are_described(
    catalog: Catalog, collection: Collection, token: str | None, headers: dict[str, str]
) -> None:
    content_hash = {"content_hash": collection.hashes["1.jpg"]}
    found: dict[str, set[int]] = {}
    for operation in operations_of(catalog, token=token):
        statuses = found[operation.label] = statuses_of(operation, headers, mode=GenerationMode.POSITIVE)
        if "{content_hash}" in operation.path:
            # Nobody guesses one.
            assert statuses == {404}
            statuses |= statuses_of(
                operation, headers, mode=GenerationMode.POSITIVE, path_parameters=content_hash
            )
        # Else there is nothing that could be wrong with it.
        if operation.query or operation.body:
            statuses |= statuses_of(operation, headers, mode=GenerationMode.NEGATIVE)
    assert len(found) == 12
    assert all(statuses & {200, 303} for statuses in found.values()), found
    assert {label for label, statuses in found.items() if 400 in statuses} == {
        *("POST /caption", "POST /captions", "GET /search", "GET /pictures/{content_hash}"),
        "POST /images/{content_hash}/caption",
    }


def test_without_the_token_there_is_one_answer(catalog: Catalog) -> None:
    for operation in operations_of(catalog, token=TOKEN):
        wanted = 200 if operation.path in ("/healthz", "/readyz") else 401
        assert statuses_of(operation, {}, mode=GenerationMode.POSITIVE, examples=3) == {wanted}
        assert bool(operation.definition.raw.get("security")) == (wanted == 401)
