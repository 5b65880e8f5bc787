"""Conversations → token ids. What people wrote is text throughout: a special token spelled out in it is no command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.errors import UsageError
from kvtool.model.chat_template import Prefix, conversation_tokens, document_tokens
from kvtool.model.model import Model

# Stands for what a message says while the chat template is rendered.
_MARK = "\u2063kvtool\u2063"


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def chat_tokens(model: Model, messages: Sequence[Message]) -> list[int]:
    """A whole conversation, up to where the model answers. Raises ``UsageError`` for one that the template refuses."""
    if model.tokenizer.chat_template is None:
        raise UsageError(model.name, "has no chat template", "use /v1/completions")
    marked = _render(model, [Message(message.role, _MARK) for message in messages])
    parts = marked.split(_MARK)
    if len(parts) != len(messages) + 1:
        raise UsageError(model.name, "its chat template does not keep all that these messages say")
    ids = _template_tokens(model, parts[0])
    for message, part in zip(messages, parts[1:], strict=True):
        ids += document_tokens(model, message.content) + _template_tokens(model, part)
    return ids


def behind_documents(model: Model, prefix: Prefix, messages: Sequence[Message]) -> list[int]:
    """A conversation whose documents stand before the user's first words, as ``kvtool ask`` puts them.

    Raises ``UsageError`` for messages that do not take turns, and for another system prompt than the documents have.
    """
    left = list(messages)
    if left and left[0].role in ("system", "developer"):
        system = left.pop(0).content
        if system != prefix.origin.get("system"):
            raise UsageError(
                None,
                "the documents were prefilled under another system prompt",
                "leave the system message out, or prefill with --system",
            )
    if len(left) % 2 == 0 or [message.role for message in left] != [
        ("user", "assistant")[n % 2] for n in range(len(left))
    ]:
        raise UsageError(
            "messages over documents", "expected user and assistant in turn, the user's first and last"
        )
    turns = [(asked.content, answer.content) for asked, answer in zip(left[::2], left[1::2], strict=False)]
    return conversation_tokens(model, prefix, turns, left[-1].content)


def text_tokens(model: Model, text: str, *, is_first: bool) -> list[int]:
    """Plain text; with what the tokenizer puts first, where it stands ``is_first``."""
    if not is_first:
        return document_tokens(model, text)
    ids = model.text_tokenizer(text, split_special_tokens=True, verbose=False).input_ids
    return list(ids)


def forget_words(model: Model) -> None:
    """A tokenizer remembers the first ten thousand words that it meets, and is faster where they come again: each of two
    tenants could tell from that what the other has sent."""
    for tokenizer in (model.tokenizer, model.text_tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if resize := getattr(getattr(backend, "model", None), "_resize_cache", None):
            resize(0)


def _render(model: Model, messages: Sequence[Message]) -> str:
    try:
        return str(
            model.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
    except Exception as error:  # templates raise whatever they like
        raise UsageError(model.name, f"its chat template refuses these messages ({error})") from error


def _template_tokens(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
