"""Tokens → text, as they come: whole characters only, and nothing from a stop sequence on. Single tokens, to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

_RECENT_TOKENS = 64
"""Tokens that are decoded again with each new one, before the older half of them is settled."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_BEFORE = "a"
"""A token that is decoded before another, which then keeps the space that it begins with."""


class TextStream:
    """The text of an answer, sent piece by piece and never taken back.

    A character whose bytes have not all come is held back, and so is what may become a stop sequence, until the next tokens
    decide. None is looked for before the answer has more than ``min_tokens``.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self.tokenizer, self.stop, self.min_tokens = tokenizer, tuple(stop), min_tokens
        self.stopped = False
        self._tokens: list[int] = []
        self._prompt_tokens = 0
        self._sent = 0
        # Decoding everything for each token would take quadratic time: text before the mark is settled.
        self._mark, self._settled = 0, ""

    def echo(self, prompt: Sequence[int]) -> str:
        """The text of a ``prompt`` that is sent before its answer. Stop sequences are looked for in the answer alone."""
        self._tokens, self._prompt_tokens = list(prompt), len(prompt)
        text = self._text().rstrip(_UNFINISHED)
        self._sent = len(text)
        return text

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
        stops = self.stop if len(self._tokens) - self._prompt_tokens > self.min_tokens else ()
        if starts := [at for stop in stops if (at := text.find(stop, self._sent)) >= 0]:
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


@dataclass(frozen=True)
class TokenText:
    """A token's name for people, and its bytes; those of an answer's tokens, joined, are the answer. Special tokens have none."""

    text: str
    bytes: bytes | None

    @property
    def name(self) -> str:
        """The text, unless that would be no text: then the bytes, as OpenAI's completions write them."""
        try:
            return self.text if self.bytes is None else self.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes or b"")


class TokenTexts:
    """Texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = frozenset(
            token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        )
        self._decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        kinds = set(_kinds(json.loads(self._decoder.__getstate__()))) if self._decoder else set()
        self._has_alphabet, self._has_byte_tokens = "ByteLevel" in kinds, "ByteFallback" in kinds

    def of(self, token: int, *, is_first: bool) -> TokenText:
        """The text of ``token``; ``is_first`` where it begins what is decoded."""
        if token in self._special:
            return TokenText(str(self.tokenizer.decode([token])), None)
        data = self._bytes(token, is_first)
        return TokenText(data.decode(errors="replace"), data)

    def _bytes(self, token: int, is_first: bool) -> bytes:
        # A model may have more logits than its tokenizer has tokens.
        name = self.tokenizer.convert_ids_to_tokens(token) or ""
        if self._has_alphabet:
            # Added tokens are written as they are. The decoder decides by the same rule.
            return bytes(_BYTES[each] for each in name) if _BYTES.keys() >= set(name) else name.encode()
        if self._has_byte_tokens and (byte := _BYTE.fullmatch(name)):
            return bytes.fromhex(byte[1])
        if self._decoder is None:
            return str(self.tokenizer.decode([token])).encode()
        if is_first:
            return str(self._decoder.decode([name])).encode()
        return str(self._decoder.decode([_BEFORE, name])).removeprefix(_BEFORE).encode()


def _kinds(decoder: Any) -> list[str]:
    """The kinds of decoders that a decoder of ``tokenizers`` is made of."""
    return [decoder["type"], *(kind for each in decoder.get("decoders", ()) for kind in _kinds(each))]
