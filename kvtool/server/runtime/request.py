"""A request for answers, whichever API it came by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, TypeAlias

from kvtool.blending.layout import Cached
from kvtool.model.chat_template import Prefix
from kvtool.model.conversation import Message, chat_tokens, text_tokens, tokens_after_documents
from kvtool.model.model import Model
from kvtool.server.http.errors import ApiError
from kvtool.server.runtime.sampling import Sampling

HeldDocument: TypeAlias = Callable[[], AbstractContextManager[Cached]]
"""Gives a document that is not removed within the context. Raises ``ApiError`` where it is missing."""


@dataclass(frozen=True)
class ConversationPrompt:
    messages: Sequence[Message]
    field: ClassVar[str] = "messages"
    """The request's field that errors name."""

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        """The whole prompt, from its first token to where the model answers, at the time ``now``."""
        return chat_tokens(model, self.messages, now)

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        """The tokens after documents that were prefilled under ``prefix``."""
        return tokens_after_documents(model, prefix, self.messages)


@dataclass(frozen=True)
class TextPrompt:
    text: str
    field: str = "prompt"

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        return text_tokens(model, self.text, is_first=True)

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        return text_tokens(model, self.text, is_first=False)


@dataclass(frozen=True)
class TokenPrompt:
    token_ids: Sequence[int]
    field: str = "prompt"

    def tokens(self, model: Model, now: datetime | None = None) -> Sequence[int]:
        size = model.text_config.vocab_size
        if not all(0 <= token < size for token in self.token_ids):
            message = f"{self.field}: expected token ids from 0 to {size - 1}"
            raise ApiError(400, message, param=self.field)
        return self.token_ids

    def tokens_after(self, model: Model, prefix: Prefix) -> Sequence[int]:
        return self.tokens(model)


Prompt: TypeAlias = ConversationPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True)
class Request:
    """A prompt, and the answers that are wanted to it.

    ``samplings`` are one for each answer. ``max_tokens`` is an answer's length at most, None for the server's default.

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
