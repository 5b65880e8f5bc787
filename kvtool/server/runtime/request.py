"""A request for answers, whichever API it came by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

from kvtool.blending.layout import Cached
from kvtool.engines.sampling import Sampling
from kvtool.errors import UsageError
from kvtool.model.chat_template import Prefix
from kvtool.model.conversation import (
    Message,
    chat_tokens,
    prefix_over,
    system_of,
    text_tokens,
    tokens_after_documents,
)
from kvtool.model.model import Model
from kvtool.model.template_arguments import refuse_arguments
from kvtool.server.http.errors import ApiError

HeldDocument: TypeAlias = Callable[[], AbstractContextManager[Cached]]
"""Gives a document that is not removed within the context. Raises ``ApiError`` where it is missing."""


@dataclass(frozen=True)
class ConversationPrompt:
    """``arguments`` are those of the chat template."""

    messages: Sequence[Message]
    arguments: Mapping[str, Any]
    field: ClassVar[str] = "messages"
    """The request's field that errors name."""

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        """The whole prompt, from its first token to where the model answers, at the time ``now``."""
        self._check(model)
        return chat_tokens(model, self.messages, now, self.arguments)

    def prefix(self, model: Model, stored: Prefix) -> Prefix:
        """The prefix of this prompt with documents that were prefilled under ``stored``."""
        self._check(model)
        return prefix_over(model, stored, self.messages, self.arguments)

    @property
    def has_system(self) -> bool:
        """Whether it says itself which system prompt it has."""
        return system_of(self.messages) is not None

    def _check(self, model: Model) -> None:
        try:
            refuse_arguments(model, self.arguments)
        except UsageError as error:
            field = "chat_template_kwargs"
            raise ApiError(400, f"{field}.{error}", param=field) from error

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        """The tokens after documents, before which ``prefix`` stands."""
        return tokens_after_documents(model, prefix, self.messages)


@dataclass(frozen=True)
class TextPrompt:
    """With ``parse_special``, special tokens that are spelled out in it are commands."""

    text: str
    parse_special: bool = False
    field: str = "prompt"
    has_system: ClassVar[bool] = False

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        return text_tokens(model, self.text, is_first=True, parse_special=self.parse_special)

    def prefix(self, model: Model, stored: Prefix) -> Prefix:
        return stored

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        return text_tokens(model, self.text, is_first=False, parse_special=self.parse_special)


@dataclass(frozen=True)
class TokenPrompt:
    token_ids: Sequence[int]
    field: str = "prompt"
    has_system: ClassVar[bool] = False

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        refuse_unknown_tokens(model, self.token_ids, self.field)
        return self.token_ids

    def prefix(self, model: Model, stored: Prefix) -> Prefix:
        return stored

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        return self.tokens(model)


def refuse_unknown_tokens(model: Model, token_ids: Collection[int], field: str) -> None:
    """Raises ``ApiError``, naming the request's ``field``, for ids that are none of the model's tokens."""
    size = model.text_config.vocab_size
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < size:
        raise ApiError(400, f"{field}: expected token ids from 0 to {size - 1}", param=field)


Prompt: TypeAlias = ConversationPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True)
class Request:
    """A prompt, and the answers that are wanted to it.

    ``samplings`` are one for each answer, and differ in their seeds alone. ``max_tokens`` is an answer's length at most, None
    for the server's default.

    ``documents`` stand before the prompt; None where none are named. Of several, ``recompute`` is the share of tokens that is
    recomputed, and ``policy`` says which, as ``kvtool.blend`` has them. Without ``use_cache`` everything is prefilled.

    With ``echo`` the prompt itself comes before each answer, with log probabilities where ``samplings`` ask for them.
    """

    prompt: Prompt
    samplings: Sequence[Sampling]
    max_tokens: int | None
    stop: Sequence[str]
    documents: Sequence[HeldDocument] | None
    recompute: float
    policy: str
    use_cache: bool
    echo: bool = False

    @property
    def is_scored(self) -> bool:
        """Whether the prompt's tokens are given with their log probabilities."""
        return self.echo and self.samplings[0].logprobs is not None
