"""/v1/completions: log probabilities of prompts, and lists of prompts, against the model's own forward pass."""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpx
import openai
import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool import limits
from kvtool.server.app import create_app
from kvtool.server.http.logs import RequestLog
from kvtool.server.openai.completions import Completions
from kvtool.server.openai.schemas import CompletionRequest
from kvtool.server.runtime import cache_manager, generation, scheduler
from kvtool.server.runtime.service import Limits, Service
from kvtool.store.local import LocalStore
from tests.server.asking import LIMITS, post_and_leave

TOLERANCE = 1e-4
"""What the order of summation explains."""


def post(client: TestClient, prompt: Any, status: int = 200, **more: Any) -> Any:
    body = {"model": "served", "prompt": prompt, "temperature": 0, **more}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def scores(client: TestClient, prompt: Any, top: int = 1, **more: Any) -> list[Any]:
    """The log probabilities of each prompt, whose first token has none."""
    answer = post(client, prompt, echo=True, logprobs=top, **{"max_tokens": 0, **more})
    return [choice["logprobs"] for choice in answer["choices"]]


@torch.no_grad()
def expected(model: kvtool.Model, ids: Sequence[int]) -> tuple[list[float], torch.Tensor]:
    """Each token's log probability but the first's, and all [S - 1, V], of one pass over the whole."""
    logprobs = model.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist(), logprobs


def text_ids(model: kvtool.Model, text: str) -> list[int]:
    return [int(token) for token in model.tokenizer(text).input_ids]


