"""What scores of tokens read beyond keys and values, gathered in one pass over a segment.

Attention is summed up block by block: the memory of a pass does not depend on the segment's length. Names, shapes and
meanings are those of ``codecs.prune.scores.inputs``.

Weights of the window are the largest input, [Q, 32, T], in float32 as all are. In float16 a tenth of those of 1,024 tokens of
the embedded model become zero, and scores that read them keep another token in about one case of ten thousand.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from kvtool.codecs import Inputs
from kvtool.codecs.prune.scores.inputs import (
    MOVED_QUERIES,
    QUERY_COVARIANCE,
    QUERY_MEAN,
    RECEIVED,
    WINDOW,
    WINDOW_QUERIES,
    WINDOW_WEIGHTS,
)
from kvtool.codecs.rope import Rope, turn
from kvtool.engines.attention.capture import capture_attention, capture_error, step_tokens
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import key_rotations
from kvtool.engines.recompute import recompute_tokens
from kvtool.errors import ModelError
from kvtool.model.model import Model

OF_WINDOW = frozenset({WINDOW_WEIGHTS, WINDOW_QUERIES})
STATISTICS = frozenset({QUERY_MEAN, QUERY_COVARIANCE, MOVED_QUERIES})
COLLECTED = OF_WINDOW | STATISTICS | {RECEIVED}

QUERIES = 512
"""Tokens whose queries are moved, at most."""

AFTER = 128
"""Places after the segment over which they are spread."""

FIRST = 4
"""Positions whose queries are no example of later ones."""


@torch.no_grad()
def collect(model: Model, cache: DocumentCache, token_ids: Tensor, needs: Collection[str]) -> Inputs:
    """Those of ``needs`` that are in ``COLLECTED``, by name, of the segment ``token_ids`` [T] int64, the last T of ``cache``.

    All tokens of the segment are run once more over the cache, which is left as it was; the last ``WINDOW`` alone where no
    more is needed. Raises ``ModelError`` for a family whose attention cannot be captured, or whose queries cannot be
    turned back.
    """
    n_cached, n_tokens = cache.get_seq_length(), len(token_ids)
    wanted, start = COLLECTED & set(needs), n_cached - n_tokens
    ropes = _ropes(model) if wanted & STATISTICS else [None] * len(cache.layers)
    observers = [
        _Collector(layer.keys, start, n_tokens, rope, _unturned(model))
        for layer, rope in zip(cache.layers, ropes, strict=True)
    ]
    window = max(start, n_cached - WINDOW)
    step = step_tokens(n_cached)
    with capture_attention(model, observers):
        for first, end in ((start if wanted - OF_WINDOW else window, window), (window, n_cached)):
            for at in range(first, end, step):
                positions = torch.arange(at, min(at + step, end))
                for observer in observers:
                    observer.positions, observer.is_window = positions, at >= window
                # Keys and values of these tokens equal those in the cache.
                recompute_tokens(model, cache, cache.token_ids, positions, write=False)
    if n_tokens and any(not observer.passes for observer in observers):
        raise capture_error(model)
    by_layer = [observer.inputs() for observer in observers]
    return {name: [inputs[name] for inputs in by_layer] for name in sorted(wanted)}


def _ropes(model: Model) -> list[Rope | None]:
    turned = key_rotations(model)
    if turned is None:
        raise _unturned(model)
    return list(turned.keys)


def _unturned(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"{model.config.model_type} rotates its queries otherwise than the keys that it caches, or in an unknown way, so that "
        "they cannot be turned back",
        "compress with --recipe kvzip, which does not need them",
    )


class _Collector:
    """Sums over a segment's queries, of one layer. ``positions`` are those of the pass that runs."""

    def __init__(
        self, keys: Tensor, start: int, n_tokens: int, rope: Rope | None, refusal: ModelError
    ) -> None:
        _, self.heads, _, self.channels = keys.shape
        self.start, self.n_tokens, self.rope, self.refusal = start, n_tokens, rope, refusal
        self.positions, self.is_window, self.passes = torch.arange(0), False, 0
        self.received = torch.zeros(0, n_tokens)
        self.count = 0
        self.scaling: float | None = None
        self.total = self.products = torch.zeros(0)
        self.window_queries: list[Tensor] = []
        self.moved: list[Tensor] = []
        self.every = max(1, -(-n_tokens // QUERIES))
        self.window_weights = torch.zeros(0, min(WINDOW, n_tokens), n_tokens)
        self.rows = torch.zeros(0, dtype=torch.int64)
        """How many of the window's queries each head's weights are known of: small passes come for all heads at once."""

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        query, self.scaling = query.float().cpu(), scaling
        if not self.passes:
            heads, _, channels = query.shape
            # Latent attention caches neither the keys that its queries meet nor their rotated part.
            if self.rope is not None and channels != self.channels:
                raise self.refusal
            self.received = torch.zeros(heads, self.n_tokens)
            self.window_weights = torch.zeros(heads, *self.window_weights.shape[1:])
            self.rows = torch.zeros(heads, dtype=torch.int64)
            self.total = torch.zeros(heads, channels, dtype=torch.float64)
            self.products = torch.zeros(heads, channels, channels, dtype=torch.float64)
        self.passes += 1
        if self.is_window:
            self.window_queries.append(query)
        some = self.positions >= FIRST
        if self.rope is not None and some.any():
            # Rotated queries have no mean: it would be that of some place.
            plain = turn(
                query[:, some].contiguous(),
                self.rope,
                self.positions[some],
                scaling=self.rope.scaling,
                undo=True,
            )
            self._move(plain[:, -self.count % self.every :: self.every])
            self.count += plain.shape[1]
            self.total += plain.double().sum(1)
            self.products += plain.double().mT @ plain.double()

    def _move(self, plain: Tensor) -> None:
        assert self.rope is not None
        number = sum(queries.shape[1] for queries in self.moved)
        places = (number + torch.arange(plain.shape[1])) % AFTER + self.start + self.n_tokens
        self.moved.append(turn(plain.clone(), self.rope, places, scaling=self.rope.scaling))

    def on_weights(self, first: int, weights: Tensor) -> None:
        given = weights[..., self.start : self.start + self.n_tokens].float().cpu()
        self.received[first : first + len(given)] += given.sum(1)
        if self.is_window:
            row = int(self.rows[first])
            self.window_weights[first : first + len(given), row : row + given.shape[1]] = given
            self.rows[first : first + len(given)] += given.shape[1]

    def inputs(self) -> dict[str, Tensor]:
        # Scores are then q·k/√D, whatever the family's scaling is; where it scales by itself, that is taken to be 1/√D.
        channels = self.total.shape[-1]
        factor = 1.0 if self.scaling is None else self.scaling * channels**0.5
        mean = factor * self.total / max(self.count, 1)
        covariance = factor**2 * self.products / max(self.count, 1) - mean[:, :, None] * mean[:, None, :]
        moved = torch.cat([*self.moved, torch.zeros(len(mean), 0, channels)], 1)
        return {
            MOVED_QUERIES: factor * moved,
            RECEIVED: self.received.view(self.heads, -1, self.n_tokens).mean(1),
            QUERY_MEAN: mean.float(),
            QUERY_COVARIANCE: covariance.float(),
            WINDOW_QUERIES: torch.cat(self.window_queries, 1),
            WINDOW_WEIGHTS: self.window_weights,
        }
