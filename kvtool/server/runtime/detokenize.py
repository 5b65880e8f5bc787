"""Tokens → text, as they come: whole characters only, and nothing from a stop sequence on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

_RECENT_TOKENS = 64
"""Tokens that are decoded again with each new one, before the older half of them is settled."""


class TextStream:
    """The text of an answer, sent piece by piece and never taken back.

    A character whose bytes have not all come is held back, and so is what may become a stop sequence, until the next tokens
    decide.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._tokens: list[int] = []
        self._sent = 0
        # Decoding everything for each token would take quadratic time: text before the mark is settled.
        self._mark, self._settled = 0, ""

    def push(self, token: int) -> str:
        """The text that is certain now. Once ``stopped``, it ends before the stop sequence."""
        self._tokens.append(token)
        # A stop sequence is not looked for in what only stands for bytes that are still to come.
        text = self._text().rstrip(_UNFINISHED)
        return self._up_to_stop(text, len(text) - self._held_back(text))

    def finish(self) -> str:
        """The text that was held back, when no more tokens come; a stop sequence may be in that too."""
        text = self._text()
        return "" if self.stopped else self._up_to_stop(text, len(text))

    def _up_to_stop(self, text: str, end: int) -> str:
        if starts := [at for stop in self.stop if (at := text.find(stop, self._sent)) >= 0]:
            self.stopped = True
            end = min(starts)
        new = text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _text(self) -> str:
        recent = self._tokens[self._mark :]
        text = self._settled + self._decode(recent)
        # Some tokenizers decode a first token without its space, so a settled part ends after whole words only.
        if len(recent) > _RECENT_TOKENS and not text.endswith(_UNFINISHED):
            half = len(recent) // 2
            first, second = recent[:half], recent[half:]
            if self._decode(first) + self._decode(second) == self._decode(recent):
                self._settled += self._decode(first)
                self._mark += half
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _held_back(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop sequence."""
        longest, unsent = 0, len(text) - self._sent
        for stop in self.stop:
            for size in range(1, min(len(stop), unsent + 1)):
                if text.endswith(stop[:size]):
                    longest = max(longest, size)
        return longest
