"""Scores from the attention that tokens receive, and from how unexpected they are."""

from __future__ import annotations

from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import RECEIVED, TOKEN_ENTROPY, read
from kvtool.codecs.spec import Payload


def h2o(layer: LayerKV, inputs: Payload) -> Tensor:
    """The weights that a token receives from all queries, summed (H2O: Zhang et al., 2023, arXiv 2306.14048).

    The paper keeps half a budget of these and half of recent tokens: the budget's ``recent``. It evicts token by token;
    this is the form "based on global statistics" of the authors' code, which sums over the whole prompt. That code has a
    cache for each query head; the mean over those that share a key head is taken here, as in KVCache-Factory.
    """
    return read(inputs, RECEIVED, layer)


def elastic_cache(layer: LayerKV, inputs: Payload) -> Tensor:
    """The weights that a token receives, summed, and their mean over heads (Elastic Cache: Liu et al., 2024, arXiv
    2407.18121).

    All heads keep the same tokens, and ``merge.elastic`` merges the others into them. The authors' code takes the entries of
    an argsort for ranks; here the best are kept, as the paper says.
    """
    received = read(inputs, RECEIVED, layer)
    return received.mean(0, keepdim=True).expand_as(received)


def sirllm(layer: LayerKV, inputs: Payload) -> Tensor:
    """How unexpected the token was: -log of its probability (SirLLM: Yao et al., 2024, arXiv 2405.12528).

    The same for all heads and layers. The authors' code gives the first token the largest score, and lets scores decay from
    turn to turn of a conversation; here the first token is among the sinks, and a document has one turn. Checked against that
    code.
    """
    return read(inputs, TOKEN_ENTROPY, layer).expand(layer.keys.shape[:2])
