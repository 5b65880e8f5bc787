"""Answers as each of OpenAI's two APIs has them, whole and in chunks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from kvtool.server.runtime.generation import Answering, Choice, Delta
from kvtool.server.runtime.sampling import Picked


class Shape:
    """An answer as one of the two APIs has it."""

    prefix: str
    object: str
    chunk: str

    def __init__(self, answering: Answering) -> None:
        self.answering, self.id = answering, f"{self.prefix}-{uuid.uuid4().hex}"

    def head(self, kind: str) -> dict[str, Any]:
        model, created = self.answering.asked.model, self.answering.created
        return {"id": self.id, "object": kind, "created": created, "model": model}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            **self.head(self.object),
            "choices": [self.choice(choice) for choice in choices],
            "usage": self.answering.usage,
        }

    def choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def first(self) -> list[dict[str, Any]]:
        """Choices of the chunk that comes before any text, if there is one."""
        return []

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        raise NotImplementedError


class Chat(Shape):
    prefix, object, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.picked),
            "finish_reason": choice.finish,
        }

    def first(self) -> list[dict[str, Any]]:
        return [
            {
                "index": n,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for n in range(self.answering.asked.choices)
        ]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        said = {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta.picked),
            "finish_reason": None,
        }
        end = {"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish}
        return [said] * bool(delta.text or delta.picked) + [end] * bool(delta.finish)

    def _logprobs(self, picked: Sequence[tuple[Picked, str]]) -> dict[str, Any] | None:
        if not self.answering.asked.logprobs:
            return None
        tokenizer = self.answering.serving.model.tokenizer

        def told(text: str, logprob: float | None) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return {
            "content": [
                {
                    **told(text, one.logprob),
                    "top_logprobs": [told(tokenizer.decode([token]), value) for token, value in one.top],
                }
                for one, text in picked
            ],
            "refusal": None,
        }


class Text(Shape):
    prefix, object, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.picked),
            "finish_reason": choice.finish,
        }

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        return [
            {
                "index": delta.index,
                "text": delta.text,
                "logprobs": self._logprobs(delta.picked),
                "finish_reason": delta.finish,
            }
        ]

    def _logprobs(self, picked: Sequence[tuple[Picked, str]]) -> dict[str, Any] | None:
        if self.answering.asked.logprobs is None:
            return None
        tokenizer = self.answering.serving.model.tokenizer
        offsets, end = [], 0
        for _, text in picked:
            offsets.append(end)
            end += len(text)
        return {
            "tokens": [text for _, text in picked],
            "token_logprobs": [one.logprob for one, _ in picked],
            "top_logprobs": [
                {tokenizer.decode([token]): value for token, value in one.top} for one, _ in picked
            ],
            "text_offset": offsets,
        }
