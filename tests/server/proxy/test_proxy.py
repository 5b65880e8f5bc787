"""What the proxy sends to the engine, and what clients get: whole, streamed, passed on, and where something is wrong."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.blending.save import save_blend
from kvtool.connectors.blend_salt import blend_salt
from kvtool.model.conversation import Message
from kvtool.server.proxy.app import create_proxy
from kvtool.server.proxy.bodies import PASSED
from kvtool.server.proxy.engine import Engine
from kvtool.server.proxy.prompts import Prompts
from kvtool.server.runtime.request import ConversationPrompt, TextPrompt
from kvtool.store.local import LocalStore
from tests.server.asking import QUESTION, THREE, chat_body
from tests.server.proxy.engine import WORDS, FakeEngine

TEXT = "".join(WORDS)
TWO = THREE[:2]
ASKED = ConversationPrompt([Message("user", QUESTION)], {})


def completion_body(**more: Any) -> dict[str, Any]:
    return {"model": "served", "prompt": QUESTION, "documents": TWO, **more}


def posted(proxy: httpx.Client, body: Any, path: str = "/v1/chat/completions", status: int = 200) -> Any:
    answer = proxy.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat_over_documents_is_asked_for_as_token_ids(
    proxy: httpx.Client, engine: FakeEngine, prompts: Prompts
) -> None:
    answer = posted(proxy, chat_body(documents=TWO, seed=3, top_k=5, stop=["x"], recompute=0.3))
    (request,) = engine.requests
    assert request["path"] == "/v1/completions"
    assert request["body"] == {
        "model": "served",
        "prompt": prompts.after(TWO, ASKED).token_ids,
        "temperature": 0,
        "max_tokens": 12,
        "seed": 3,
        "top_k": 5,
        "stop": ["x"],
        "kv_transfer_params": {"kvtool": {"documents": TWO, "blend": None}},
    }
    assert answer.pop("id").startswith("chatcmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    n = len(request["body"]["prompt"])
    assert answer == {
        "object": "chat.completion",
        "model": "served",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": n,
            "completion_tokens": 3,
            "total_tokens": n + 3,
            "prompt_tokens_details": {"cached_tokens": 5},
        },
    }


def test_a_stored_blend_is_named(
    proxy: httpx.Client, engine: FakeEngine, documents: LocalStore, served: kvtool.Model
) -> None:
    save_blend("both", TWO, served, documents)
    posted(proxy, chat_body(documents=TWO))
    body = engine.requests[0]["body"]
    assert body["kv_transfer_params"] == {"kvtool": {"documents": TWO, "blend": "both"}}
    # Blocks that are filled from a blend are never those of a plain prompt with the same tokens.
    assert body["cache_salt"] == blend_salt(documents["both"].segments[0].identity)
    stored = documents.load("both", served).token_ids.tolist()
    assert body["prompt"][: len(stored)] == stored


def test_what_is_null_is_left_out(proxy: httpx.Client, engine: FakeEngine) -> None:
    """vLLM's completions refuse null for some of these."""
    given: dict[str, Any] = {"seed": 0, "top_k": 0, "ignore_eos": False}
    nulls = dict.fromkeys(field for field in PASSED if field not in given | {"model": ""})
    posted(proxy, completion_body(**given, **nulls, max_tokens=None, logprobs=None), "/v1/completions")
    body = engine.requests[0]["body"]
    assert body.keys() == {"model", "prompt", "max_tokens", "kv_transfer_params", *given}
    assert body.items() >= {**given, "max_tokens": 16}.items()


def test_completions_are_passed_back_as_they_are(
    proxy: httpx.Client, engine: FakeEngine, prompts: Prompts
) -> None:
    answer = posted(proxy, completion_body(prompt=[QUESTION, "And?"], n=2), "/v1/completions")
    asked = [prompts.after(TWO, TextPrompt(text)).token_ids for text in (QUESTION, "And?")]
    body = engine.requests[0]["body"]
    assert (body["prompt"], body["n"], body["max_tokens"]) == (asked, 2, 16)
    assert (answer["id"], answer["object"], len(answer["choices"])) == ("cmpl-1", "text_completion", 4)
    streamed = proxy.post("/v1/completions", json=completion_body(stream=True))
    *chunks, done = events(streamed)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == list(WORDS)
    assert (done, chunks[0]["id"]) == ("[DONE]", "cmpl-1")


