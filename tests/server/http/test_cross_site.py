"""What a web page can make a browser send, and what clients send that are no browsers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from kvtool.errors import UsageError
from kvtool.server.app import ROUTES, create_app
from kvtool.server.http.cross_site import read_origins
from kvtool.server.http.openapi import Resource
from kvtool.server.runtime.service import Service
from tests.server.asking import chat_body, post_chat

OTHER = "http://other.example"
CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
CONTENT = b'{"model": "served", "contents": [{"parts": [{"text": "filler"}]}]}'
FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]

FOREIGN: list[dict[str, str]] = [
    {**CROSS, "Origin": OTHER},
    CROSS,
    {"Origin": OTHER},
    {"Origin": "null"},
    {"Origin": "http://testserver:3000"},
    {"Origin": "http://testserver:3000", "Sec-Fetch-Site": "same-site"},
    {"Origin": "http://testserver.other.example"},
]


def closed_operations() -> list[tuple[str, str]]:
    """Method and path of all operations but those that say nothing of anyone."""
    resources = [route for route in ROUTES if isinstance(route, Resource) and not route.is_open]
    return [(method, each.path_format) for each in resources for method in each.operations]


@pytest.mark.parametrize(("method", "path"), closed_operations(), ids=str)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_are_refused(
    client: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    path = path.replace("{digest}", "0" * 64).replace("{name}", "docs/a.txt").replace("{id}", "x")
    for kind in ("application/json", *FORMS):
        body = {} if method == "GET" else {"content": CONTENT}
        answer = client.request(method, path, headers={**headers, "Content-Type": kind}, **body)
        assert answer.status_code == 403, answer.text
        assert "--allow-origin" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/v1/cachedContents").json() == {"cachedContents": []}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("headers", [{"Origin": "http://testserver"}, {"Sec-Fetch-Site": "none"}], ids=str)
@pytest.mark.parametrize(
    "path", ["/v1/cachedContents", "/v1/chat/completions", "/v1/completions", "/v1/lookup"]
)
def test_a_page_must_say_that_it_sends_json(
    client: TestClient, path: str, headers: dict[str, str], kind: str
) -> None:
    answer = client.post(path, content=CONTENT, headers={**headers, "Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://testserver"},
        # A proxy that speaks TLS, which passes the name on or does not.
        {"Origin": "https://testserver"},
        {"Origin": "https://cache.example", "Sec-Fetch-Site": "same-origin"},
        {},
    ],
    ids=str,
)
def test_the_servers_own_page_may_ask(client: TestClient, headers: dict[str, str]) -> None:
    assert post_chat(client, headers=headers, max_tokens=1).status_code == 200


@pytest.mark.parametrize("kind", FORMS)
def test_other_clients_are_not_asked_for_a_content_type(client: TestClient, kind: str) -> None:
    answer = client.post("/v1/cachedContents", content=CONTENT, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/", "/v1/documents", "/v1/documents/docs/a.txt", "/healthz"])
def test_links_may_be_followed(client: TestClient, path: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("other.example:8400", 403),
        ("OTHER.example.", 403),
        ("127.0.0.1.other.example", 403),
        ("localhost:8400", 200),
        ("127.0.0.1:8400", 200),
        ("[::1]:8400", 200),
        ("kvtool.localhost", 200),
        ("", 200),
    ],
)
def test_names_that_a_site_gave_this_machine(client: TestClient, host: str, status: int) -> None:
    """DNS rebinding: for the browser, the page and the server are of one origin."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert client.get("/v1/documents", headers=headers).status_code == status
    assert client.get("/v1/documents", headers={"Host": host}).status_code == status


def test_with_tokens_the_server_may_have_any_name(service: Service) -> None:
    with TestClient(create_app(service, {"a-token-of-24-characters": ""})) as client:
        headers = {"Host": "cache.example", "Authorization": "Bearer a-token-of-24-characters"}
        assert client.get("/v1/documents", headers=headers).status_code == 200
        del headers["Authorization"]
        assert client.get("/v1/documents", headers=headers).status_code == 401


def preflight(client: TestClient, origin: str) -> Any:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return client.options("/v1/chat/completions", headers={**CROSS, **asked, "Origin": origin})


def test_pages_of_allowed_origins(service: Service) -> None:
    tokens = {"a-token-of-24-characters": ""}
    with TestClient(create_app(service, tokens, read_origins(["https://Chat.example/"]))) as client:
        allowed = {**CROSS, "Origin": "https://chat.example"}
        answer = preflight(client, allowed["Origin"])
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == allowed["Origin"]
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
        # The page reads errors too, such as that of a missing token.
        answer = client.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers=allowed)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == allowed["Origin"]
        headers = {**allowed, "Authorization": f"Bearer {next(iter(tokens))}"}
        answer = client.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == allowed["Origin"]
        assert preflight(client, OTHER).status_code == 403
        assert post_chat(client, headers={**headers, "Origin": OTHER}).status_code == 403


def test_without_allowed_origins_preflights_are_refused(client: TestClient) -> None:
    assert preflight(client, OTHER).status_code == 403


@pytest.mark.parametrize("value", ["*", "chat.example", "https://", "https://chat.example/path", "null", ""])
def test_what_is_no_origin(value: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        read_origins([value])
