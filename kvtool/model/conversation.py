"""Conversations as token ids.

Messages are text throughout: a special token that is spelled out in one is no command. What the chat template leaves out of a
message, such as the reasoning in earlier answers, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate, chain
from typing import Any, NamedTuple

from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import (
    MARK,
    NO_ARGUMENTS,
    Prefix,
    Turn,
    around_messages,
    around_user,
    conversation_tokens,
    document_tokens,
    head_tokens,
    prints_time,
    render,
    template_tokens,
    time_of,
    with_bos,
)
from kvtool.model.model import Model

_NOT_KEPT = "its chat template does not keep all that these messages say"


@dataclass(frozen=True)
class Message:
    """A message by ``system``, ``user``, ``assistant`` or another role of the chat template."""

    role: str
    content: str


class Span(NamedTuple):
    """A part of a text, in characters."""

    start: int
    stop: int


@contextmanager
def _template_refuses() -> Iterator[None]:
    """What the chat template refuses of a conversation is an error of who sent it."""
    try:
        yield
    except ModelError as error:
        raise UsageError(error.subject, error.reason, error.remedy) from error


def chat_tokens(
    model: Model,
    messages: Sequence[Message],
    now: datetime | None = None,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[int]:
    """A whole conversation, up to where the model answers. A template that prints the time prints ``now``.

    ``arguments`` are the template's. Raises ``UsageError`` for a conversation that the template refuses.
    """
    text, spans = _rendered(model, messages, now, arguments)
    ids, end = _tokens_before(model, text, spans)
    return ids + template_tokens(model, text[end:])


@_template_refuses()
def prefix_over(
    model: Model,
    stored: Prefix,
    messages: Sequence[Message],
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> Prefix:
    """The prefix of a conversation over documents of the prefix ``stored``.

    It is theirs unless the system message or the ``arguments`` of the chat template make another of it. Raises as
    ``chat_tokens`` does.
    """
    system = system_of(messages)
    if system is None:
        system = stored.origin.get("system")
    is_theirs = system == stored.origin.get("system")
    if is_theirs and not arguments:
        return stored
    now = time_of(stored.origin) or datetime.now()
    if is_theirs and stored.origin["kind"] == "chat":
        head, tail = around_user(model, system, now, arguments)
        if head == around_user(model, system, now)[0]:
            return replace(stored, tail=tail, arguments=arguments)
    asked = [*([] if system is None else [Message("system", system)]), Message("user", MARK)]
    text, spans = _rendered(model, asked, now, arguments)
    *before, user = spans
    ids, _ = _tokens_before(model, text, [*before, Span(user.start, user.start)])
    origin: dict[str, Any] = {"kind": "chat", "system": system}
    if prints_time(model):
        origin["now"] = now.isoformat()
    return Prefix(tuple(ids), text[user.stop :], origin, arguments)


@_template_refuses()
def tokens_after_documents(model: Model, prefix: Prefix, messages: Sequence[Message]) -> list[int]:
    """A conversation whose documents stand before the user's first words, as ``kvtool ask`` puts them.

    A system message is part of ``prefix``. Raises ``UsageError`` for messages that do not take turns.
    """
    spoken = list(messages if system_of(messages) is None else messages[1:])
    expected = [("user", "assistant")[n % 2] for n in range(len(spoken))]
    if len(spoken) % 2 == 0 or [message.role for message in spoken] != expected:
        reason = "expected user and assistant in turn, the user's first and last"
        raise UsageError("messages over documents", reason)
    answers = [answer.content for answer in spoken[1::2]]
    if answers and prefix.origin["kind"] == "chat":
        text, spans = _rendered(model, spoken, time_of(prefix.origin), prefix.arguments)
        answers = [text[span.start : span.stop] for span in spans[1::2]]
    turns = [Turn(question.content, answer) for question, answer in zip(spoken[::2], answers, strict=False)]
    return conversation_tokens(model, prefix, turns, spoken[-1].content)


def system_of(messages: Sequence[Message]) -> str | None:
    """The system prompt that ``messages`` begin with."""
    return messages[0].content if messages and messages[0].role in ("system", "developer") else None


def _tokens_before(model: Model, text: str, spans: Sequence[Span]) -> tuple[list[int], int]:
    """Tokens of a rendered conversation up to the end of the last of ``spans``, where messages are, and where that is."""
    ids, end = list[int](), 0
    for span in spans:
        tokens = template_tokens if ids else head_tokens
        ids += tokens(model, text[end : span.start])
        ids += document_tokens(model, text[span.start : span.stop])
        end = span.stop
    return ids, end


@_template_refuses()
def _rendered(
    model: Model, messages: Sequence[Message], now: datetime | None, arguments: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    """What the chat template makes of ``messages``, and where in it is what it keeps of each.

    All else in it is the template's, whatever the messages say. Raises ``UsageError`` where that cannot be told.
    """
    if model.tokenizer.chat_template is None:
        raise UsageError(model.name, "has no chat template", "use /v1/completions")
    now = now or datetime.now()
    contents = [message.content for message in messages]
    text = _render(model, messages, contents, now, arguments)
    roles = [message.role for message in messages]
    around = around_messages(model, roles, now=now, arguments=arguments)
    if len(around) != len(contents) + 1:
        raise ModelError(model.name, _NOT_KEPT)
    pieces = list(chain.from_iterable(zip(around, contents, strict=False)))
    if text != "".join([*pieces, around[-1]]):
        return text, _kept(model, messages, text, now, arguments)
    edges = list(accumulate(map(len, pieces)))
    return text, [Span(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _kept(
    model: Model, messages: Sequence[Message], text: str, now: datetime, arguments: Mapping[str, Any]
) -> list[Span]:
    """Where in ``text`` is what the chat template keeps of each message.

    Each message in turn is replaced by a mark. What is before and after the mark is the same for any message, and the rest
    of ``text`` is what was kept of this one. So nothing that a message says can pass for the template's own words.
    """
    contents, mark = [message.content for message in messages], MARK
    while any(mark in content for content in contents):
        mark += MARK
    spans, end = list[Span](), 0
    for number in range(len(messages)):
        marked = [*contents[:number], mark, *contents[number + 1 :]]
        before, *after = _render(model, messages, marked, now, arguments).split(mark)
        if len(after) != 1:
            raise ModelError(model.name, _NOT_KEPT)
        span = Span(len(before), len(text) - len(after[0]))
        is_around = text.startswith(before) and text.endswith(after[0])
        if not (is_around and end <= span.start <= span.stop):
            reason = f"its chat template changes more than message {number + 1} because of what that says"
            raise ModelError(model.name, reason)
        spans.append(span)
        end = span.stop
    return spans


def _render(
    model: Model,
    messages: Sequence[Message],
    contents: Sequence[str],
    now: datetime,
    arguments: Mapping[str, Any],
) -> str:
    """The text of ``messages`` with other ``contents``."""
    said = [(message.role, content) for message, content in zip(messages, contents, strict=True)]
    return render(model, said, now, arguments)


def text_tokens(model: Model, text: str, *, is_first: bool, parse_special: bool = False) -> list[int]:
    """Plain text, or with ``parse_special`` text whose special tokens are commands, as in a chat template.

    If it ``is_first`` in a prompt it begins with BOS, once, where the model takes that or the text has it.
    """
    if parse_special:
        ids = template_tokens(model, text)
        return with_bos(model, ids) if is_first else ids
    if not is_first:
        return document_tokens(model, text)
    bos, rest = model.tokenizer.bos_token, text
    while bos and rest.startswith(bos):
        rest = rest.removeprefix(bos)
    first = [model.tokenizer.bos_token_id] if rest != text else []
    return with_bos(model, [*first, *document_tokens(model, rest)])


def forget_words(model: Model) -> None:
    """Keeps the model's tokenizers from remembering words.

    A tokenizer remembers the first ten thousand words that it meets, and is faster where they come again. From that, a
    tenant could tell what another has sent.
    """
    for tokenizer in (model.tokenizer, model.text_tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if resize := getattr(getattr(backend, "model", None), "_resize_cache", None):
            resize(0)
