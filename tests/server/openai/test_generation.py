"""OpenAI's API, within the process: answers are those of the model alone."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool import Store
from kvtool.ask import ask
from kvtool.blending.blend import BlendOptions
from kvtool.engines.cache import DocumentCache
from kvtool.model.conversation import Message, chat_tokens
from kvtool.server.runtime.service import Service
from tests.server.asking import QUESTION, cached_tokens, chat, chat_body, post_and_leave, post_chat, text_of


def alone(model: kvtool.Model, ids: list[int], tokens: int = 12) -> str:
    """The text that transformers generates by itself."""
    prompt = torch.tensor([ids])
    out = model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.eos_token_id,
    )
    return str(model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


@pytest.mark.parametrize("names", [["docs/a.txt"], ["docs/b.txt", "docs/a.txt"]], ids=len)
def test_documents_are_asked_as_ask_does(
    client: TestClient, served: kvtool.Model, documents: Store, names: list[str]
) -> None:
    expected = ask(QUESTION, names, served, documents, options=BlendOptions(0.5), max_tokens=12)
    answer = chat(client, documents=names, recompute=0.5)
    assert text_of(answer) == expected.text
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected.prompt_tokens
    cached = expected.cached_tokens - expected.recomputed_tokens
    assert usage["prompt_tokens_details"] == {"cached_tokens": cached}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_cached_beginning_is_found_by_itself(
    client: TestClient, served: kvtool.Model, texts: dict[str, str]
) -> None:
    content = f"{texts['docs/a.txt']}\n\n{QUESTION}"
    ids = chat_tokens(served, [Message("user", content)])
    answer = chat(client, content)
    assert text_of(answer) == alone(served, ids)
    cached = cached_tokens(answer)
    head = len(chat_tokens(served, [Message("user", "")])) - len("<|end|>")
    assert head < cached <= len(ids)
    assert cached >= len(texts["docs/a.txt"])


def test_a_part_of_a_document_is_enough(
    client: TestClient, served: kvtool.Model, texts: dict[str, str]
) -> None:
    content = f"{texts['docs/c.txt'][:100]} and so on."
    answer = chat(client, content)
    assert text_of(answer) == alone(served, chat_tokens(served, [Message("user", content)]))
    assert 100 <= cached_tokens(answer) < 130


def test_what_is_not_cached_is_read(client: TestClient, served: kvtool.Model) -> None:
    content = "Nothing of this is in any document." * 3
    answer = chat(client, content)
    assert text_of(answer) == alone(served, chat_tokens(served, [Message("user", content)]))
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("names", [["docs/a.txt"], None], ids=["named", "found"])
def test_a_request_may_do_without_caches(
    client: TestClient, texts: dict[str, str], names: list[str] | None
) -> None:
    content = QUESTION if names else f"{texts['docs/a.txt']}\n\n{QUESTION}"
    cached, anew = (chat(client, content, documents=names, use_cache=use) for use in (True, False))
    assert text_of(anew) == text_of(cached)
    assert anew["usage"]["prompt_tokens"] == cached["usage"]["prompt_tokens"]
    assert cached_tokens(cached) > 0
    assert anew["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_many_at_once_are_each_as_if_alone(
    client: TestClient, served: kvtool.Model, texts: dict[str, str]
) -> None:
    questions = [f"{text}\n\nQuestion {n}?" for n in range(4) for text in (*texts.values(), "None of these.")]
    expected = [alone(served, chat_tokens(served, [Message("user", q)])) for q in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda question: text_of(chat(client, question)), questions))
    assert answers == expected


def test_a_stream_says_the_same(client: TestClient) -> None:
    more = {"documents": ["docs/a.txt"], "n": 2, "seed": 5, "temperature": 0.8}
    whole = chat(client, **more)
    body = chat_body(**more, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    texts = ["", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert texts[0] != texts[1]
    assert events[-1]["usage"] == whole["usage"]
    assert {event["id"] for event in events} == {events[0]["id"]}


def test_seeds_repeat_and_differ(client: TestClient) -> None:
    texts = [text_of(chat(client, documents=["docs/a.txt"], temperature=1, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stop_is_left_out(client: TestClient) -> None:
    text = text_of(chat(client, documents=["docs/a.txt"]))
    stop = text[4:6]
    answer = chat(client, documents=["docs/a.txt"], stop=[stop])
    assert text_of(answer) == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_the_models(client: TestClient, served: kvtool.Model) -> None:
    body = {"model": "served", "prompt": "One two three", "temperature": 0, "max_tokens": 4, "logprobs": 3}
    logprobs = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    ids = served.tokenizer("One two three").input_ids
    with torch.no_grad():
        expected = served.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(3)
    likeliest = sorted(expected.values.tolist())
    assert logprobs["token_logprobs"][0] == pytest.approx(likeliest[-1], abs=1e-4)
    assert sorted(logprobs["top_logprobs"][0].values()) == pytest.approx(likeliest, abs=1e-4)
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_logprobs_are_the_answers(client: TestClient, stream: bool) -> None:
    """The tiny model's tokens are bytes, and most of its answers parts of characters."""
    more = {"logprobs": True, "top_logprobs": 3, "max_tokens": 40, "temperature": 1, "seed": 3}
    answer = post_chat(client, **more, stream=stream)
    if stream:
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if "{" in line]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
    else:
        choices = answer.json()["choices"]
        text = choices[0]["message"]["content"]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert bytes(byte for token in tokens for byte in token["bytes"] or []).decode(errors="replace") == text
    assert any(token["bytes"] != list(token["token"].encode()) for token in tokens)
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)


