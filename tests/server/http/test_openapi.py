"""The OpenAPI document says all of every route, because it is made from the routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from kvtool.server.app import ROUTES
from kvtool.server.http.openapi import Resource

# A part of each path's parameters, such that the path is one of the server's.
PARAMETERS = {"name:path": "x", "name": "x", "digest": "0" * 64, "id": "x"}


@pytest.fixture
def described(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operations(described: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def test_every_route_and_method_is_described(described: Any) -> None:
    expected = {
        (route.path_format, method)
        for route in ROUTES
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in operations(described)} == expected
    assert len({operation["operationId"] for _, _, operation in operations(described)}) == len(expected)


def test_no_operation_lacks_anything(described: Any) -> None:
    for path, method, operation in operations(described):
        assert operation["summary"], path
        responses = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
        succeeded = [status for status in responses if status[0] in "23"]
        assert succeeded, path
        for status in succeeded:
            assert status == "304" or all(body["schema"] for body in responses[status].values()), path
            assert status == "304" or responses[status], path
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        failed = {status for status in responses if status not in succeeded}
        assert {"400", "default"} <= failed
        assert "403" in failed
        assert "401" in failed or operation["security"] == []
        assert all(responses[status] == error for status in failed - {"503"}), path
        if "requestBody" in operation:
            assert {"408", "413"} <= failed
            assert all(body["schema"] for body in operation["requestBody"]["content"].values())
        assert ("{" in path) == any(each["in"] == "path" for each in operation.get("parameters", []))
        assert (method in ("POST", "PUT", "PATCH")) == ("requestBody" in operation)


def test_bodies_are_those_that_the_server_reads(described: Any) -> None:
    request = described["components"]["schemas"]["CompletionRequest"]
    temperature = {"type": "number", "minimum": 0, "maximum": 2}
    assert request["properties"]["temperature"]["anyOf"] == [temperature, {"type": "null"}]
    top_p = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert request["properties"]["top_p"]["anyOf"] == [top_p, {"type": "null"}]
    assert request["required"] == ["model", "prompt"]


def test_schemas_refer_to_what_is_there(described: Any) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    components = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(references(described)) == components


def test_405_names_all_methods_of_a_path(client: TestClient) -> None:
    paths = [route.path for route in ROUTES if isinstance(route, Route)]
    assert len(set(paths)) == len(paths), "two routes of one path each know only their own methods"
    for route in ROUTES:
        if not isinstance(route, Resource):
            continue
        path = route.path
        for name, value in PARAMETERS.items():
            path = path.replace(f"{{{name}}}", value)
        answer = client.request("OPTIONS", path)
        assert answer.status_code == 405, path
        assert "OPTIONS is not possible here" in answer.json()["error"]["message"]
        allowed = set(answer.headers["allow"].split(", "))
        assert allowed - {"HEAD"} == set(route.operations)
        assert ("HEAD" in allowed) == ("GET" in allowed)
