"""Plans a prefill: documents → pieces → passes of the model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kvtool.artifact.identity import segment_identity
from kvtool.digest import digest
from kvtool.documents.split import split
from kvtool.errors import DocumentError
from kvtool.model.chat_template import Prefix, document_tokens
from kvtool.model.model import Model


@dataclass(frozen=True, eq=False)
class Piece:
    """A segment to prefill: its tokens, the place of its text in the document, its identity."""

    token_ids: array[int]
    start: int
    end: int
    identity: str
    source: dict[str, object]


@dataclass(frozen=True, eq=False)
class Plan:
    """A document to prefill: its name, the digest of its text, its segments; ``path`` if its text is a file's."""

    name: str
    text_digest: str
    pieces: tuple[Piece, ...]
    path: Path | None = None


def plan_document(
    name: str,
    text: str,
    model: Model,
    prefix: Prefix,
    limit: int,
    path: Path | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Plan:
    """Splits a document into pieces of at most ``limit`` tokens, and calls ``on_progress`` again and again meanwhile.

    Raises ``DocumentError`` for a text that has no tokens, or that cannot be split so.
    """

    def count_tokens(part: str) -> int:
        on_progress()
        return len(document_tokens(model, part))

    text_digest = digest(text.encode())
    try:
        parts = list(split(text, count_tokens=count_tokens, limit=limit))
    except DocumentError as error:
        raise DocumentError(name, error) from error
    pieces = []
    for part in parts:
        if ids := array("q", document_tokens(model, part.text)):
            identity = segment_identity(model.fingerprint, prefix.digest, ids)
            place = {"start": part.start, "end": part.end}
            source: dict[str, object] = {"document": name, "text": text_digest, **place}
            pieces.append(Piece(ids, part.start, part.end, identity, source))
    if not pieces:
        raise DocumentError(name, "has no tokens", "nothing to prefill")
    return Plan(name, text_digest, tuple(pieces), path)


def passes(pieces: Iterable[Piece], pack_tokens: int) -> list[list[Piece]]:
    """Puts pieces into passes of the model: short ones share a pass, in order, long ones have their own.

    That depends on the pieces alone and not on which of them are done, since the low bits of a result depend on the pass
    that computed it.
    """
    result: list[list[Piece]] = []
    pack: list[Piece] = []
    tokens = 0
    for piece in {p.identity: p for p in pieces}.values():
        n = len(piece.token_ids)
        if n > pack_tokens // 2:
            result.append([piece])
            continue
        if tokens + n > pack_tokens:
            result.append(pack)
            pack, tokens = [], 0
        pack.append(piece)
        tokens += n
    return [*result, pack] if pack else result
