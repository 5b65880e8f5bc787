"""Documents of five kinds, in two halves that share no source: to measure on, and to calibrate with."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import kvtool
from benchmarks.corpora.sources import HELD_OUT, SEEN, Source
from kvtool.documents.split import CHARACTERS_PER_TOKEN
from kvtool.model.chat_template import document_tokens


@dataclass(frozen=True)
class Text:
    """``name`` is a file's: of the kind or source, and a number."""

    kind: str
    source: str
    name: str
    text: str


def held_out(
    model: kvtool.Model,
    tokens: int,
    documents: int = 2,
    kinds: Mapping[str, Sequence[Source]] | None = None,
) -> dict[str, list[Text]]:
    """For each of ``kinds``, by default ``HELD_OUT``, ``documents`` of ``tokens`` tokens each, from its sources in turn.

    They are from all over them. The same arguments give the same texts. Raises ``KvtoolError`` if a source is not to be had
    or too short.
    """
    return {
        kind: drawn(model, kind, sources, tokens, documents) for kind, sources in (kinds or HELD_OUT).items()
    }


def for_calibration(model: kvtool.Model, tokens: int, documents: int = 24) -> list[Text]:
    """``documents`` of ``tokens`` tokens each, from sources that ``held_out`` has nothing of.

    What cannot be fetched is left out, and said on stderr; Python's own help and library are always there.
    """
    there = []
    for source in SEEN:
        try:
            source.text()
        except (kvtool.KvtoolError, OSError) as error:
            print(f"not in the calibration: {source.name} ({error})", file=sys.stderr, flush=True)
        else:
            there.append(source)
    return drawn(model, "calibration", there, tokens, documents)


def write(texts: Iterable[Text], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for text in texts:
        path = folder / text.name
        path.write_text(text.text)
        paths.append(path)
    return paths


def drawn(
    model: kvtool.Model, kind: str, sources: Sequence[Source], tokens: int, documents: int
) -> list[Text]:
    """``documents`` of ``tokens`` tokens each from ``sources`` in turn, the first of every source before any second."""
    windows = {}
    for n, source in enumerate(sources[:documents]):
        # Source n has the documents n, n + len(sources), …
        number = len(range(n, documents, len(sources)))
        try:
            windows[n] = cut(model, source.text(), tokens, number)
        except ValueError as error:
            raise kvtool.KvtoolError(
                kind, f"{source.name} {error}", "ask for fewer or shorter documents"
            ) from error
    slug = kind.replace(" ", "-")
    return [
        Text(kind, source.name, f"{slug}-{n}-{source.name}.txt", windows[n % len(sources)][n // len(sources)])
        for n, source in ((n, sources[n % len(sources)]) for n in range(documents))
    ]


def cut(model: kvtool.Model, text: str, tokens: int, number: int) -> list[str]:
    """``number`` pieces of ``tokens`` tokens each that begin with a line, evenly spread over ``text``.

    They may overlap. Raises ``ValueError`` for a text that is shorter than one of them.
    """
    pieces = []
    for n in range(number):
        ids: list[int] = []
        start = round(n / number * len(text))
        begin = text.rfind("\n", 0, start) + 1
        while len(ids) < tokens and begin >= 0:
            ids = document_tokens(model, text[begin : begin + tokens * CHARACTERS_PER_TOKEN])[:tokens]
            if len(ids) < tokens:
                # Too near the end: begin as much earlier as is missing, at the least a line.
                if not begin:
                    raise ValueError(f"has {len(ids):,} tokens, fewer than {tokens:,}")
                begin = text.rfind("\n", 0, max(0, begin - 1 - (tokens - len(ids)))) + 1
        pieces.append(str(model.tokenizer.decode(ids)))
    return pieces
