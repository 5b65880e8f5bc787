"""An engine's completions → the answers to a chat, in the shapes of kvtool's own server.

Relied on, of vLLM 0.32's ``entrypoints/openai/completion``: a choice has ``index``, ``text``, ``finish_reason`` and, where asked
for, ``logprobs`` with ``tokens``, ``token_logprobs`` and ``top_logprobs``, which are token → log probability. A stream's
chunks have the same for what is new, its last one ``usage`` if that is asked for, and then comes [DONE]. An error on the way is
an event with ``error``.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtool import limits
from kvtool.server.http.errors import ApiError
from kvtool.server.openai.completions import Choice
from kvtool.server.openai.responses import ChatResponses, Json
from kvtool.server.runtime.detokenize import TokenText
from kvtool.server.runtime.generation import AnsweredToken, Delta

DONE = "[DONE]"


@dataclass
class EngineAnswers:
    """``Answers`` of an engine to one prompt; ``usage`` as it says it."""

    n_choices: int
    has_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        return range(self.n_choices)

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens") or 0)

    @property
    def completion_tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or 0)

    @property
    def cached_tokens(self) -> int:
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


class ChatAnswers:
    """Chat bodies made of the completions that an engine gives for ``model``.

    ``top_logprobs`` is how many of the likeliest tokens are shown; None without log probabilities.
    """

    def __init__(self, model: str, n_choices: int, top_logprobs: int | None) -> None:
        self.top = top_logprobs
        self.answers = EngineAnswers(n_choices, top_logprobs is not None)
        self.bodies = ChatResponses(self.answers, model)

    def whole(self, data: bytes) -> Json:
        """The body of a whole answer. Raises ``ApiError`` for what is no completion."""
        with _understood():
            answer = json.loads(data)
            self.answers.usage = answer.get("usage") or {}
            choices = [self._delta(choice) for choice in answer["choices"]]
            return self.bodies.whole([Choice(c.index, c.text, c.sampled, c.finish) for c in choices])

    def first(self) -> Json:
        return self.bodies.event(self.bodies.first())

    def chunks(self, data: bytes) -> list[Json]:
        """The chunks that an event of the engine's stream becomes. Raises ``ApiError`` as ``whole``."""
        with _understood():
            event = json.loads(data)
            if "error" in event:
                return [{"error": event["error"]}]
            deltas = [self._delta(choice) for choice in event["choices"]]
            chunks = [self.bodies.event([choice]) for delta in deltas for choice in self.bodies.delta(delta)]
            if event.get("usage") and not event["choices"]:
                self.answers.usage = event["usage"]
                chunks.append(self.bodies.event([], usage=self.bodies.usage))
            return chunks

    def _delta(self, choice: Mapping[str, Any]) -> Delta:
        sampled = [] if self.top is None else _sampled(choice.get("logprobs") or {}, self.top)
        return Delta(int(choice["index"]), str(choice["text"] or ""), sampled, choice.get("finish_reason"))


def _sampled(logprobs: Mapping[str, Any], most: int) -> list[AnsweredToken]:
    tops = logprobs.get("top_logprobs") or [{}] * len(logprobs.get("tokens", ()))
    rows = zip(logprobs.get("tokens", ()), logprobs.get("token_logprobs", ()), tops, strict=True)
    return [AnsweredToken(_text(token), logprob, _likeliest(top or {}, most)) for token, logprob, top in rows]


def _likeliest(top: Mapping[str, float], most: int) -> list[tuple[TokenText, float]]:
    """vLLM adds the chosen token to those that were asked for."""
    ranked = sorted(top.items(), key=lambda item: -item[1])
    return [(_text(token), float(logprob)) for token, logprob in ranked[:most]]


def _text(token: str) -> TokenText:
    return TokenText(token, token.encode("utf-8", "replace"))


class _understood:
    """Within it, what is no answer that is known is an ``ApiError``."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (ValueError, KeyError, TypeError, AttributeError, RecursionError)):
            reason = (
                "the engine's answer is no completion; is what --engine names an engine with OpenAI's API?"
            )
            raise ApiError(502, reason, code="engine_failed") from error


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events as they come, [DONE] included. Raises ``ApiError`` for one that is too large."""
    rest = bytearray()
    data: bytearray | None = None
    async for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            # Each byte is looked at twice, however long a line is.
            *lines, rest = rest.split(b"\n")
            for line in lines:
                text = line.removesuffix(b"\r")
                if text.startswith(b"data:"):
                    # In one piece: many short lines would be many objects.
                    data = bytearray() if data is None else data
                    data += text.removeprefix(b"data:").removeprefix(b" ") + b"\n"
                elif not text and data is not None:
                    yield bytes(data[:-1])
                    data = None
        if len(rest) + len(data or b"") > limits.ENGINE_BYTES:
            raise ApiError(502, f"an event of the engine is larger than {limits.ENGINE_BYTES:,} bytes")
    if data is not None:
        yield bytes(data[:-1])
