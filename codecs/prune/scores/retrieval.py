"""Which heads look far back: scores [H] of heads, larger for those that keep all tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.scores.inputs import COPIED, QUERY_MEAN, REPLAYED, by_group, read
from kvtool.codecs.rope import Rope, turn
from kvtool.codecs.spec import Payload


def duo_attention(layer: LayerKV, inputs: Payload, rope: Rope | None, length: int = 500) -> Tensor:
    """How far back a head looks, [H]: larger for retrieval heads (DuoAttention: Xiao et al., 2024, arXiv 2410.10819).

    The paper trains a gate for each head. This is kvpress's form without training: the mean query attends to ``length``
    copies of the mean key, and a head's score is the mean over these of the weight of all copies up to it, near 1 where the
    weight is far back, and near 0 where it is close. The mean over the query heads of a key head is taken. kvpress averages
    over 50 books; here it is the document itself. ``budgets.heads.by_class`` takes the scores. Checked against kvpress.
    """
    keys = layer.keys.float().contiguous().clone()
    if rope is not None:
        turn(keys, rope, layer.positions, scaling=rope.scaling, undo=True)
    mean, queries = keys.mean(1, keepdim=True), read(inputs, QUERY_MEAN, layer)[:, None]
    copies, last = mean.repeat(1, length, 1), queries.clone()
    if rope is not None:
        turn(copies, rope, torch.arange(length), scaling=rope.scaling)
        turn(last, rope, torch.tensor([length - 1]), scaling=rope.scaling)
    products = torch.einsum("hgd,htd->hgt", by_group(last[:, 0], len(keys)), copies)
    weights = (products / math.sqrt(keys.shape[-1])).softmax(-1)
    return weights.cumsum(-1).mean(-1).mean(-1)


def kvzip_heads(layer: LayerKV, inputs: Payload) -> Tensor:
    """The largest weight in each head while the segment is repeated, [H]: KVzip's form that knows heads alone (Kim et al., 2025,
    arXiv 2505.23416).

    The authors score heads once for a model, by the largest over a sample of texts, keep 60 % of them whole, and give the others
    DuoAttention's sinks and window; here it is the document itself. Checked against their code.
    """
    replayed = read(inputs, REPLAYED, layer)
    return replayed.amax(1) if replayed.numel() else replayed.sum(1)


def razor_attention(
    layers: Sequence[LayerKV], inputs: Sequence[Payload], echo: float = 0.01, induction: float = 0.14
) -> list[Tensor]:
    """How early each head of all layers becomes a retrieval head, [L][H] (RazorAttention: Tang et al., 2024, arXiv
    2407.15891).

    The paper feeds the model 2,500 random tokens four times. Heads that attend to a token's earlier copies are echo heads,
    those that attend to what follows these are induction heads. The ``echo`` best share of the first kind and the
    ``induction`` best of the second keep all tokens. Here the document is what is repeated, once, while it is replayed. Both
    shares grow together until the budget is used: a head's score is minus the lower of its ranks, each divided by its
    share. The larger over the query heads of a key head is taken. ``budgets.heads.by_class`` takes the scores, and
    ``merge.compensation`` adds the token that stands for those dropped. Checked against Huawei's code for MindSpore.
    """
    copied = [
        by_group(read(some, COPIED, layer), len(layer.keys)).amax(1)
        for layer, some in zip(layers, inputs, strict=True)
    ]
    if not copied:
        return []
    every = torch.cat(copied)
    ranks = every.argsort(dim=0, descending=True, stable=True).argsort(dim=0).float()
    score = -torch.minimum(ranks[:, 0] / echo, ranks[:, 1] / induction)
    return list(torch.split(score, [len(part) for part in copied]))
