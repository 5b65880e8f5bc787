"""Conversations as token ids.

Messages are text throughout: a special token that is spelled out in one is no command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import (
    Prefix,
    Turn,
    around_messages,
    conversation_tokens,
    document_tokens,
    head_tokens,
    template_tokens,
    with_bos,
)
from kvtool.model.model import Model


@dataclass(frozen=True)
class Message:
    """A message by ``system``, ``user``, ``assistant`` or another role of the chat template."""

    role: str
    content: str


def chat_tokens(model: Model, messages: Sequence[Message], now: datetime | None = None) -> list[int]:
    """A whole conversation, up to where the model answers. A template that prints the time prints ``now``.

    Raises ``UsageError`` for a conversation that the template refuses.
    """
    if model.tokenizer.chat_template is None:
        raise UsageError(model.name, "has no chat template", "use /v1/completions")
    try:
        first, *others = around_messages(model, [message.role for message in messages], now=now)
    except ModelError as error:
        raise UsageError(error.subject, error.reason) from error
    if len(others) != len(messages):
        raise UsageError(model.name, "its chat template does not keep all that these messages say")
    ids = head_tokens(model, first)
    for message, part in zip(messages, others, strict=True):
        ids += document_tokens(model, message.content) + template_tokens(model, part)
    return ids


def tokens_after_documents(model: Model, prefix: Prefix, messages: Sequence[Message]) -> list[int]:
    """A conversation whose documents stand before the user's first words, as ``kvtool ask`` puts them.

    Raises ``UsageError`` for messages that do not take turns, and for another system prompt than that of the documents.
    """
    spoken = list(messages)
    if spoken and spoken[0].role in ("system", "developer"):
        system = spoken.pop(0).content
        if system != prefix.origin.get("system"):
            raise UsageError(
                None,
                "the documents were prefilled under another system prompt",
                "leave the system message out, or prefill with --system",
            )
    expected = [("user", "assistant")[n % 2] for n in range(len(spoken))]
    if len(spoken) % 2 == 0 or [message.role for message in spoken] != expected:
        reason = "expected user and assistant in turn, the user's first and last"
        raise UsageError("messages over documents", reason)
    pairs = zip(spoken[::2], spoken[1::2], strict=False)
    turns = [Turn(question.content, answer.content) for question, answer in pairs]
    return conversation_tokens(model, prefix, turns, spoken[-1].content)


def text_tokens(model: Model, text: str, *, is_first: bool) -> list[int]:
    """Plain text. If it ``is_first`` in a prompt it begins with BOS, once, where the model takes that or the text has it."""
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
