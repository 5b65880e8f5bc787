"""What clients send to choose tokens does what transformers' own ``generate`` does, in both APIs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import kvtool
from kvtool import Store
from kvtool.ask import ask
from kvtool.engines.sampling import Sampling
from kvtool.model.chat_template import question_tokens
from tests.server.asking import QUESTION, chat, text_of

DOCUMENT = "docs/a.txt"
TOKENS = 24
SEED = 7

FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "repetition": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    "bias": ({"logit_bias": {"40": 9, "41": -100}}, {"sequence_bias": [[[40], 9.0], [[41], -100.0]]}),
    "top_k": ({"temperature": 1, "seed": SEED, "top_k": 3}, {"top_k": 3}),
    "min_p": ({"temperature": 1, "seed": SEED, "min_p": 0.3}, {"min_p": 0.3, "top_k": 0}),
    "top_p": (
        {"temperature": 1.5, "seed": SEED, "top_p": 0.6},
        {"temperature": 1.5, "top_p": 0.6, "top_k": 0},
    ),
    "all": ({"temperature": 1, "seed": SEED, "top_k": -1}, {"top_k": 0}),
    "several": (
        {"repetition_penalty": 0.8, "temperature": 0.7, "seed": SEED, "top_k": 9, "top_p": 0.9},
        {"repetition_penalty": 0.8, "temperature": 0.7, "top_k": 9, "top_p": 0.9},
    ),
}
"""Fields of a request, and the options of ``generate`` that say the same."""


@pytest.fixture
def prompt(served: kvtool.Model, documents: Store) -> list[int]:
    """The tokens of ``QUESTION`` over ``DOCUMENT``."""
    prefix = documents.prefix(DOCUMENT, served)
    return documents.load(DOCUMENT, served).token_ids.tolist() + question_tokens(served, prefix, QUESTION)


def generated(model: kvtool.Model, ids: list[int], **options: Any) -> list[int]:
    """What transformers generates by itself, up to the end of the turn."""
    torch.manual_seed(SEED)
    out = model.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=TOKENS,
        do_sample=any(name in options for name in ("temperature", "top_k", "min_p")),
        pad_token_id=model.tokenizer.eos_token_id,
        **options,
    )
    return [int(token) for token in out[0, len(ids) :]]


def decoded(model: kvtool.Model, tokens: list[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_over_a_cached_document(
    client: TestClient, served: kvtool.Model, prompt: list[int], name: str
) -> None:
    fields, options = FIELDS[name]
    answer = chat(client, documents=[DOCUMENT], max_tokens=TOKENS, **fields)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 64
    assert text_of(answer) == decoded(served, generated(served, prompt, **options))
    assert text_of(answer) != decoded(served, generated(served, prompt))


def test_penalties_count_the_answers_tokens(
    client: TestClient, served: kvtool.Model, prompt: list[int]
) -> None:
    expected: list[int] = []
    while len(expected) < TOKENS:
        with torch.no_grad():
            logits = served.model(torch.tensor([prompt + expected])).logits[0, -1].tolist()
        for token, count in Counter(expected).items():
            logits[token] -= 0.7 * count + 1.5
        expected.append(max(range(len(logits)), key=logits.__getitem__))
    fields = {"frequency_penalty": 0.7, "presence_penalty": 1.5, "ignore_eos": True}
    answer = chat(client, documents=[DOCUMENT], max_tokens=TOKENS, **fields)
    assert text_of(answer) == decoded(served, expected)
    assert len(set(expected)) > len(set(generated(served, prompt)))


def test_ask_samples_as_the_server_does(client: TestClient, served: kvtool.Model, documents: Store) -> None:
    limits: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": SEED}
    expected = ask(QUESTION, DOCUMENT, served, documents, max_tokens=TOKENS, sampling=Sampling(**limits))
    assert text_of(chat(client, documents=[DOCUMENT], max_tokens=TOKENS, **limits)) == expected.text


def test_where_an_answer_ends(client: TestClient, served: kvtool.Model, prompt: list[int]) -> None:
    plain = generated(served, prompt)
    end = plain[3]
    length = plain.index(end)
    body: dict[str, Any] = {"model": "served", "prompt": prompt, "temperature": 0, "max_tokens": TOKENS}
    ended = complete(client, **body, stop_token_ids=[end])
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["choices"][0]["text"] == decoded(served, plain[:length])
    assert ended["usage"]["completion_tokens"] == length
    # With the end of the turn made the likeliest token, only what is asked for keeps an answer from ending.
    eager = {"logit_bias": {str(served.tokenizer.eos_token_id): 100}}
    assert complete(client, **body, **eager)["usage"]["completion_tokens"] == 0
    on = complete(client, **body, **eager, ignore_eos=True)
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (TOKENS, "length")
    assert complete(client, **body, **eager, min_tokens=5)["usage"]["completion_tokens"] == 5
    expected = generated(served, prompt, min_new_tokens=9, eos_token_id=[end])
    least = complete(client, **body, stop_token_ids=[end], min_tokens=9, ignore_eos=True)
    assert least["choices"][0]["text"] == decoded(served, [token for token in expected if token != end])


def test_stop_sequences_wait_for_the_least_number_of_tokens(client: TestClient) -> None:
    text = text_of(chat(client, documents=[DOCUMENT], max_tokens=TOKENS))
    stop = next(c for c in text if c.isascii() and text.count(c) > 1)
    least = text_of(chat(client, documents=[DOCUMENT], max_tokens=TOKENS, stop=stop, min_tokens=TOKENS))
    assert least == text


def complete(client: TestClient, **body: Any) -> Any:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_streams_and_choices_say_the_same(client: TestClient) -> None:
    body: dict[str, Any] = {
        "model": "served",
        "prompt": "One two three",
        "max_tokens": 12,
        "n": 2,
        "seed": 3,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "logit_bias": {"50": 4},
        "logprobs": 2,
    }
    whole = complete(client, **body)["choices"]
    lines = client.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    texts = ["", ""]
    for line in lines:
        for choice in json.loads(line.removeprefix("data: "))["choices"] if "{" in line else ():
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole]
    assert texts[0] != texts[1]


def test_log_probabilities_are_those_before_penalties(client: TestClient) -> None:
    body: dict[str, Any] = {"model": "served", "prompt": "One two three", "temperature": 0, "max_tokens": 1}
    plain = complete(client, **body, logprobs=5)["choices"][0]["logprobs"]
    changes = {"logit_bias": {"65": 100}, "repetition_penalty": 1.5}
    biased = complete(client, **body, logprobs=5, **changes)["choices"][0]["logprobs"]
    assert biased["tokens"] != plain["tokens"]
    # The chosen token comes beside the likeliest.
    assert biased["top_logprobs"][0].items() > plain["top_logprobs"][0].items()
    assert biased["token_logprobs"][0] < plain["token_logprobs"][0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 2.1}, "presence_penalty: Input should be less than or equal to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty: Input should be greater than or equal to -2"),
    ({"repetition_penalty": 0}, "repetition_penalty: Input should be greater than or equal to 0.01"),
    ({"top_k": -2}, "top_k: Input should be greater than or equal to -1"),
    ({"min_p": 1.5}, "min_p: Input should be less than or equal to 1"),
    ({"logit_bias": {"272": 1}}, "logit_bias: expected token ids from 0 to 271"),
    ({"logit_bias": {"40": 101}}, "logit_bias: Input should be less than or equal to 100"),
    ({"logit_bias": {"the": 1}}, 'logit_bias.the: expected a token\'s id as a string, such as "40"'),
    ({"logit_bias": {"-1": 1}}, 'logit_bias: expected a token\'s id as a string, such as "40"'),
    ({"stop_token_ids": [-1]}, "stop_token_ids: expected token ids from 0 to 271"),
    ({"min_tokens": 13}, "min_tokens: an answer to this request has at most 12 tokens"),
    ({"ignore_eos": 1}, "ignore_eos: Input should be a valid boolean"),
]


def test_what_makes_no_sense_is_named(client: TestClient) -> None:
    for more, message in REFUSED:
        error = chat(client, status=400, **more)["error"]
        assert error["message"] == message
        assert error["param"] == message.partition(":")[0]
