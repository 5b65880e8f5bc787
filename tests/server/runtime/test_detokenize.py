"""Text as it comes: put together it is what all tokens decode to, and what was given out is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kvtool
from kvtool.server.runtime.detokenize import TextStream


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
