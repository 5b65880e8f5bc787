"""The tokens before every segment, and those of questions after it, as the model's chat template has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from kvtool.digest import digest_token_ids
from kvtool.errors import ModelError, UsageError
from kvtool.model.model import Model

SEPARATOR = "\n\n"
"""The text between documents of one prompt."""

# In place of a message's content while the chat template is rendered; no template treats it specially.
_MARK = "\u2063kvtool\u2063"


@dataclass(frozen=True)
class Prefix:
    """The tokens before every segment.

    ``tail`` is the text between a user's words and the answer. ``origin`` says how the prefix was made, as JSON, so that
    ``prefix_again`` can make the same.
    """

    token_ids: tuple[int, ...]
    tail: str
    origin: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest_token_ids(self.token_ids)


class Turn(NamedTuple):
    """A question and the answer that it got."""

    question: str
    answer: str


def prefix_of(
    model: Model, *, system: str | None = None, text: str | None = None, none: bool = False
) -> Prefix:
    """The chat template up to the user's words, with ``system`` as system prompt if given.

    ``text`` is a prefix of its own instead of the template. With ``none``, or without a chat template, the prefix is what
    the tokenizer itself puts first (BOS). Raises ``UsageError`` where more than one is given, and ``ModelError`` where the
    template does not allow it.
    """
    if sum([system is not None, text is not None, none]) > 1:
        raise UsageError("--system, --prefix-file and --no-prefix", "exclude each other", "give one")
    first = _first_tokens(model)
    if text is not None:
        return Prefix((*first, *template_tokens(model, text)), "\n", {"kind": "text", "text": text})
    if model.tokenizer.chat_template is None or none:
        if system is not None:
            reason = "has no chat template, so --system cannot be placed"
            raise ModelError(model.name, reason, "use --prefix-file")
        return Prefix(first, "\n", {"kind": "none"})
    head, tail = _around_user(model, system)
    return Prefix(tuple(template_tokens(model, head)), tail, {"kind": "chat", "system": system})


def prefix_again(model: Model, origin: dict[str, Any]) -> Prefix:
    """The prefix that ``origin`` describes. Raises ``ModelError`` for one of a later version."""
    match origin:
        case {"kind": "chat", "system": system}:
            return prefix_of(model, system=system)
        case {"kind": "text", "text": str(text)}:
            return prefix_of(model, text=text)
        case {"kind": "none"}:
            return prefix_of(model, none=True)
    kind = origin.get("kind")
    raise ModelError(f"prefix of kind {kind!r}", "is not known to this version", "upgrade kvtool")


def document_tokens(model: Model, text: str) -> list[int]:
    """Token ids of a document's text. A special token that is spelled out in it is text, not a command."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return list(model.text_tokenizer(text, **options).input_ids)


def question_tokens(model: Model, prefix: Prefix, question: str) -> list[int]:
    """Token ids of ``question`` after a document, up to where the answer begins."""
    return conversation_tokens(model, prefix, (), question)


def conversation_tokens(
    model: Model, prefix: Prefix, turns: Sequence[Turn | tuple[str, str]], question: str, lead: str = ""
) -> list[int]:
    """Token ids of a conversation after a document: earlier ``turns``, then ``question``.

    ``lead`` is how the model's answer begins. Raises ``ModelError`` for a chat template that does not keep earlier turns.
    """
    tail = template_tokens(model, prefix.tail)
    ids: list[int] = []
    if turns:
        separator = template_tokens(model, _turn_separator(model, prefix))
    for n, (asked, answer) in enumerate(turns):
        ids += document_tokens(model, f"\n\n{asked}" if n == 0 else asked) + tail
        ids += document_tokens(model, answer) + separator
    ids += document_tokens(model, question if turns else f"\n\n{question}") + tail
    return ids + document_tokens(model, lead) if lead else ids


def keeps_turns(model: Model, prefix: Prefix) -> bool:
    """Whether a conversation of several turns can be put after a document."""
    try:
        return bool(_turn_separator(model, prefix))
    except ModelError:
        return False


def around_messages(model: Model, roles: Sequence[str], system: str | None = None) -> list[str]:
    """The text that the chat template puts before, between and after messages of ``roles``, and before the answer.

    It is one string more than there are roles, unless the template leaves a message out or repeats one. ``system`` is the
    text of a system message before them. Raises ``ModelError`` for messages that the template refuses.
    """
    messages = [{"role": role, "content": _MARK} for role in roles]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever they like
        raise ModelError(model.name, f"its chat template refuses these messages ({error})") from error
    return str(text).split(_MARK)


def template_tokens(model: Model, text: str) -> list[int]:
    """Token ids of a part of the chat template, in which special tokens are commands."""
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _turn_separator(model: Model, prefix: Prefix) -> str:
    """The text between an answer and the user's next words."""
    if prefix.origin["kind"] != "chat":
        return "\n\n"
    parts = around_messages(model, ("user", "assistant", "user"), prefix.origin["system"])
    if len(parts) != 4 or parts[1] != prefix.tail:
        raise ModelError(model.name, "its chat template does not keep earlier turns as they were said")
    return parts[2]


def _around_user(model: Model, system: str | None) -> tuple[str, str]:
    """The text before a user's words, and after them up to the answer."""
    parts = around_messages(model, ("user",), system)
    if len(parts) != 2:
        raise ModelError(model.name, "its chat template does not keep the user's words", "use --no-prefix")
    return parts[0], parts[1]


def _first_tokens(model: Model) -> tuple[int, ...]:
    ids = model.tokenizer("", add_special_tokens=True).input_ids
    bos = model.tokenizer.bos_token_id
    return (bos,) if bos is not None and ids[:1] == [bos] else ()
