"""What pipelines cost on held-back text of a store, measured once and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import reduce
from operator import add

from kvtool.calibration.calibrate import default_tokens
from kvtool.calibration.held_back import HeldBack, Quality, at_most, hold_back
from kvtool.calibration.pieces import Piece, pieces_of_store
from kvtool.codecs import Pipeline
from kvtool.digest import digest_token_ids
from kvtool.measurement import journal
from kvtool.model.model import Model
from kvtool.store.base import Store


def held_back_pieces(store: Store, model: Model) -> list[Piece]:
    """What ``calibrate`` holds back of the documents of ``model``, unless it is told otherwise; none of too little text."""
    tokens = default_tokens(model)
    pieces = pieces_of_store(store, None, model, tokens + at_most(tokens))
    return hold_back(pieces, tokens, model)[1]


def remembered_quality(model: Model, pieces: Sequence[Piece]) -> Callable[[Pipeline], Quality]:
    """A function that measures a pipeline on ``pieces``, unless it was measured on them before.

    The model is not run before there is something to measure.
    """
    contexts: dict[int, HeldBack] = {}

    def of_piece(number: int, pipeline: Pipeline) -> Quality:
        piece = pieces[number]
        text = [piece.prefix.digest, digest_token_ids(piece.token_ids), number]
        run = [model.fingerprint, model.device_map]
        key = journal.key("held back", *run, *text, journal.pipeline_identity(pipeline))
        if (known := journal.recall(key)) is not None:
            return Quality(**known)
        if number not in contexts:
            contexts[number] = HeldBack(model, piece, number)
        quality = contexts[number].quality(pipeline)
        journal.remember(key, asdict(quality))
        return quality

    return lambda pipeline: reduce(add, (of_piece(number, pipeline) for number in range(len(pieces))))
