"""Which tokens of a segment a model needs to repeat it: KVzip's importance (arXiv 2505.23416).

Over the cache of prefix and segment, the model is asked to repeat what it read and is fed the segment again. A token
that cannot be guessed from what is around it, such as a number that stands there once, is looked up while it is being
repeated, however little the rest of the document attended to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.codecs import Inputs
from kvtool.engines import transformers as engine
from kvtool.engines.attention.capture import step_tokens, unwatchable, watching
from kvtool.engines.attention.probe import filled
from kvtool.engines.cache import DocumentCache
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model

REQUEST = "\n\nRepeat the previous context exactly.\n"

OVERLAP = 8
"""Tokens that a passage begins with beyond its own, so that the model finds its place."""


@torch.no_grad()
def replay(model: Model, parts: Sequence[Artifact]) -> Inputs:
    """``importance`` of the tokens of the last of ``parts``, raw artifacts that follow one another: [T] float32 for each
    layer, on the CPU.

    It is the largest attention weight that any replayed token gives the token, in any head. In layers with a sliding
    window, tokens that are out of every replayed token's sight get the mean of those that are seen. A segment that
    does not fit the model's context twice is replayed in passages, each behind a request of its own.

    Raises MismatchError and ArtifactError as ``load_cache`` does; ModelError for a family whose attention cannot be
    watched, and where the model's context leaves no room to repeat anything.
    """
    cache = load_cache(parts, model)
    held, token_ids = cache.get_seq_length(), parts[-1].token_ids.tolist()
    request = document_tokens(model, REQUEST)
    notes = [_Largest(held - len(token_ids), held) for _ in cache.layers]
    for passage in _passages(model, len(token_ids), model.context - held - len(request)):
        engine.feed(model, request, cache)
        with watching(model, notes):
            _feed(model, [token_ids[index] for index in passage], cache)
        cache.crop(held - cache.get_seq_length())
    if any(note.passes != notes[0].passes or not note.passes for note in notes):
        raise unwatchable(model)
    return {"importance": [filled(note.weight, note.seen) for note in notes]}


def _passages(model: Model, n_tokens: int, room: int) -> Iterator[range]:
    if room < min(n_tokens, 2 * OVERLAP):
        raise ModelError(
            model.name,
            f"its context of {model.context} leaves no room to repeat a segment of {n_tokens} tokens",
            "prefill with a smaller --segment-tokens",
        )
    if n_tokens <= room:
        yield range(n_tokens)
        return
    for start in range(0, n_tokens, room - OVERLAP):
        yield range(max(0, start - OVERLAP), min(start + room - OVERLAP, n_tokens))


def _feed(model: Model, token_ids: Sequence[int], cache: DocumentCache) -> None:
    done = 0
    while done < len(token_ids):
        start = cache.get_seq_length()
        some = token_ids[done : done + step_tokens(start)]
        positions = torch.arange(start, start + len(some))
        ids = torch.tensor([some], device=engine.device_of(model))
        model.model.base_model(
            input_ids=ids,
            position_ids=positions[None].to(ids.device),
            attention_mask=engine.causal_masks(model, positions, start + len(some)),
            past_key_values=cache,
            use_cache=True,
        )
        done += len(some)


class _Largest:
    """The largest weight that each token from ``start`` to ``end`` was given."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end, self.passes = start, end, 0
        self.weight = torch.zeros(end - start)
        self.seen = torch.zeros(end - start, dtype=torch.bool)

    def see(self, query: Tensor, mask: Tensor) -> None:
        self.passes += 1
        self.seen |= mask[:, self.start : self.end].any(0).cpu()

    def weigh(self, first: int, weights: Tensor) -> None:
        largest = weights[..., self.start : self.end].amax((0, 1)).float().cpu()
        torch.maximum(self.weight, largest, out=self.weight)