def test_a_streamed_chat_has_the_chunks_of_one(proxy: httpx.Client, engine: FakeEngine) -> None:
    body = chat_body(documents=TWO, stream=True, n=2, stream_options={"include_usage": True})
    *chunks, usage, done = events(proxy.post("/v1/chat/completions", json=body))
    assert engine.requests[0]["body"]["stream_options"] == {"include_usage": True}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [choice["delta"]["role"] for choice in chunks[0]["choices"]] == ["assistant"] * 2
    for index in range(2):
        own = [c for chunk in chunks[1:] for c in chunk["choices"] if c["index"] == index]
        assert [choice["delta"].get("content") for choice in own] == [*WORDS, None]
        assert [choice["finish_reason"] for choice in own] == [None, None, None, "stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_a_chat(proxy: httpx.Client, engine: FakeEngine, stream: bool) -> None:
    body = chat_body(documents=TWO, logprobs=True, top_logprobs=2, stream=stream)
    answer = proxy.post("/v1/chat/completions", json=body)
    assert engine.requests[0]["body"]["logprobs"] == 2
    choices = [c for e in events(answer)[1:-1] for c in e["choices"]] if stream else answer.json()["choices"]
    content = [token for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    assert [token["token"] for token in content] == list(WORDS)
    assert content[2]["bytes"] == list("é.".encode())
    assert [top["token"] for top in content[0]["top_logprobs"]] == [" a", "Seven"]
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -1.0]


def test_openais_client_sees_nothing_unusual(proxy: httpx.Client, engine: FakeEngine) -> None:
    client = openai.OpenAI(base_url=f"{proxy.base_url}/v1", api_key="a-key", max_retries=0)
    asked: Any = {"model": "served", "messages": [{"role": "user", "content": QUESTION}]}
    answer = client.chat.completions.create(**asked, extra_body={"documents": TWO})
    assert answer.choices[0].message.content == TEXT
    pieces = client.chat.completions.create(**asked, stream=True, extra_body={"documents": TWO})
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == TEXT
    assert engine.requests[0]["headers"]["authorization"] == "Bearer a-key"
    # Without max_tokens: as kvtool's own server has it, since an engine's completions end after 16.
    assert engine.requests[0]["body"]["max_tokens"] == 1024
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(**asked | {"model": "other"}, extra_body={"documents": TWO})


def test_all_else_is_passed_on_unchanged(proxy: httpx.Client, engine: FakeEngine) -> None:
    data = b'{"model": "served",  "messages": [{"role": "user", "content": "no documents"}], "unknown": 1}'
    headers = {"content-type": "application/json", "authorization": "Bearer k", "x-own": "1"}
    answer = proxy.post("/v1/chat/completions?a=%20b", content=data, headers=headers)
    assert (answer.json(), answer.headers["x-engine"]) == ({"path": "/v1/chat/completions"}, "yes")
    request = engine.requests[0]
    assert (request["data"], request["query"]) == (data, "a=%20b")
    assert request["headers"].items() >= headers.items()
    for body in (
        chat_body(documents=[{"title": "vLLM's own", "text": "kind"}]),
        chat_body(documents=None, cached_content=None),
    ):
        assert posted(proxy, body) == {"path": "/v1/chat/completions"}
        assert engine.requests[-1]["body"] == body
    assert proxy.get("/v1/models").json() == {"path": "/v1/models"}
    assert proxy.get("/metrics").text == "vllm:num_requests_running 0\n"
    assert proxy.head("/metrics").status_code == 200
    assert proxy.get("/missing").status_code == 404
    assert proxy.put("/v1/models").status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        (
            "chat/completions",
            {"documents": ["docs/d.txt"]},
            404,
            "documents",
            "no such document; kvtool ls shows",
        ),
        ("chat/completions", {"documents": ["../kv"]}, 404, "documents", "no such document; kvtool ls shows"),
        (
            "completions",
            {"documents": ["docs/a.txt@nope"]},
            404,
            "documents",
            "has no variant 'nope', only raw;",
        ),
        ("chat/completions", {"documents": "docs/a.txt"}, 400, "documents", "valid array"),
        ("chat/completions", {"documents": TWO, "tools": [{}]}, 400, "tools", "not supported"),
        ("chat/completions", {"documents": TWO, "use_cache": False}, 400, "use_cache", "engine's to decide"),
        ("chat/completions", {"cached_content": "x"}, 400, "cached_content", "name documents instead"),
        ("chat/completions", {"documents": TWO * 20}, 400, None, "has a context of 2,048"),
        ("completions", {"documents": TWO, "echo": True}, 400, "echo", "give the documents back"),
        ("completions", {"documents": TWO, "prompt": ""}, 400, "prompt", "at least one token"),
        ("completions", {"documents": TWO, "prompt": [999_999]}, 400, "prompt", "expected token ids"),
    ],
)
def test_what_makes_no_sense_is_said_as_openai_says_it(
    proxy: httpx.Client, engine: FakeEngine, path: str, body: Any, status: int, param: str, says: str
) -> None:
    base = chat_body() if path.startswith("chat") else {"model": "served", "prompt": QUESTION}
    error = posted(proxy, base | body, f"/v1/{path}", status)["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert says in error["message"]
    assert not engine.requests


def test_an_engine_that_is_down_is_a_502_with_what_to_do(prompts: Prompts) -> None:
    with TestClient(
        create_proxy(Engine("http://127.0.0.1:9"), prompts), base_url="http://localhost"
    ) as client:
        for body in (chat_body(documents=TWO), chat_body()):
            answer = client.post("/v1/chat/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_unreachable")
            assert "start it, or name its address with --engine" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize("broken", [b"<html>", b"[]", b'{"choices": [{}]}', b'{"choices": 3}'])
def test_what_is_no_completion_is_a_502(proxy: httpx.Client, engine: FakeEngine, broken: bytes) -> None:
    engine.broken = broken
    error = posted(proxy, chat_body(documents=TWO), status=502)["error"]
    assert (error["code"], error["type"]) == ("engine_failed", "server_error")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b"", "broke off"),
        (b"data: <html>\n\n", "is no completion"),
        (b'data: {"error": {"message": "out of memory", "code": 500}}\n\ndata: [DONE]\n\n', "out of memory"),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error(
    proxy: httpx.Client, engine: FakeEngine, broken: bytes, says: str
) -> None:
    engine.broken = broken
    seen = events(proxy.post("/v1/chat/completions", json=chat_body(documents=TWO, stream=True)))
    errors = [event for event in seen if event != "[DONE]" and "error" in event]
    assert len(errors) == 1
    assert says in errors[0]["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_text_comes_as_it_is_made_and_leaving_ends_the_engines_work(
    proxy: httpx.Client, engine: FakeEngine, path: str
) -> None:
    engine.paused = True
    base = chat_body() if "chat" in path else completion_body()
    body = {**base, "documents": TWO, "stream": True}
    with proxy.stream("POST", path, json=body) as answer:
        # Held, since the connection is closed with it.
        lines = answer.iter_lines()
        assert any(WORDS[0] in line for line in lines)
        assert (engine.open, engine.ended) == (1, 0)
    ended(engine)


def ended(engine: FakeEngine) -> None:
    """Waits until the engine has nothing left to do."""
    until = time.monotonic() + 10
    while not engine.ended and time.monotonic() < until:
        time.sleep(0.01)
    assert (engine.open, engine.ended) == (0, 1)


def test_leaving_before_an_answer_ends_the_engines_work_too(proxy: httpx.Client, engine: FakeEngine) -> None:
    engine.paused = True
    with pytest.raises(httpx.ReadTimeout):
        proxy.post("/v1/chat/completions", json=chat_body(documents=TWO), timeout=1)
    ended(engine)


def test_pages_of_other_sites_and_large_bodies_are_refused(
    proxy: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    error = proxy.post("/v1/completions", json=completion_body(), headers=page)
    assert (error.status_code, "ask it from a program" in error.text) == (403, True)
    renamed = proxy.get("/v1/models", headers={"host": "evil.example"})
    assert (renamed.status_code, "--allow-host" in renamed.text) == (403, True)
    monkeypatch.setattr("kvtool.limits.REQUEST_BYTES", 50)
    assert proxy.post("/v1/completions", json=completion_body()).status_code == 413
    assert not engine.requests
