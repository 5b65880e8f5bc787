"""The tokens before every segment, and those of questions after it, as the model's chat template has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import chain, dropwhile
from types import MappingProxyType
from typing import Any, NamedTuple

from kvtool.digest import digest_token_ids
from kvtool.errors import ModelError, UsageError
from kvtool.model.model import Model

SEPARATOR = "\n\n"
"""The text between documents of one prompt."""

# In place of a message's content while the chat template is rendered; no template treats it specially.
MARK = "\u2063kvtool\u2063"

_TIME = "strftime_now"
"""The function by which chat templates tell the time."""

_PRINTED = f"""{{% macro {_TIME}(pattern) %}}{{{{ kvtool_times[pattern] if pattern in kvtool_times else \
raise_exception("it prints the time in a pattern that is not written out") }}}}{{% endmacro %}}
"""


NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
"""Arguments of the chat template, such as ``enable_thinking``, where none are given."""


@dataclass(frozen=True)
class Prefix:
    """The tokens before every segment.

    ``tail`` is the text between a user's words and the answer. ``origin`` says how the prefix was made, as JSON. Where the
    chat template prints the time, ``now`` in it is that time. ``arguments`` are those of the chat template that one request
    gives; no stored prefix has any.
    """

    token_ids: tuple[int, ...]
    tail: str
    origin: dict[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_token_ids(self.token_ids)


class Turn(NamedTuple):
    """A question and the answer that it got."""

    question: str
    answer: str


def prefix_of(
    model: Model,
    *,
    system: str | None = None,
    text: str | None = None,
    none: bool = False,
    now: datetime | None = None,
) -> Prefix:
    """The chat template up to the user's words, with ``system`` as system prompt if given.

    A template that prints the time prints ``now``.

    ``text`` is a prefix of its own instead of the template. With ``none``, or without a chat template, the prefix is what
    the tokenizer itself puts first (BOS). Raises ``UsageError`` where more than one is given, and ``ModelError`` where the
    template does not allow it.
    """
    if sum([system is not None, text is not None, none]) > 1:
        raise UsageError("--system, --prefix-file and --no-prefix", "exclude each other", "give one")
    if text is not None:
        ids = with_bos(model, template_tokens(model, text))
        return Prefix(tuple(ids), "\n", {"kind": "text", "text": text})
    if model.tokenizer.chat_template is None or none:
        if system is not None:
            reason = "has no chat template, so --system cannot be placed"
            raise ModelError(model.name, reason, "use --prefix-file")
        return Prefix(tuple(with_bos(model, ())), "\n", {"kind": "none"})
    now = now or datetime.now()
    head, tail = around_user(model, system, now)
    origin: dict[str, Any] = {"kind": "chat", "system": system}
    if prints_time(model):
        origin["now"] = now.isoformat()
    return Prefix(tuple(head_tokens(model, head)), tail, origin)


def stored_prefix(model: Model, origin: Mapping[str, Any], token_ids: Sequence[int]) -> Prefix:
    """The prefix of a stored document, whose ``token_ids`` are stored too.

    They are not made again: the template may print the time, and older stores do not know which. Raises ``ModelError``
    for an ``origin`` of a later version.
    """
    match origin:
        case {"kind": "chat", "system": system}:
            tail = around_user(model, system, time_of(origin))[1]
        case {"kind": "text" | "none"}:
            tail = "\n"
        case _:
            kind = origin.get("kind")
            raise ModelError(f"prefix of kind {kind!r}", "is not known to this version", "upgrade kvtool")
    return Prefix(tuple(token_ids), tail, dict(origin))


def time_of(origin: Mapping[str, Any]) -> datetime | None:
    """The time that the chat template printed into the prefix of this ``origin``; None where it printed none."""
    return datetime.fromisoformat(origin["now"]) if "now" in origin else None


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
    messages = [*chain.from_iterable(turns), question]
    messages[0] = f"\n\n{messages[0]}"
    ids: list[int] = []
    for message, after in zip(messages, _after_messages(model, prefix, len(turns)), strict=True):
        ids += document_tokens(model, message) + template_tokens(model, after)
    return ids + document_tokens(model, lead) if lead else ids


def keeps_turns(model: Model, prefix: Prefix) -> bool:
    """Whether a conversation of several turns can be put after a document."""
    try:
        return bool(_after_messages(model, prefix, 1))
    except ModelError:
        return False


def around_messages(
    model: Model,
    roles: Sequence[str],
    system: str | None = None,
    now: datetime | None = None,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[str]:
    """The text that the chat template puts before, between and after messages of ``roles``, and before the answer.

    It is one string more than there are roles, unless the template leaves a message out or repeats one. ``system`` is the
    text of a system message before them. A template that prints the time prints ``now``, by default the present. It sees
    ``arguments`` too. Raises ``ModelError`` for messages that the template refuses.
    """
    messages = [(role, MARK) for role in roles]
    if system is not None:
        messages.insert(0, ("system", system))
    return render(model, messages, now, arguments).split(MARK)


def render(
    model: Model,
    messages: Sequence[tuple[str, str]],
    now: datetime | None = None,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> str:
    """The text that the chat template makes of ``messages``, each a role and what it says, up to where the model answers.

    Time, arguments and errors are those of ``around_messages``.
    """
    options: dict[str, Any] = {**arguments, "add_generation_prompt": True}
    if prints_time(model):
        options |= _at(now or datetime.now(), model.tokenizer.get_chat_template())
    try:
        content_of = _parts if _takes_parts(model.tokenizer, model.tokenizer.get_chat_template()) else str
        chat = [{"role": role, "content": content_of(content)} for role, content in messages]
        text = model.tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except Exception as error:  # templates raise whatever they like
        raise ModelError(model.name, f"its chat template refuses these messages ({error})") from error
    return str(text)


@lru_cache(maxsize=16)
def _takes_parts(tokenizer: Any, template: str) -> bool:
    """Whether ``template`` takes contents only as lists of parts, as some do for models that see images too."""
    kept = []
    for content_of in (str, _parts):
        try:
            chat = [{"role": "user", "content": content_of(MARK)}]
            text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
            kept.append(MARK in str(text))
        except Exception:  # templates raise whatever they like
            kept.append(False)
    return kept == [False, True]


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def prints_time(model: Model) -> bool:
    """Whether the chat template may print the time, so that it can differ from one day, or second, to the next."""
    return model.tokenizer.chat_template is not None and _TIME in model.tokenizer.get_chat_template()


def _at(now: datetime, template: str) -> dict[str, Any]:
    """Options of ``apply_chat_template`` for which ``template`` prints ``now``.

    Templates see plain data only. So a macro takes the place of the function that tells the time.
    """
    patterns = {match[2] for match in re.finditer(rf"""{_TIME}\(\s*(['"])(.+?)\1\s*\)""", template)}
    times = {pattern: now.strftime(pattern) for pattern in patterns}
    return {"chat_template": _PRINTED + template, "kvtool_times": times}


def with_bos(model: Model, ids: Sequence[int]) -> list[int]:
    """A prompt's first tokens, with exactly one BOS if the model takes any, whether or not ``ids`` have one."""
    bos = model.tokenizer.bos_token_id
    rest = list(dropwhile(lambda token: token == bos, ids))
    return [bos, *rest] if len(rest) < len(ids) or _takes_bos(model) else rest


def _takes_bos(model: Model) -> bool:
    """Whether the tokenizer puts BOS first, or leaves that to a chat template which does.

    A template that begins with the same token but does not name it ``bos_token`` begins with a turn's marker.
    """
    tokenizer = model.tokenizer
    if tokenizer.bos_token_id is None:
        return False
    if tokenizer("", add_special_tokens=True).input_ids[:1] == [tokenizer.bos_token_id]:
        return True
    if tokenizer.chat_template is None or "bos_token" not in tokenizer.get_chat_template():
        return False
    try:
        return around_user(model, None, None)[0].startswith(str(tokenizer.bos_token))
    except ModelError:
        return False


def template_tokens(model: Model, text: str) -> list[int]:
    """Token ids of a part of the chat template, in which special tokens are commands."""
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _after_messages(model: Model, prefix: Prefix, turns: int) -> list[str]:
    """The text after each message of ``turns`` and a last question."""
    if not turns:
        return [prefix.tail]
    if prefix.origin["kind"] != "chat":
        return [*[prefix.tail, "\n\n"] * turns, prefix.tail]
    roles, system = [*["user", "assistant"] * turns, "user"], prefix.origin["system"]
    now = time_of(prefix.origin) or datetime.now()
    before, *after = around_messages(model, roles, system, now, prefix.arguments)
    if len(after) != len(roles):
        raise ModelError(model.name, "its chat template does not keep earlier turns as they were said")
    # Some put the system prompt before the last question, so that no prefix has it.
    if before != around_user(model, system, now, prefix.arguments)[0]:
        raise ModelError(model.name, "its chat template begins otherwise where there are earlier turns")
    return after


def around_user(
    model: Model,
    system: str | None,
    now: datetime | None,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> tuple[str, str]:
    """The text before a user's words, and after them up to the answer."""
    parts = around_messages(model, ("user",), system, now, arguments)
    if len(parts) != 2:
        raise ModelError(model.name, "its chat template does not keep the user's words", "use --no-prefix")
    return parts[0], parts[1]


def head_tokens(model: Model, head: str) -> list[int]:
    """The beginning of a prompt as the chat template has it, but with one BOS where a system prompt spells out another."""
    ids = template_tokens(model, head)
    return with_bos(model, ids) if ids[:1] == [model.tokenizer.bos_token_id] else ids
