"""Importance of each token for repeating its segment: KVzip's score (arXiv 2505.23416).

Over the cache of prefix and segment, the model is asked to repeat the text and is fed the segment again. A token that
cannot be guessed from its surroundings, such as a number that occurs once, is looked up while it is repeated, however
little the rest of the document attended to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvtool.codecs import Inputs
from kvtool.codecs.prune.scores.inputs import COPIED, REPLAY_QUERIES, REPLAYED
from kvtool.codecs.spec import IMPORTANCE
from kvtool.engines.attention.capture import capture_attention, capture_error, step_tokens
from kvtool.engines.attention.probe import fill_unseen
from kvtool.engines.cache import DocumentCache, refuse_pruned
from kvtool.engines.transformers import causal_masks, feed, run_masked
from kvtool.errors import ModelError
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model

REQUEST = "\n\nRepeat the previous context exactly.\n"

QUERIES = 1024
"""Replayed tokens whose queries are kept, at most."""

OVERLAP = 8
"""Tokens of the passage before that a passage begins with, so that the model finds its place."""


@torch.no_grad()
def replay(model: Model, cache: DocumentCache, token_ids: Tensor) -> Inputs:
    """What a replay tells of the segment ``token_ids`` [T] int64, the last T tokens of ``cache``: four inputs, by name.

    ``replayed`` is [H, T] float32 for each layer, on the CPU: the largest attention weight that any replayed token gives the
    token, in any query head of each key head. ``importance`` [T] is the largest of all heads. In layers with a sliding
    window, tokens that no replayed token sees get the mean of those that are seen. A segment that does not fit the model's
    context twice is replayed in passages, each after a request of its own. ``replay_queries`` [Q, R, D] are those of at most
    ``QUERIES`` replayed tokens; R is 0 where the family scales scores by itself. ``copied`` [Q, 2] are means over the replayed
    tokens: of the weight that each gives to its own place in the segment, and to the next; those of two passages count twice.

    The cache is left as it was. Raises ``ModelError`` for a family whose attention cannot be captured, and where the
    model's context leaves no room to repeat anything.
    """
    refuse_pruned(cache, "a replay")
    n_cached, n_tokens = cache.get_seq_length(), len(token_ids)
    request = document_tokens(model, REQUEST)
    observers = [_Replayed(layer.keys.shape[1], n_cached - n_tokens, n_cached) for layer in cache.layers]
    for passage in _passages(model, n_tokens, model.context - n_cached - len(request)):
        feed(model, request, cache)
        with capture_attention(model, observers):
            _feed(model, token_ids, passage, cache, observers)
        cache.crop(n_cached - cache.get_seq_length())
    if any(observer.passes != observers[0].passes or not observer.passes for observer in observers):
        raise capture_error(model)
    return {
        REPLAYED: [observer.by_head() for observer in observers],
        REPLAY_QUERIES: [observer.scaled_queries() for observer in observers],
        COPIED: [observer.copied() for observer in observers],
        IMPORTANCE: [fill_unseen(observer.weight.amax(0), observer.seen) for observer in observers],
    }


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


def _feed(
    model: Model, token_ids: Tensor, passage: range, cache: DocumentCache, observers: Sequence[_Replayed]
) -> None:
    """Runs the ``passage`` of ``token_ids`` after ``cache`` under masks, in passes of bounded memory."""
    while passage:
        start = cache.get_seq_length()
        step, passage = passage[: step_tokens(start)], passage[step_tokens(start) :]
        for observer in observers:
            observer.begin(step)
        positions = torch.arange(start, start + len(step))
        mask = causal_masks(model, positions, start + len(step))
        run_masked(model, token_ids[step.start : step.stop], positions, mask, cache)


class _Replayed:
    """The largest weight that each token from ``start`` to ``end`` was given, by query head, some of the queries, and what their
    own tokens were given."""

    def __init__(self, heads: int, start: int, end: int) -> None:
        self.heads, self.start, self.end, self.passes = heads, start, end, 0
        self.weight = torch.zeros(0, end - start)
        self.seen = torch.zeros(end - start, dtype=torch.bool)
        self.every, self.count = max(1, -(-(end - start) // QUERIES)), 0
        self.queries: list[Tensor] = []
        self.scaling: float | None = None
        self.step = range(0)
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.given, self.times = torch.zeros(0, 2), torch.zeros(2)

    def begin(self, step: range) -> None:
        """Says which tokens of the segment the next pass feeds again."""
        self.step = step
        self.rows.zero_()
        # The last token has none after it.
        self.times += torch.tensor([len(step), len(step) - (step.stop == self.end - self.start)])

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        self.passes += 1
        self.seen |= mask[:, self.start : self.end].any(0).cpu()
        if not len(self.weight):
            self.weight = self.weight.new_zeros(len(query), self.weight.shape[1])
            self.given, self.rows = torch.zeros(len(query), 2), self.rows.new_zeros(len(query))
        self.scaling = scaling
        self.queries.append(query[:, -self.count % self.every :: self.every].float().cpu())
        self.count += query.shape[1]

    def on_weights(self, first: int, weights: Tensor) -> None:
        to_segment, heads = weights[..., self.start : self.end], slice(first, first + len(weights))
        largest = to_segment.amax(1).float().cpu()
        torch.maximum(self.weight[heads], largest, out=self.weight[heads])
        # Blocks come in the queries' order, but each for some heads only.
        token = self.step.start + int(self.rows[first])
        self.rows[heads] += weights.shape[1]
        for after in (0, 1):
            own = to_segment.diagonal(token + after, dim1=1, dim2=2)
            self.given[heads, after] += own.sum(-1).float().cpu()

    def by_head(self) -> Tensor:
        """[H, T], by key head."""
        grouped = self.weight.view(self.heads, -1, self.weight.shape[1]).amax(1)
        return fill_unseen(grouped, self.seen)

    def copied(self) -> Tensor:
        """[Q, 2]; zero where no token was fed."""
        return self.given / self.times.clamp(min=1)

    def scaled_queries(self) -> Tensor:
        """[Q, R, D]; nothing where the family scales by itself."""
        queries = torch.cat(self.queries, 1)
        if self.scaling is None:
            return queries[:, :0]
        scale: float = self.scaling * queries.shape[-1] ** 0.5
        return queries * scale
