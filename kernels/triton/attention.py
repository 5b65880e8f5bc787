"""Attention to packed tokens: one program for each key head, some of its tokens, and some of its queries.

Tokens are split so that a single question, too, keeps the whole GPU busy (flash decoding). Each part has its own softmax,
and parts are joined by their log-sum-exp.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

import triton
import triton.language as tl
from kvtool.kernels.reference import Packed
from kvtool.kernels.triton.jit import OPTIONS, kernel

ROWS = 16
"""Queries of a program: the least that tensor cores multiply."""

TOKENS = 32
"""Tokens that a program multiplies at once."""

SPLIT = 512
"""Tokens of one head that a program takes."""


def packed_attention(
    query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention to packed and dense tokens: the contract is ``kvtool.kernels.reference.packed_attention``."""
    n_places = mask.shape[2] - key.shape[2]
    held, held_sum = _attend_packed(query, packed, mask[..., :n_places], scaling)
    rows = query.flatten(2, 3)
    # There are few dense tokens, at least until an answer is long.
    scores = ((rows @ key.mT).float() * scaling).view(*query.shape[:4], -1)
    scores = scores.masked_fill(~mask[:, None, :, n_places:], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0).to(value.dtype).flatten(2, 3)
    attended = (weights @ value).float().view(held.shape)
    # One softmax over both: each weighs the sum of the exponentials of its scores.
    share = (held_sum - scores.logsumexp(-1)).sigmoid()
    return attended.lerp(held, share[..., None]).to(value.dtype)


def _attend_packed(query: Tensor, packed: Packed, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention [H, B, G, S, Dv] to packed tokens, and the log-sum-exp [H, B, G, S] of their scores, both float32."""
    heads, batch, group, n_queries, size = query.shape
    rows, value_size = batch * group * n_queries, packed.values.shape[1]
    parts = max(1, triton.cdiv(max(packed.lengths), SPLIT))
    shape = (heads, parts, rows)
    output = query.new_empty((*shape, value_size), dtype=torch.float32)
    weight = query.new_empty(shape, dtype=torch.float32)
    attend_split[heads, parts, triton.cdiv(rows, ROWS)](
        query.to(packed.keys.dtype).contiguous(),
        packed.keys,
        packed.values,
        packed.places,
        # Where there are no biases, nothing is read from here.
        packed.places if packed.bias is None else packed.bias,
        mask.contiguous(),
        _ends(packed.lengths, query.device),
        output,
        weight,
        rows,
        n_queries,
        group,
        mask.shape[2],
        scaling,
        packed.bias is not None,
        size,
        value_size,
        triton.next_power_of_2(max(size, ROWS)),
        triton.next_power_of_2(max(value_size, ROWS)),
        ROWS,
        TOKENS,
        SPLIT,
        **OPTIONS,
    )
    total = weight.logsumexp(1)
    shares = (weight - total.clamp(min=torch.finfo(total.dtype).min)[:, None]).exp()
    joined = (output * shares[..., None]).sum(1)
    return joined.view(*query.shape[:4], value_size), total.view(query.shape[:4])


@lru_cache(maxsize=1024)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each head's tokens begin, and the last one's end, [H + 1] int64: copied to the GPU once."""
    return torch.tensor([0, *lengths], device=device).cumsum(0)


@kernel
def attend_split(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    bias: tl.tensor,
    mask: tl.tensor,
    ends: tl.tensor,
    output: tl.tensor,
    weight: tl.tensor,
    rows: int,
    n_queries: int,
    group: int,
    n_places: int,
    scaling: float,
    BIASED: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    channel, value_channel = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    is_row, is_channel, is_value = row < rows, channel < SIZE, value_channel < VALUE_SIZE
    # Rows are by batch, then query head, then query; masks have no query heads.
    mask_row = (row // (group * n_queries)) * n_queries + row % n_queries
    query_at = (head * rows + row)[:, None] * SIZE + channel[None, :]
    q = tl.load(query + query_at, mask=is_row[:, None] & is_channel[None, :], other=0)
    first = tl.load(ends + head) + part * SPLIT
    last = tl.minimum(first + SPLIT, tl.load(ends + head + 1))
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    for start in range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = token < last
        key_at = token[:, None] * SIZE + channel[None, :]
        k = tl.load(keys + key_at, mask=inside[:, None] & is_channel[None, :], other=0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        if BIASED:
            scores += tl.load(bias + token, mask=inside, other=0)[None, :]
        place = tl.load(places + token, mask=inside, other=0)
        mask_at = mask_row.to(tl.int64)[:, None] * n_places + place[None, :]
        seen = tl.load(mask + mask_at, mask=is_row[:, None] & inside[None, :], other=0) != 0
        scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        # As long as nothing was seen, the largest is -inf, from which nothing can be subtracted.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - base[:, None])
        shrunk = tl.exp(largest - base)
        value_at = token[:, None] * VALUE_SIZE + value_channel[None, :]
        v = tl.load(values + value_at, mask=inside[:, None] & is_value[None, :], other=0)
        attended = attended * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * shrunk + tl.sum(weights, 1)
        largest = larger
    is_seen = total > 0
    total = tl.where(is_seen, total, 1.0)
    attended = attended / total[:, None]
    result_at = (head * tl.num_programs(1) + part) * rows + row
    tl.store(
        output + result_at[:, None] * VALUE_SIZE + value_channel[None, :],
        attended,
        mask=is_row[:, None] & is_value[None, :],
    )
    tl.store(weight + result_at, tl.where(is_seen, largest + tl.log(total), float("-inf")), mask=is_row)
