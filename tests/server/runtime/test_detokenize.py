"""Text as it comes: put together it is what all tokens decode to, and what was given out is never taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import kvtool
from kvtool.server.runtime.detokenize import TextStream, TokenText, TokenTexts


def streamed(model: kvtool.Model, text: str, stop: list[str]) -> tuple[str, bool]:
    stream, sent = TextStream(model.tokenizer, stop), ""
    for token in model.tokenizer(text, split_special_tokens=True).input_ids:
        sent += stream.push(token)
        assert text.startswith(sent)
        if stream.stopped:
            return sent, True
    sent += stream.finish()
    return sent, stream.stopped


@given(text=st.text(max_size=300), stop=st.lists(st.text(min_size=1, max_size=3), max_size=3))
@example(text="\x80", stop=["\N{REPLACEMENT CHARACTER}"])
@example(text="a\N{REPLACEMENT CHARACTER}", stop=["\N{REPLACEMENT CHARACTER}"])
@settings(max_examples=150, deadline=None)
def test_all_of_it_up_to_the_first_stop(served: kvtool.Model, text: str, stop: list[str]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    sent, stopped = streamed(served, text, stop)
    ends = [text.index(sequence) for sequence in stop if sequence in text]
    assert stopped is bool(ends)
    if not ends:
        assert sent == text
        return
    # Of several stop sequences the one that was complete first counts.
    complete = min(text.index(sequence) + len(sequence) for sequence in stop if sequence in text)
    assert sent in {text[:end] for end in ends if end < complete}


@pytest.mark.parametrize("text", ["añb", "日本", "🚢!"])
def test_a_character_comes_whole(served: kvtool.Model, text: str) -> None:
    stream = TextStream(served.tokenizer)
    pieces = [stream.push(token) for token in served.tokenizer(text).input_ids]
    assert [part for part in pieces if part] == list(text)
    assert stream.finish() == ""


def test_what_may_become_a_stop_sequence_is_held_back(served: kvtool.Model) -> None:
    stream = TextStream(served.tokenizer, ["end"])
    pieces = [stream.push(token) for token in served.tokenizer("xenx").input_ids]
    assert pieces == ["x", "", "", "enx"]
    for token in served.tokenizer("en").input_ids:
        assert stream.push(token) == ""
    assert stream.finish() == "en"


def joined(tokenizer: Any, ids: list[int]) -> bytes:
    texts = TokenTexts(tokenizer)
    return b"".join(texts.of(token, is_first=n == 0).bytes or b"" for n, token in enumerate(ids))


def sentencepiece() -> Any:
    """A tokenizer as Llama 2 has it: spaces are ▁, and characters that it lacks are bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "▁a", "<unk>"]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def word_pieces() -> Any:
    pieces = ["[UNK]", "a", "##b", "b"]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["Repeat: 🦜🐙😀", "a b  ab\na", "\N{REPLACEMENT CHARACTER}é"], ids=ascii)
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_bytes_of_tokens_joined_are_the_text(served: kvtool.Model, kind: str, text: str) -> None:
    tokenizer = served.tokenizer if kind == "bytes" else sentencepiece()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert joined(tokenizer, ids) == text.encode() == tokenizer.decode(ids).encode()


def test_words_are_joined_as_the_tokenizer_joins_them() -> None:
    tokenizer = word_pieces()
    ids = tokenizer("ab b a").input_ids
    assert joined(tokenizer, ids) == b"ab b a"


def test_a_part_of_a_character_has_its_own_bytes(served: kvtool.Model) -> None:
    first, *_ = served.tokenizer("🦜").input_ids
    text = TokenTexts(served.tokenizer).of(first, is_first=False)
    assert (text.text, text.bytes, text.name) == ("\N{REPLACEMENT CHARACTER}", b"\xf0", r"bytes:\xf0")


def test_special_tokens_have_no_bytes(served: kvtool.Model) -> None:
    end = served.tokenizer.eos_token_id
    assert TokenTexts(served.tokenizer).of(end, is_first=False) == TokenText("<|end|>", None)
    # A model may have more logits than there are tokens.
    assert TokenTexts(served.tokenizer).of(270, is_first=True) == TokenText("", b"")