def test_offsets_of_tokens_are_those_in_the_text(client: TestClient) -> None:
    body = {"model": "served", "prompt": "One", "temperature": 0, "max_tokens": 30, "logprobs": 5}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith(("bytes:", "<|")) or choice["text"].startswith(token, start)
    # Parts of characters are different tokens.
    assert {len(top) for top in logprobs["top_logprobs"]} == {5}
    streamed = client.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if "{" in line]
    pieces = [event["choices"][0]["logprobs"] for event in events]
    assert [offset for piece in pieces for offset in piece["text_offset"]] == logprobs["text_offset"]


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "this server has 'served'"),
        ({"documents": ["docs/x.txt"]}, 404, "docs/x.txt"),
        ({"documents": ["../a.txt"]}, 404, "../a.txt"),
        ({"documents": []}, 400, "documents"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "content"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 5000}, 400, "maximum context length is 2048 tokens"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"recompute": 2}, 400, "recompute"),
        ({"policy": "evne", "documents": ["docs/a.txt"]}, 400, "did you mean even"),
        ({"n": 0}, 400, "n"),
        ({"stop": ""}, 400, "stop: String should have at least 1 character"),
        ({"use_cache": 0}, 400, "use_cache"),
    ],
    ids=str,
)
def test_what_is_refused(client: TestClient, more: dict[str, Any], status: int, says: str) -> None:
    error = chat(client, status=status, **more)["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    # Nobody else notices.
    assert text_of(chat(client, documents=["docs/a.txt"]))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": "served"}', b"9" * 10_000], ids=repr)
def test_malformed_bodies(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_no_circle_of_objects_keeps_caches_that_nobody_uses(
    client: TestClient, service: Service, use_cache: bool
) -> None:
    chat(client, documents=["docs/a.txt"])
    gc.collect()
    before = caches_alive()
    gc.disable()
    try:
        for stream in (False, True):
            more = {"documents": ["docs/a.txt", "docs/b.txt"], "use_cache": use_cache, "stream": stream}
            assert post_chat(client, **more, max_tokens=3).status_code == 200
        service.scheduler.call(lambda: None).result()
        assert caches_alive() == before
    finally:
        gc.enable()


def test_who_left_before_the_first_event_holds_nothing(client: TestClient, service: Service) -> None:
    body = chat_body(documents=["docs/a.txt"], stream=True, max_tokens=999)
    assert client.portal is not None
    client.portal.call(post_and_leave, client, "/v1/chat/completions", body)
    assert service.scheduler.running == 0
    assert not any(held.pins for held in service.memory._entries.values())


def caches_alive() -> int:
    return sum(issubclass(type(thing), DocumentCache) for thing in gc.get_objects())
