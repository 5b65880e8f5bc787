"""Scores of tokens and of heads by name, and the inputs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.cache import keydiff, l2_norm, streaming_llm
from kvtool.codecs.prune.scores.inputs import (
    COPIED,
    MOVED_QUERIES,
    QUERY_COVARIANCE,
    QUERY_MEAN,
    RECEIVED,
    REPLAYED,
    TOKEN_ENTROPY,
    WINDOW_WEIGHTS,
)
from kvtool.codecs.prune.scores.received import elastic_cache, h2o, sirllm
from kvtool.codecs.prune.scores.replay import kvzip, replayed_and_moved
from kvtool.codecs.prune.scores.retrieval import duo_attention, kvzip_heads, razor_attention
from kvtool.codecs.prune.scores.statistics import expected_attention
from kvtool.codecs.prune.scores.window import a2sf, cake, corm, keyformer, scissorhands, snapkv
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload


@dataclass(frozen=True)
class Score:
    """``function`` gives the scores of a layer from its ``needs``; ``turned`` says that it wants the layer's rotation too."""

    function: Callable[..., Tensor]
    needs: frozenset[str] = frozenset()
    turned: bool = False

    def of(self, layer: LayerKV, inputs: Payload, rope: Rope | None = None) -> Tensor:
        """[H, T] float32, larger for tokens to keep."""
        function = partial(self.function, rope=rope) if self.turned else self.function
        return function(layer, inputs)


@dataclass(frozen=True)
class HeadScore:
    """Scores [H] of heads from their ``needs``, larger for those that look far back.

    ``of_layer`` gives those of a layer, and ``joined`` those of all layers that depend on each other: from shapes and inputs
    alone. One of them is given.
    """

    needs: frozenset[str]
    of_layer: Callable[[LayerKV, Payload, Rope | None], Tensor] | None = None
    joined: Callable[[Sequence[LayerKV], Sequence[Payload]], list[Tensor]] | None = None


HEADS = {
    "duoattention": HeadScore(frozenset({QUERY_MEAN}), duo_attention),
    "kvzip-heads": HeadScore(frozenset({REPLAYED}), lambda layer, inputs, rope: kvzip_heads(layer, inputs)),
    "razorattention": HeadScore(frozenset({COPIED}), joined=razor_attention),
}

SCORES = {
    "a2sf": Score(a2sf, frozenset({WINDOW_WEIGHTS})),
    "cake": Score(cake, frozenset({WINDOW_WEIGHTS})),
    "corm": Score(corm, frozenset({WINDOW_WEIGHTS})),
    "elastic-cache": Score(elastic_cache, frozenset({RECEIVED})),
    "expected-attention": Score(expected_attention, frozenset({QUERY_MEAN, QUERY_COVARIANCE}), turned=True),
    "h2o": Score(h2o, frozenset({RECEIVED})),
    "keydiff": Score(keydiff),
    "keyformer": Score(keyformer, frozenset({WINDOW_WEIGHTS})),
    "kvzip": Score(kvzip, frozenset({REPLAYED})),
    "l2-norm": Score(l2_norm),
    "replayed-and-moved": Score(replayed_and_moved, frozenset({REPLAYED, MOVED_QUERIES})),
    "scissorhands": Score(scissorhands, frozenset({WINDOW_WEIGHTS})),
    "sirllm": Score(sirllm, frozenset({TOKEN_ENTROPY})),
    "snapkv": Score(snapkv, frozenset({WINDOW_WEIGHTS})),
    "streaming-llm": Score(streaming_llm),
}
