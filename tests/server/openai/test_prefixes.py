"""Chats whose prefix is not the one that their documents were prefilled under: system messages, the template's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.model.chat_template import document_tokens
from kvtool.store.local import LocalStore
from tests.server.asking import QUESTION, THREE, cached_tokens, chat, text_of
from tests.server.openai.test_generation import alone

DOCUMENT = "docs/a.txt"
SYSTEM = "Count ships, not boats."
NO_THOUGHT = {"enable_thinking": False}
THINKING = "{% if tone is defined %}<|system|>Be {{ tone }}.<|end|>{% endif %}{TEMPLATE}" + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
"""A template with an argument that changes its beginning, and one that changes its end."""


@pytest.fixture
def thinking(served: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> kvtool.Model:
    template = THINKING.replace("{TEMPLATE}", served.tokenizer.chat_template)
    monkeypatch.setattr(served.tokenizer, "chat_template", template)
    return served


@pytest.fixture
def under_system(served: kvtool.Model, documents: LocalStore, texts: dict[str, str]) -> str:
    """A document that was prefilled under a system prompt of its own."""
    Path("other").mkdir()
    Path("other/b.txt").write_text(texts["docs/b.txt"])
    kvtool.prefill(["other"], model=served, store=documents, system="Be brief.")
    return "other/b.txt"


def prefilled(model: kvtool.Model, texts: list[str], system: str | None, **arguments: Any) -> list[int]:
    """The whole prompt of ``QUESTION`` over ``texts``, as the chat template alone has it."""
    messages = [{"role": "user", "content": "\n\n".join([*texts, QUESTION])}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    options = {"add_generation_prompt": True, "return_dict": False, **arguments}
    return list(model.tokenizer.apply_chat_template(messages, **options))


def asked(system: str | None) -> list[dict[str, str]]:
    """The messages of a request."""
    user = {"role": "user", "content": QUESTION}
    return [user] if system is None else [{"role": "system", "content": system}, user]


@pytest.mark.parametrize("names", [[DOCUMENT], THREE], ids=len)
@pytest.mark.parametrize(
    ("system", "arguments"), [(SYSTEM, {}), (None, {"tone": "brief"}), (SYSTEM, NO_THOUGHT)], ids=str
)
def test_another_prefix_is_prefilled_or_blended(
    client: TestClient,
    thinking: kvtool.Model,
    texts: dict[str, str],
    names: list[str],
    system: str | None,
    arguments: dict[str, Any],
) -> None:
    ids = prefilled(thinking, [texts[name] for name in names], system, **arguments)
    more: dict[str, Any] = {
        "documents": names,
        "messages": asked(system),
        "chat_template_kwargs": arguments,
    }
    for plain in ({"recompute": 1}, {"use_cache": False}):
        whole = chat(client, **more, **plain)
        assert text_of(whole) == alone(thinking, ids)
        assert whole["usage"]["prompt_tokens"] == len(ids)
        assert cached_tokens(whole) == 0
    blended = chat(client, **more, recompute=0.5)
    assert blended["usage"]["prompt_tokens"] == len(ids)
    length = sum(len(document_tokens(thinking, texts[name])) for name in names)
    # Half of the documents' tokens are recomputed, and the separators between them.
    assert length / 2 - 4 <= cached_tokens(blended) <= length / 2


def test_the_templates_end_may_change(
    client: TestClient, thinking: kvtool.Model, texts: dict[str, str]
) -> None:
    expected = alone(thinking, prefilled(thinking, [texts[DOCUMENT]], None, **NO_THOUGHT))
    before = chat(client, documents=[DOCUMENT])
    answer = chat(client, documents=[DOCUMENT], chat_template_kwargs=NO_THOUGHT)
    assert text_of(answer) == expected != text_of(before)
    assert cached_tokens(answer) == cached_tokens(before) > 64
    unnamed = chat(client, f"{texts[DOCUMENT]}\n\n{QUESTION}", chat_template_kwargs=NO_THOUGHT)
    assert text_of(unnamed) == expected
    assert cached_tokens(unnamed) > 64


def test_a_prompt_with_another_beginning_is_a_miss(
    client: TestClient, thinking: kvtool.Model, texts: dict[str, str]
) -> None:
    content, arguments = f"{texts[DOCUMENT]}\n\n{QUESTION}", {"tone": "brief"}
    answer = chat(client, content, chat_template_kwargs=arguments)
    assert text_of(answer) == alone(thinking, prefilled(thinking, [texts[DOCUMENT]], None, **arguments))
    assert cached_tokens(answer) == 0


def test_a_system_message_unites_documents_of_two(
    client: TestClient, served: kvtool.Model, texts: dict[str, str], under_system: str
) -> None:
    names = [DOCUMENT, under_system]
    refused = chat(client, status=400, documents=names)["error"]
    assert "different system prompts; send a system message" in refused["message"]
    assert refused["param"] == "documents"
    for system in (SYSTEM, "Be brief."):
        ids = prefilled(served, [texts[DOCUMENT], texts["docs/b.txt"]], system)
        whole = chat(client, documents=names, messages=asked(system), recompute=1)
        assert text_of(whole) == alone(served, ids)
        blended = chat(client, documents=names, messages=asked(system))
        assert len(ids) > cached_tokens(blended) > 64
    # Under its own, with or without saying so, its cache is used as it is.
    for said in ("Be brief.", None):
        own = chat(client, documents=[under_system], messages=asked(said))
        assert text_of(own) == alone(served, prefilled(served, [texts["docs/b.txt"]], "Be brief."))
        assert cached_tokens(own) > len("Be brief.") + len(texts["docs/b.txt"])


def test_special_tokens_in_a_system_message_are_text(client: TestClient, served: kvtool.Model) -> None:
    (marker,) = served.tokenizer("<|end|>").input_ids
    lengths = [
        chat(client, documents=[DOCUMENT], messages=asked(system))["usage"]["prompt_tokens"]
        for system in ("Obey", "Obey<|end|>")
    ]
    assert marker >= 256
    assert lengths[1] - lengths[0] == len("<|end|>")


def test_keys_that_cannot_be_moved_are_computed(
    client: TestClient, served: kvtool.Model, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtool.server.runtime.cache_manager.key_rotations", lambda model: None)
    for names, system in (([DOCUMENT], SYSTEM), (THREE, None)):
        answer = chat(client, documents=names, messages=asked(system))
        ids = prefilled(served, [texts[name] for name in names], system)
        assert text_of(answer) == alone(served, ids)
        assert cached_tokens(answer) == 0


@pytest.mark.parametrize("policy", ["ape", "even"])
def test_other_policies_take_another_prefix_too(client: TestClient, policy: str) -> None:
    answer = chat(client, documents=THREE, messages=asked(SYSTEM), policy=policy)
    assert 0 < cached_tokens(answer) < answer["usage"]["prompt_tokens"]


def test_a_template_that_the_client_applied(
    client: TestClient, served: kvtool.Model, texts: dict[str, str]
) -> None:
    content = f"{texts[DOCUMENT]}\n\n{QUESTION}"
    prompt = served.tokenizer.decode(prefilled(served, [texts[DOCUMENT]], None))
    body: dict[str, Any] = {"model": "served", "prompt": prompt, "temperature": 0, "max_tokens": 12}
    parsed = client.post("/v1/completions", json=body | {"parse_special": True}).json()
    expected = chat(client, content)
    assert parsed["choices"][0]["text"] == text_of(expected)
    assert parsed["usage"] == expected["usage"]
    assert cached_tokens(parsed) > 64
    for plain in ({}, {"parse_special": False}, {"parse_special": None}):
        answer = client.post("/v1/completions", json=body | plain).json()
        assert answer["usage"]["prompt_tokens"] > parsed["usage"]["prompt_tokens"]
    after = {"prompt": "<|end|>", "documents": [DOCUMENT], "max_tokens": 1}
    lengths = [
        client.post("/v1/completions", json=body | after | {"parse_special": parse}).json()["usage"][
            "prompt_tokens"
        ]
        for parse in (True, False)
    ]
    assert lengths[1] - lengths[0] == len("<|end|>") - 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenize": True}, "tokenize: is given to the chat template by the server; leave it out"),
    ({"messages": []}, "messages: is given to the chat template by the server; leave it out"),
    ({"eos_token": "a"}, "eos_token: is given to the chat template by the server; leave it out"),
    ({"add_generation_prompt": False}, "add_generation_prompt: is given to the chat template by the server"),
    ({"loud": 1}, "loud: is no argument of the chat template of served; it takes enable_thinking, tone"),
    ({"tone": "<|end|>"}, "tone: spells out a special token of served; leave it out"),
]


def test_arguments_that_are_refused(client: TestClient, thinking: kvtool.Model) -> None:
    for arguments, message in REFUSED:
        for named in ({}, {"documents": [DOCUMENT]}):
            error = chat(client, status=400, chat_template_kwargs=arguments, **named)["error"]
            assert error["message"].startswith(f"chat_template_kwargs.{message}")
            assert error["param"] == "chat_template_kwargs"
    body = {"model": "served", "prompt": "a", "chat_template_kwargs": {}}
    assert client.post("/v1/completions", json=body).status_code == 400


def test_arguments_that_the_template_refuses(client: TestClient, thinking: kvtool.Model) -> None:
    thinking.tokenizer.chat_template += "{% if tone == 'rude' %}{{ raise_exception('no') }}{% endif %}"
    for named in ({}, {"documents": [DOCUMENT]}):
        error = chat(client, status=400, chat_template_kwargs={"tone": "rude"}, **named)["error"]
        assert "refuses these messages (no)" in error["message"]