@pytest.mark.parametrize("n_tokens", [2, 100, 300])
def test_a_prompt_is_scored_as_by_the_model(client: TestClient, served: kvtool.Model, n_tokens: int) -> None:
    ids = torch.randint(0, 256, (n_tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    (logprobs,) = scores(client, [ids], top=3)
    own, every = expected(served, ids)
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(own, abs=TOLERANCE)
    for top, chosen, logits in zip(logprobs["top_logprobs"][1:], own, every, strict=True):
        assert max(top.values()) == pytest.approx(float(logits.max()), abs=TOLERANCE)
        assert min(abs(value - chosen) for value in top.values()) < TOLERANCE


def test_what_evaluation_harnesses_send(client: TestClient, served: kvtool.Model) -> None:
    """One token more than the prompt's is scored: harnesses leave it out."""
    prompts = [text_ids(served, text) for text in ("Seven ships are", "in the harbour.", "No.")]
    answer = post(client, prompts, max_tokens=1, logprobs=1, seed=1234, echo=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice, ids in zip(answer["choices"], prompts, strict=True):
        own, every = expected(served, ids)
        assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(own, abs=TOLERANCE)
        best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:-1]]
        greedy = [
            chosen == top
            for chosen, top in zip(choice["logprobs"]["token_logprobs"][1:-1], best, strict=True)
        ]
        assert greedy == (every.argmax(-1) == torch.tensor(ids)[1:]).tolist()
    tokens = sum(map(len, prompts))
    assert answer["usage"]["prompt_tokens"] == tokens
    assert answer["usage"]["total_tokens"] == tokens + answer["usage"]["completion_tokens"]


def test_the_token_that_ends_an_answer_is_scored(
    client: TestClient, served: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text_ids(served, "Seven ships")
    with torch.no_grad():
        best = int(served.model(torch.tensor([ids])).logits[0, -1].argmax())
    monkeypatch.setattr(generation, "end_tokens", lambda _: {best})
    answer = post(client, ids, max_tokens=1, logprobs=0, echo=True)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Seven ships", "stop")
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    assert answer["usage"]["completion_tokens"] == 0


def test_scores_are_the_same_whatever_is_cached(
    client: TestClient, served: kvtool.Model, documents: LocalStore
) -> None:
    """A cache has no logits, so that a prompt that begins with a document is not scored by its cache."""
    ids = [*documents.load("docs/a.txt", served).token_ids.tolist(), *text_ids(served, "Seven.")]
    own, _ = expected(served, ids)
    answers = [post(client, ids, echo=True, logprobs=0, max_tokens=1, use_cache=use) for use in (True, False)]
    first, second = (answer["choices"][0] for answer in answers)
    assert first == second
    assert first["logprobs"]["token_logprobs"][1:-1] == pytest.approx(own, abs=TOLERANCE)
    assert [cached(answer) for answer in answers] == [0, 0]
    # Without scores the same beginning comes from the store.
    echoed = post(client, ids, echo=True, max_tokens=1)
    assert cached(echoed) > 64
    assert echoed["choices"][0]["text"] == first["text"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_after_documents_is_scored_by_their_cache(
    client: TestClient, served: kvtool.Model, documents: LocalStore, use_cache: bool
) -> None:
    ids = text_ids(served, "\nSeven ships are in it.")
    before = documents.load("docs/a.txt", served).token_ids.tolist()
    own, _ = expected(served, [*before, *ids])
    answer = post(
        client,
        ids,
        documents=["docs/a.txt"],
        echo=True,
        logprobs=0,
        max_tokens=0,
        use_cache=use_cache,
    )
    (choice,) = answer["choices"]
    assert choice["text"] == "\nSeven ships are in it."
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(own[len(before) :], abs=TOLERANCE)
    assert cached(answer) == (len(before) if use_cache else 0)
    assert answer["usage"]["prompt_tokens"] == len(before) + len(ids)


def test_texts_come_back_with_their_offsets(client: TestClient) -> None:
    prompts = ["Ünïcode — two", "One\n"]
    answer = post(client, prompts, n=2, seed=3, temperature=1, max_tokens=3, echo=True, logprobs=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for number, choice in enumerate(answer["choices"]):
        prompt, logprobs = prompts[number // 2], choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert len(logprobs["tokens"]) == len(prompt.encode()) + 3
        for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert token.startswith(("bytes:", "<|")) or choice["text"].startswith(token, start)
    assert answer["choices"][0]["text"] != answer["choices"][1]["text"]
    assert answer["usage"]["prompt_tokens"] == sum(len(prompt.encode()) for prompt in prompts)


def test_prompts_of_a_list_are_each_as_if_alone(client: TestClient) -> None:
    prompts = [f"{n} ships are" for n in range(20)]
    more = {"n": 2, "seed": 5, "temperature": 0.7, "max_tokens": 4}
    answer = post(client, prompts, **more)
    alone = [post(client, prompt, **more) for prompt in prompts]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [choice["text"] for each in alone for choice in each["choices"]]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer["usage"][name] == sum(each["usage"][name] for each in alone)


def test_a_stream_of_several_prompts_says_the_same(client: TestClient) -> None:
    body = {"model": "served", "prompt": ["One", "Two\ufffd", "Three"], "temperature": 0, "max_tokens": 4}
    body |= {"echo": True, "logprobs": 1}
    whole = client.post("/v1/completions", json=body).json()
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    lines = client.post("/v1/completions", json=body | stream).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    for choice in whole["choices"]:
        pieces = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name, values in choice["logprobs"].items():
            streamed = [value for piece in pieces for value in piece["logprobs"][name]]
            if name == "token_logprobs":
                assert streamed[1:] == pytest.approx(values[1:], abs=TOLERANCE)
            elif name != "top_logprobs":
                assert streamed == values
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert events[-1]["usage"] == whole["usage"]


def test_stop_sequences_are_not_looked_for_in_the_prompt(client: TestClient) -> None:
    prompt = "One. Two."
    answer = post(client, prompt, echo=True, max_tokens=3, stop=[".", "One", "Two", ". ", "two", "six"])
    assert answer["choices"][0]["text"].startswith(prompt)
    assert answer["usage"]["completion_tokens"] > 0


def test_a_prompt_that_fills_the_context_can_be_scored(client: TestClient, served: kvtool.Model) -> None:
    ids = [n % 250 for n in range(served.context)]
    (logprobs,) = scores(client, ids)
    assert len(logprobs["token_logprobs"]) == served.context
    assert "maximum context length" in post(client, ids, 400, max_tokens=1)["error"]["message"]


def test_no_pass_has_more_logits_than_it_may(
    client: TestClient, served: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    feed = scheduler.feed_batches

    def watched(*arguments: Any) -> Any:
        logits = feed(*arguments)
        sizes.append(sum(len(each) for each in logits))
        return logits

    monkeypatch.setattr(scheduler, "feed_batches", watched)
    scores(client, [[n % 250 for n in range(size)] for size in (300, 40, 40, 200)])
    assert max(sizes) <= scheduler.SCORED_TOKENS
    assert sum(sizes) == 580


@pytest.mark.parametrize(
    ("prompt", "more", "says"),
    [
        ("One", {"max_tokens": 0}, "max_tokens: 0 is for prompts with echo"),
        ("One", {"echo": "yes"}, "echo"),
        ("One", {"stop": ["."] * 17}, "stop: List should have at most 16 items"),
        (3, {}, "prompt: expected a text, token ids, or a list of either"),
        ([], {}, "prompt: List should have at least 1 item"),
        ([[]], {}, "prompt.0: List should have at least 1 item"),
        (["One", [1]], {}, "prompt.1: Input should be a valid string"),
        ([[1], "One"], {}, "prompt.1: Input should be a valid array"),
        ([[1], [True]], {}, "prompt.1.0: Input should be a valid integer"),
        (["One", ""], {}, "prompt.1: expected at least one token"),
        ([[1], [1, 999]], {}, "prompt.1: expected token ids from 0 to 271"),
        ([[1], [1] * 2048], {}, "maximum context length is 2048"),
        ("", {"documents": ["docs/a.txt"]}, "prompt: expected at least one token"),
        (["One"] * (limits.ANSWERS + 1), {}, "prompt: 1,025 answers"),
        (["One"] * 100, {"n": 16}, "prompt: 1,600 answers"),
        ([[1] * 2000] * 132, {"echo": True, "logprobs": 1}, "prompt: log probabilities of more than 262,144"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_refused(client: TestClient, prompt: Any, more: dict[str, Any], says: str) -> None:
    error = post(client, prompt, 400, **more)["error"]
    assert says in error["message"]
    assert client.app.state.service.waiting == 0  # type: ignore[attr-defined]


def test_stop_sequences_wait_for_tokens_of_the_answer(client: TestClient) -> None:
    more = {"max_tokens": 12, "min_tokens": 12}
    text = post(client, "One two three", **more)["choices"][0]["text"]
    answer = post(client, "One two three", echo=True, stop=text[2], **more)
    assert answer["choices"][0]["text"] == "One two three" + text


def test_scores_of_a_long_prompt_are_streamed_in_pieces(client: TestClient) -> None:
    body = {"model": "served", "prompt": [n % 250 for n in range(300)], "echo": True, "logprobs": 1}
    lines = client.post("/v1/completions", json={**body, "max_tokens": 2, "stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    scored = [len(event["choices"][0]["logprobs"]["tokens"]) for event in events]
    assert max(scored) <= scheduler.SCORED_TOKENS + 1
    assert sum(scored) == 302


def test_prompts_of_a_list_share_their_biases() -> None:
    body = CompletionRequest(model="served", prompt=["One", "Two"], logit_bias={"5": 1}, n=2, seed=3)
    requests = body.to_requests(None)
    samplings = [sampling for request in requests for sampling in request.samplings]
    assert all(sampling.logit_bias is samplings[0].logit_bias for sampling in samplings)
    assert [sampling.seed for sampling in samplings] == [3, 4, 3, 4]


@pytest.mark.parametrize("what", ["plans", "caches"])
def test_a_list_holds_no_more_than_its_running_answers_need(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    planner = client.app.state.service.planner  # type: ignore[attr-defined]
    owner, name = (planner, "plan") if what == "plans" else (cache_manager.engine, "new_cache")
    make, every, held = getattr(owner, name), list[weakref.ref[Any]](), list[int]()

    def watched(*arguments: Any) -> Any:
        made = make(*arguments)
        every.append(weakref.ref(made))
        held.append(sum(each() is not None for each in every))
        return made

    monkeypatch.setattr(owner, name, watched)
    monkeypatch.setattr(limits, "PLANNED_TOKENS", 10)
    post(client, ["One"] * 40, max_tokens=2)
    assert len(held) >= 40
    assert max(held) <= 2 * limits.CHOICES


def test_prompts_of_a_list_wait_for_each_other(served: kvtool.Model, documents: LocalStore) -> None:
    """Those before may take all memory for caches, longer than a request may wait for it."""
    with TestClient(create_app(Service.over(documents.root, served, LIMITS))) as client:
        token = client.app.state.service.caches.token_bytes  # type: ignore[attr-defined]
    few = Limits(memory=token * 250, wait=0.001)
    with TestClient(create_app(Service.over(documents.root, served, few))) as client:
        answer = post(client, ["One"] * 6, max_tokens=100, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 600
        assert post(client, "One", 400, max_tokens=300)["error"]["type"] == "invalid_request_error"


def test_no_prompt_is_begun_for_a_client_that_takes_nothing(client: TestClient) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    body = CompletionRequest(model="served", prompt=["One"] * 100, max_tokens=1)

    async def begun() -> int:
        requests = body.to_requests(None)
        completions = Completions(service, service.tenants[""], requests, 0.0, RequestLog())
        await completions.start()
        deltas = completions.deltas()
        await anext(deltas)
        await asyncio.sleep(0.5)
        await completions.close()
        return sum(part.prompt_tokens > 0 for part in completions.parts)

    assert client.portal is not None
    assert client.portal.call(begun) <= 2 * limits.CHOICES + 1


def test_an_error_in_one_of_several_prompts_ends_them_all(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    opened, calls = service.caches.opened, iter(range(100))

    def failing(*arguments: Any) -> Any:
        if next(calls) == 20:
            raise RuntimeError("broken")
        return opened(*arguments)

    monkeypatch.setattr(service.caches, "opened", failing)
    post(client, ["One"] * 40, 500, max_tokens=4)
    service.scheduler.call(lambda: None).result()
    assert service.scheduler.running == service.waiting == service.memory.used == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_all_prompts_are_answered_holds_nothing(client: TestClient, stream: bool) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]

    body = {"model": "served", "prompt": ["One"] * 40, "max_tokens": 200, "stream": stream}
    assert client.portal is not None
    client.portal.call(partial(post_and_leave, client, "/v1/completions", body, takes_headers=True))
    # What was being prepared is released once that is done.
    until = time.monotonic() + 30
    while service.memory.used and time.monotonic() < until:
        time.sleep(0.01)
    assert service.scheduler.running == service.waiting == service.memory.used == 0


def test_the_openai_package_scores_prompts(url: str, served: kvtool.Model) -> None:
    with httpx.Client() as http:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        answer = client.completions.create(
            model="served", prompt=["Seven ships", "No."], echo=True, logprobs=1, max_tokens=0
        )
    for choice, text in zip(answer.choices, ("Seven ships", "No."), strict=True):
        assert (choice.text, choice.finish_reason) == (text, "length")
        own, _ = expected(served, text_ids(served, text))
        assert choice.logprobs
        assert choice.logprobs.token_logprobs
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(own, abs=TOLERANCE)


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
