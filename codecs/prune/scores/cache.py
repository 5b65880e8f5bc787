"""Scores from keys, values and positions alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.spec import Payload


def l2_norm(layer: LayerKV, inputs: Payload) -> Tensor:
    """Minus the norm of each key: small keys receive much attention (L2 norm: Devoto et al., 2024, arXiv 2406.11430).

    The paper leaves a model's first two layers whole, which is a matter of the budget: its ``whole``. Checked against
    kvpress, whose ``KnormPress`` treats all layers alike.
    """
    return layer.keys.float().square().sum(-1).sqrt().neg()


def keydiff(layer: LayerKV, inputs: Payload) -> Tensor:
    """Minus the cosine of each key and the mean of the normalised keys (KeyDiff: Park et al., 2025, arXiv 2504.15364).

    The paper evicts block by block, as tokens come in; here each token is compared with the mean over the whole segment,
    which is there when a cache is pruned ahead of time. Checked against kvpress.
    """
    keys = layer.keys.float()
    return -cosine_similarity(keys, normalize(keys, dim=-1).mean(-2, keepdim=True), dim=-1)


def streaming_llm(layer: LayerKV, inputs: Payload) -> Tensor:
    """The token's place: the latest are kept (StreamingLLM: Xiao et al., 2023, arXiv 2309.17453).

    The first tokens, four in the paper, are kept by the budget's ``sinks``. The paper gives kept tokens new positions, one
    after the other; here they stay at their own, as the rest of the cache does. Checked against kvpress.
    """
    heads, tokens = layer.keys.shape[:2]
    return torch.arange(tokens, dtype=torch.float32, device=layer.keys.device).expand(heads, tokens)


def value_aware(scores: Tensor, layer: LayerKV) -> Tensor:
    """``scores`` times the sum of each value's magnitudes (VATP: Guo et al., 2024, arXiv 2406.12335).

    It wraps scores that are sums of weights, as H2O's. Infinite scores stay so. The paper always keeps 20 sinks. Checked
    against the authors' code.
    """
    size = layer.values.float().abs().sum(-1)
    return torch.where(scores.isinf(), scores, scores * size)
