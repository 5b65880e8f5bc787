"""Attention to tokens that are packed, those of one key head after those of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """The N tokens that H key heads hold, head after head; ``lengths`` says how many each has.

    ``keys`` is [N, D], ``values`` [N, Dv] of the same type, ``places`` [N] int32 are columns of masks. ``bias`` [N] float32 is
    added to the scaled scores, unless it is None.
    """

    keys: Tensor
    values: Tensor
    places: Tensor
    bias: Tensor | None
    lengths: tuple[int, ...]

    @property
    def heads(self) -> list[slice]:
        """Each head's tokens among the N."""
        end, heads = 0, []
        for length in self.lengths:
            heads.append(slice(end, end + length))
            end += length
        return heads


def packed_attention(query: Tensor, packed: Packed, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention [H, B, G, S, Dv] to each head's tokens, and the log-sum-exp of their scores [H, B, G, S], both float32.

    ``query`` [H, B, G, S, D] has the G query heads that share a key head, in any type. ``mask`` [B, S, n] bool says which places
    each of the S queries sees. A query that sees no token of a head has attention 0 and a log-sum-exp of -inf. The
    log-sum-exp is what it takes to join attention to several sets of tokens.
    """
    output = query.new_zeros((*query.shape[:4], packed.values.shape[1]), dtype=torch.float32)
    weight = torch.full_like(output[..., 0], -torch.inf)
    for head, tokens in enumerate(packed.heads):
        keys, values, places = packed.keys[tokens], packed.values[tokens], packed.places[tokens]
        for b, g, s in torch.cartesian_prod(*map(torch.arange, query.shape[1:4])).view(-1, 3).tolist():
            scores = keys.float() @ query[head, b, g, s].float() * scaling
            if packed.bias is not None:
                scores += packed.bias[tokens]
            seen = mask[b, s, places]
            if seen.any():
                weight[head, b, g, s] = scores[seen].logsumexp(0)
                output[head, b, g, s] = scores[seen].softmax(0) @ values[seen].float()
    return output, weight
