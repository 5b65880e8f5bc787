"""Messages that clients send back as they were answered, and what is said of fields that do not fit."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import ParsedChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from starlette.testclient import TestClient

from tests.server.asking import QUESTION, chat, text_of

ROLES = ["system", "developer", "user", "assistant"]
SILENT: dict[str, Any] = {
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": [],
    "tool_call_id": None,
    "name": None,
}


@pytest.fixture
def openai_client(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)


@pytest.mark.parametrize("is_dumped", [False, True])
@pytest.mark.parametrize("is_parsed", [False, True])
def test_answers_can_be_sent_back(openai_client: openai.OpenAI, is_dumped: bool, is_parsed: bool) -> None:
    ask: Any = openai_client.chat.completions.create
    question = {"role": "user", "content": QUESTION}
    answered = ask(model="served", messages=[question], max_tokens=4).choices[0].message
    if is_parsed:
        answered = ParsedChatCompletionMessage(**answered.model_dump(), parsed=None)
    message = answered.model_dump() if is_dumped else answered
    more = {"model": "served", "max_tokens": 4, "temperature": 0}
    continued = ask(messages=[question, message, question], **more)
    plain = {"role": "assistant", "content": answered.content}
    expected = ask(messages=[question, plain, question], **more)
    assert continued.choices[0].message.content == expected.choices[0].message.content
    assert continued.usage == expected.usage


def test_streamed_deltas_can_be_sent_back(openai_client: openai.OpenAI) -> None:
    more: Any = {"model": "served", "max_tokens": 4}
    question: Any = {"role": "user", "content": QUESTION}
    stream = openai_client.chat.completions.create(messages=[question], stream=True, **more)
    first = next(iter(stream)).choices[0].delta.model_dump()
    assert openai_client.chat.completions.create(messages=[question, first, question], **more).choices


@pytest.mark.parametrize("role", ROLES)
def test_fields_that_say_nothing(client: TestClient, role: str) -> None:
    asked = {"role": "user", "content": QUESTION}
    expected = chat(client, messages=[{"role": role, "content": "So."}, asked])
    empty: dict[str, Any] = {"refusal": "", "tool_calls": None, "audio": {}}
    nulls: dict[str, Any] = dict.fromkeys(SILENT)
    for silent in (SILENT, nulls, empty):
        answer = chat(client, messages=[{"role": role, "content": "So.", **silent}, asked])
        assert text_of(answer) == text_of(expected)
        assert answer["usage"] == expected["usage"]


def test_requests_with_fields_that_say_nothing(client: TestClient) -> None:
    # Those of OpenAI's own client, whatever they are in its next version.
    fields = set(CompletionCreateParamsBase.__annotations__) - {
        "model",
        "messages",
        "temperature",
        "max_tokens",
    }
    silent: dict[str, Any] = dict.fromkeys(fields)
    spoken = {"tools": [], "tool_choice": "auto", "modalities": ["text"], "service_tier": "auto"}
    expected = text_of(chat(client))
    assert text_of(chat(client, **silent)) == text_of(chat(client, **spoken)) == expected


def test_an_assistant_that_said_nothing(client: TestClient) -> None:
    asked = {"role": "user", "content": QUESTION}
    silent, empty = ({"role": "assistant", "content": content} for content in (None, ""))
    answers = [chat(client, messages=[asked, message, asked]) for message in (silent, empty)]
    assert text_of(answers[0]) == text_of(answers[1])


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
LONG = "s" * 300


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stop": ""}, "stop: String should have at least 1 character"),
        ({"stop": list("abcde")}, "stop: List should have at most 4 items after validation, not 5"),
        ({"stop": LONG}, "stop: String should have at most 256 characters"),
        ({"stop": ["a", LONG]}, "stop.1: String should have at most 256 characters"),
        ({"stop": 3}, "stop: expected a string or a list"),
        ({"n": 17}, "n: Input should be less than or equal to 16"),
        ({"tools": [CALL]}, "tools: is not supported by this server; leave it out"),
        ({"List[str]": 1}, "List[str]: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(client: TestClient, more: dict[str, Any], message: str) -> None:
    error = chat(client, status=400, **more)["error"]
    assert error["message"] == message
    assert error["param"] == message.partition(":")[0]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"content": [IMAGE]}, "content.0.type: parts of type 'image_url' are not supported; expected text"),
        ({"content": [{"type": "text"}]}, "content.0.text: Field required"),
        ({"content": 3}, "content: expected a string or a list"),
        ({"content": None}, "content: null is for messages of the assistant; expected text"),
        ({}, "content: Field required"),
        ({"content": "a", "tool_calls": [CALL]}, "tool_calls: is not supported by this server; leave it out"),
        ({"content": "a", "refusal": "No."}, "refusal: is not supported by this server; leave it out"),
        (
            {"content": "a", "role": "tool"},
            "role: Input should be 'system', 'developer', 'user' or 'assistant'",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_message_is_named(client: TestClient, said: dict[str, Any], message: str) -> None:
    error = chat(client, status=400, messages=[{"role": "user", **said}])["error"]
    assert error["message"] == f"messages.0.{message}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models/", "/v1/models/: a model's name is missing at its end; this server has 'served'"),
        ("/v1/models/x", "model 'x': this server has 'served'"),
        ("/v1/documents/", "the empty name: there is no such document; GET /v1/documents lists them"),
    ],
)
def test_names_that_are_missing(client: TestClient, path: str, message: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == message
