"""Answers as OpenAI's two APIs have them, whole and in chunks."""

from __future__ import annotations

import uuid
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from typing_extensions import TypedDict

from kvtool.server.openai.completions import Choice
from kvtool.server.runtime.detokenize import TokenText
from kvtool.server.runtime.generation import AnsweredToken, Delta

FinishReason = Literal["stop", "length"]
Json = dict[str, Any]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: str | None


class TokenLogprob(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int] | None


class ChosenTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChosenTokenLogprob]
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChunkEvent(TypedDict):
    """One server-sent event of a stream: a chunk as JSON, or [DONE]."""

    data: str


class Answers(Protocol):
    """What is shown of the answers to a request, beside their texts: ``Completions``, or those of another engine."""

    @property
    def created(self) -> int: ...
    @property
    def indices(self) -> range: ...
    @property
    def has_logprobs(self) -> bool: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Responses:
    """The bodies of one request's answers, as one of the two APIs has them."""

    id_prefix: str
    object: str
    chunk: str

    def __init__(self, completions: Answers, model: str) -> None:
        self.completions, self.model = completions, model
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"

    def whole(self, choices: Sequence[Choice]) -> Json:
        shown = [self.choice(choice) for choice in choices]
        return {**self._head(self.object), "choices": shown, "usage": self.usage}

    def event(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> Json:
        """A chunk of a stream."""
        return {**self._head(self.chunk), "choices": choices, **more}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.completions.created, "model": self.model}

    @property
    def usage(self) -> Usage:
        prompt, answers = self.completions.prompt_tokens, self.completions.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answers,
            "total_tokens": prompt + answers,
            "prompt_tokens_details": {"cached_tokens": self.completions.cached_tokens},
        }

    def choice(self, choice: Choice) -> Mapping[str, Any]:
        raise NotImplementedError

    def first(self) -> list[Json]:
        """Choices of the chunk that comes before any text, if there is one."""
        return []

    def delta(self, delta: Delta) -> list[Json]:
        """Choices of the chunks that ``delta`` becomes, one each."""
        raise NotImplementedError


class ChatResponses(Responses):
    id_prefix, object, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice) -> Mapping[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.sampled),
            "finish_reason": choice.finish,
        }

    def first(self) -> list[Json]:
        start = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [{"index": index, **start} for index in self.completions.indices]

    def delta(self, delta: Delta) -> list[Json]:
        text = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta.sampled),
            "finish_reason": None,
        }
        end = {"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish}
        return [text] * bool(delta.text or delta.sampled) + [end] * bool(delta.finish)

    def _logprobs(self, sampled: Sequence[AnsweredToken]) -> ChatLogprobs | None:
        if not self.completions.has_logprobs:
            return None
        return {"content": [_chosen(token) for token in sampled], "refusal": None}


def _chosen(token: AnsweredToken) -> ChosenTokenLogprob:
    top = [_logprob(text, logprob) for text, logprob in token.top]
    return {**_logprob(token.text, token.logprob), "top_logprobs": top}


def _logprob(token: TokenText, logprob: float | None) -> TokenLogprob:
    data = None if token.bytes is None else list(token.bytes)
    return {"token": token.text, "logprob": logprob, "bytes": data}


class TextResponses(Responses):
    id_prefix, object, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, completions: Answers, model: str) -> None:
        super().__init__(completions, model)
        self._offsets = [TextOffsets() for _ in completions.indices]

    def choice(self, choice: Choice | Delta) -> Mapping[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.sampled, self._offsets[choice.index]),
            "finish_reason": choice.finish,
        }

    def delta(self, delta: Delta) -> list[Json]:
        return [dict(self.choice(delta))]

    def _logprobs(self, sampled: Sequence[AnsweredToken], offsets: TextOffsets) -> TextLogprobs | None:
        if not self.completions.has_logprobs:
            return None
        return {
            "tokens": [token.text.name for token in sampled],
            "token_logprobs": [token.logprob for token in sampled],
            "top_logprobs": [_top(token) for token in sampled],
            "text_offset": [offsets.add(token.text) for token in sampled],
        }


def _top(token: AnsweredToken) -> dict[str, float] | None:
    """The likeliest tokens in the place of ``token``, and itself; None for a prompt's first, which has nothing before it.

    Of tokens with the same name the likeliest is shown.
    """
    if token.logprob is None:
        return None
    logprobs = dict[str, float]()
    for text, logprob in [*token.top, (token.text, token.logprob)]:
        logprobs.setdefault(text.name, logprob)
    return logprobs


class TextOffsets:
    """Where tokens begin in the text that they make, in characters."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._end = 0

    def add(self, token: TokenText) -> int:
        """Where ``token`` begins, after those that were added before."""
        data = token.bytes or b""
        is_unfinished = bool(self._decoder.getstate()[0])
        # A character that is not finished by this token is in the text as U+FFFD, before it.
        start = self._end + (is_unfinished and bool(data) and not 0x80 <= data[0] < 0xC0)
        self._end += len(self._decoder.decode(data))
        return start
