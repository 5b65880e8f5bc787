"""The tokens that every segment is prefilled under, and those that a question ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvtool.digest import digest_token_ids
from kvtool.errors import ModelError, UsageError
from kvtool.model.model import Model

BETWEEN = "\n\n"
"""What stands between documents of one prompt."""

# Stands for the user's words while the chat template is rendered; no template treats it specially.
_MARK = "\u2063kvtool\u2063"


@dataclass(frozen=True)
class Prefix:
    """``token_ids`` stand before every segment. ``tail`` is the text between a user's words and the answer.

    ``origin`` says how it was made, as JSON, so that the same can be made again.
    """

    token_ids: tuple[int, ...]
    tail: str
    origin: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest_token_ids(self.token_ids)


def prefix_of(
    model: Model, *, system: str | None = None, text: str | None = None, none: bool = False
) -> Prefix:
    """The chat template's head up to where the user's words begin; with ``system`` as system prompt if given.

    ``text`` is a prefix of its own instead of the template. ``none``, or a model without a chat template, leaves
    what the tokenizer itself puts first (BOS).
    """
    if sum([system is not None, text is not None, none]) > 1:
        raise UsageError("--system, --prefix-file and --no-prefix", "exclude each other", "give one")
    first = _first_tokens(model)
    if text is not None:
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        return Prefix((*first, *ids), "\n", {"kind": "text", "text": text})
    if model.tokenizer.chat_template is None or none:
        if system is not None:
            raise ModelError(
                model.name, "has no chat template, so --system cannot be placed", "use --prefix-file"
            )
        return Prefix(first, "\n", {"kind": "none"})
    head, tail = _render(model, system)
    ids = tuple(model.tokenizer(head, add_special_tokens=False).input_ids)
    return Prefix(ids, tail, {"kind": "chat", "system": system})


def prefix_again(model: Model, origin: dict[str, Any]) -> Prefix:
    """The prefix that ``origin`` describes."""
    match origin:
        case {"kind": "chat", "system": system}:
            return prefix_of(model, system=system)
        case {"kind": "text", "text": str(text)}:
            return prefix_of(model, text=text)
        case {"kind": "none"}:
            return prefix_of(model, none=True)
    raise ModelError(
        f"prefix of kind {origin.get('kind')!r}", "is not known to this version", "upgrade kvtool"
    )


def document_tokens(model: Model, text: str) -> list[int]:
    """Token ids of a document's text. A special token spelled out in a document is text, not a command."""
    ids = model.text_tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids
    return list(ids)


def question_tokens(model: Model, prefix: Prefix, question: str) -> list[int]:
    """Token ids of ``question`` behind a document, and of what leads to the answer."""
    return conversation_tokens(model, prefix, (), question)


def conversation_tokens(
    model: Model, prefix: Prefix, turns: Sequence[tuple[str, str]], question: str, lead: str = ""
) -> list[int]:
    """Token ids of a conversation behind a document: ``turns`` of questions with their answers, then ``question``.

    ``lead`` is how the model's answer begins. Raises ``ModelError`` for a chat template that knows no earlier turns.
    """
    tail = list(model.tokenizer(prefix.tail, add_special_tokens=False).input_ids)
    ids: list[int] = []
    if turns:
        between = list(model.tokenizer(_between(model, prefix), add_special_tokens=False).input_ids)
    for n, (asked, answer) in enumerate(turns):
        ids += document_tokens(model, f"\n\n{asked}" if n == 0 else asked) + tail
        ids += document_tokens(model, answer) + between
    ids += document_tokens(model, question if turns else f"\n\n{question}") + tail
    return ids + document_tokens(model, lead) if lead else ids


def keeps_turns(model: Model, prefix: Prefix) -> bool:
    """Whether a conversation of several turns can be put behind a document."""
    try:
        return bool(_between(model, prefix))
    except ModelError:
        return False


def _between(model: Model, prefix: Prefix) -> str:
    """What stands between an answer and the user's next words."""
    if prefix.origin["kind"] != "chat":
        return "\n\n"
    roles = ("user", "assistant", "user")
    parts = _rendered(model, prefix.origin["system"], roles)
    if len(parts) != 4 or parts[1] != prefix.tail:
        raise ModelError(model.name, "its chat template does not keep earlier turns as they were said")
    return parts[2]


def _render(model: Model, system: str | None) -> tuple[str, str]:
    parts = _rendered(model, system, ("user",))
    if len(parts) != 2:
        raise ModelError(model.name, "its chat template does not keep the user's words", "use --no-prefix")
    return parts[0], parts[1]


def _rendered(model: Model, system: str | None, roles: Sequence[str]) -> list[str]:
    """What the template puts around the words of ``roles``, the generation prompt behind the last."""
    messages = [{"role": role, "content": _MARK} for role in roles]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever they like
        raise ModelError(model.name, f"its chat template refuses these messages ({error})") from error
    return str(text).split(_MARK)


def _first_tokens(model: Model) -> tuple[int, ...]:
    ids = model.tokenizer("", add_special_tokens=True).input_ids
    bos = model.tokenizer.bos_token_id
    return (bos,) if bos is not None and ids[:1] == [bos] else ()
