"""Answers as OpenAI's two APIs have them, whole and in chunks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from typing_extensions import TypedDict

from kvtool.server.runtime.generation import Choice, Completion, Delta
from kvtool.server.runtime.sampling import SampledToken

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
    bytes: list[int]


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
    top_logprobs: list[dict[str, float]]
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


class Responses:
    """The bodies of one completion's answer, as one of the two APIs has them."""

    id_prefix: str
    object: str
    chunk: str

    def __init__(self, completion: Completion, model: str) -> None:
        self.completion, self.model = completion, model
        self.id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.tokenizer = completion.service.model.tokenizer

    def whole(self, choices: Sequence[Choice]) -> Json:
        shown = [self.choice(choice) for choice in choices]
        return {**self._head(self.object), "choices": shown, "usage": self.usage}

    def event(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> Json:
        """A chunk of a stream."""
        return {**self._head(self.chunk), "choices": choices, **more}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.completion.created, "model": self.model}

    @property
    def usage(self) -> Usage:
        completion = self.completion
        return {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
        }

    def choice(self, choice: Choice) -> Mapping[str, Any]:
        raise NotImplementedError

    def first(self) -> list[Json]:
        """Choices of the chunk that comes before any text, if there is one."""
        return []

    def delta(self, delta: Delta) -> list[Json]:
        """Choices of the chunks that ``delta`` becomes, one each."""
        raise NotImplementedError

    @property
    def has_logprobs(self) -> bool:
        return self.completion.request.samplings[0].logprobs is not None


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
        return [{"index": index, **start} for index in range(len(self.completion.request.samplings))]

    def delta(self, delta: Delta) -> list[Json]:
        text = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta.sampled),
            "finish_reason": None,
        }
        end = {"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish}
        return [text] * bool(delta.text or delta.sampled) + [end] * bool(delta.finish)

    def _logprobs(self, sampled: Sequence[tuple[SampledToken, str]]) -> ChatLogprobs | None:
        if not self.has_logprobs:
            return None
        return {"content": [self._chosen(token, text) for token, text in sampled], "refusal": None}

    def _chosen(self, token: SampledToken, text: str) -> ChosenTokenLogprob:
        top = [_logprob(self.tokenizer.decode([other]), logprob) for other, logprob in token.top]
        return {**_logprob(text, token.logprob), "top_logprobs": top}


def _logprob(text: str, logprob: float | None) -> TokenLogprob:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class TextResponses(Responses):
    id_prefix, object, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, choice: Choice | Delta) -> Mapping[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.sampled),
            "finish_reason": choice.finish,
        }

    def delta(self, delta: Delta) -> list[Json]:
        return [dict(self.choice(delta))]

    def _logprobs(self, sampled: Sequence[tuple[SampledToken, str]]) -> TextLogprobs | None:
        if not self.has_logprobs:
            return None
        decode, texts = self.tokenizer.decode, [text for _, text in sampled]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token, _ in sampled],
            "top_logprobs": [
                {decode([other]): logprob for other, logprob in token.top} for token, _ in sampled
            ],
            "text_offset": [0, *accumulate(map(len, texts))][:-1],
        }
