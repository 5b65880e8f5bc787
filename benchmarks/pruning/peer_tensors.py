"""One document's keys, values and queries, for kvtool's scores and for another tool's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import kvtool
from kvtool.codecs import KV, LayerKV, Payload
from kvtool.codecs.prune.budgets.table import SHARES
from kvtool.codecs.prune.scores.inputs import WINDOW_QUERIES
from kvtool.codecs.prune.scores.table import SCORES
from kvtool.codecs.rope import Rope, ropes, turn
from kvtool.engines.attention.capture import capture_attention, step_tokens
from kvtool.engines.attention.replay import REQUEST
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import slice_kv
from kvtool.engines.stage_inputs import MEASURED, measure_inputs
from kvtool.engines.transformers import causal_masks, new_cache, run_masked
from kvtool.model.chat_template import document_tokens


@dataclass(frozen=True)
class Measured:
    """A segment without a prefix, what kvtool measures over it, and the tensors that a peer gets."""

    layers: tuple[LayerKV, ...]
    inputs: list[Payload]
    ropes: tuple[Rope, ...]
    given: dict[str, Tensor]


def measure(model: kvtool.Model, token_ids: Sequence[int]) -> Measured:
    """Runs the model over ``token_ids``, and once more over a request to repeat them.

    ``given`` is as ``benchmarks/peers/press_scores.py`` describes it. kvtool's inputs come from passes of their own, as they
    do when a document is compressed.
    """
    ids, request = list(token_ids), document_tokens(model, REQUEST)
    cache = new_cache(model, len(ids))
    queries = _queries(model, cache, ids)
    kv = slice_kv(model, cache, 0, ids, 0)
    cache.token_ids = kv.token_ids
    turns = ropes(kv.rope, len(kv.layers))
    if len(set(turns)) != 1 or turns[0].layout != "half" or turns[0].scaling != 1 or turns[0].start:
        raise kvtool.KvtoolError(
            model.name, "does not rotate all layers' keys as kvpress does", "take the embedded model"
        )
    replayed = _queries(model, cache, [*request, *ids])
    given = {"inv_freq": torch.tensor(turns[0].inv_freq), "request": torch.tensor([len(request)])}
    for n, (layer, rope) in enumerate(zip(cache.layers, turns, strict=True)):
        tensors = {
            "keys": kv.layers[n].keys,
            "values": kv.layers[n].values,
            "queries": _turned_back(queries[n], rope, 0),
            "replay_keys": layer.keys[0, :, len(ids) :],
            "replay_queries": _turned_back(replayed[n], rope, len(ids)),
        }
        given |= {f"layers.{n:04d}.{side}": x.float().contiguous() for side, x in tensors.items()}
    cache.crop(len(ids) - cache.get_seq_length())
    return Measured(kv.layers, _inputs(model, cache, kv), turns, given)


def _inputs(model: kvtool.Model, cache: DocumentCache, kv: KV) -> list[Payload]:
    """Of each layer, what any score or share needs and kvtool can measure."""
    every = [score.needs for score in SCORES.values()] + [share.needs for share in SHARES.values()]
    needs = (frozenset().union(*every) | {WINDOW_QUERIES}) & MEASURED
    inputs = measure_inputs(model, cache, kv.token_ids, needs)
    return [{name: by_layer[n] for name, by_layer in inputs.items()} for n in range(len(kv.layers))]


@torch.no_grad()
def _queries(model: kvtool.Model, cache: DocumentCache, token_ids: Sequence[int]) -> list[Tensor]:
    """Feeds ``token_ids`` after ``cache``, and returns each layer's queries [Q, S, D], rotated."""
    observers = [_Queries() for _ in cache.layers]
    left = torch.tensor(token_ids)
    with capture_attention(model, observers):
        while len(left):
            start = cache.get_seq_length()
            step, left = left.tensor_split([step_tokens(start)])
            positions = torch.arange(start, start + len(step))
            run_masked(model, step, positions, causal_masks(model, positions, start + len(step)), cache)
    return [torch.cat(observer.queries, 1) for observer in observers]


class _Queries:
    """An observer that keeps every query."""

    def __init__(self) -> None:
        self.queries: list[Tensor] = []

    def on_queries(self, query: Tensor, mask: Tensor, scaling: float | None) -> None:
        self.queries.append(query.float().cpu())

    def on_weights(self, first: int, weights: Tensor) -> None:
        """Weights are not needed."""


def _turned_back(queries: Tensor, rope: Rope, start: int) -> Tensor:
    positions = torch.arange(start, start + queries.shape[1])
    return turn(queries.contiguous(), rope, positions, undo=True)
