"""The files of the page at ``/``, and the numbers that its charts are drawn from."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.server.web import routes
from tests.server.asking import cached_tokens, chat

TOKENS = {"a-token-that-is-long": "ada", "another-token-as-long": "bob"}


def test_the_page_reaches_nobody_else(client: TestClient) -> None:
    for path in routes.PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        # A namespace is a name, and nothing is fetched from it.
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w[\w.-]*\.\w+", answer.text)
        assert "innerHTML" not in answer.text


def test_nothing_inline_would_run(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|\s(?:style|on\w+)=", answer.text)


def test_what_the_page_names_is_there(client: TestClient) -> None:
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', client.get("/").text)
    scripts = [path for path in routes.PATHS if path.endswith(".js")]
    imported = [re.findall(r'from "\./([^"]+)"', client.get(path).text) for path in scripts]
    paths = {f"/{path}" for path in named} | {f"/page/{name}" for names in imported for name in names}
    assert paths == set(routes.PATHS) - {"/"}


@pytest.mark.parametrize("path", ["/page/", "/page/x.js", "/page/../site.py", "/page/%2e%2e/site.py"])
def test_nothing_else_is_given_out(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_needs_no_token_and_all_data_does(service: Service) -> None:
    service.tenants = dict.fromkeys(TOKENS.values(), service.tenants[""])
    with TestClient(create_app(service, TOKENS)) as client:
        assert {client.get(path).status_code for path in routes.PATHS} == {200}
        assert client.get("/v1/stats").status_code == client.get("/v1/models").status_code == 401


def test_stats_count_what_was_asked(client: TestClient, service: Service) -> None:
    before = client.get("/v1/stats").json()
    answers = [chat(client, documents=["docs/a.txt"], use_cache=use) for use in (True, False, False)]
    usages = [answer["usage"] for answer in answers]
    stats = client.get("/v1/stats").json()
    assert before["tokens"] == {"prompt": 0, "cached": 0, "generated": 0}
    assert stats["tokens"] == {
        "prompt": sum(usage["prompt_tokens"] for usage in usages),
        "cached": cached_tokens(answers[0]),
        "generated": sum(usage["completion_tokens"] for usage in usages),
    }
    assert [stats["time_to_first_token"][kind]["count"] for kind in ("cached", "uncached")] == [1, 2]
    assert 0 < stats["time_to_first_token"]["cached"]["seconds"] < 60
    assert stats["memory"] == {"used": service.memory.used, "limit": service.memory.limit}
    assert stats["running"] == 0


def test_stats_of_several_tenants_are_nobodys(service: Service) -> None:
    service.tenants = dict.fromkeys(TOKENS.values(), service.tenants[""])
    with TestClient(create_app(service, TOKENS)) as client:
        answer = client.get("/v1/stats", headers={"Authorization": f"Bearer {next(iter(TOKENS))}"})
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
