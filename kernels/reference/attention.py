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


def packed_attention(
    query: Tensor, packed: Packed, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attention [H, B, G, S, Dv] to each head's packed tokens and the dense ones after them: one softmax over both.

    ``query`` [H, B, G, S, D] has the G query heads that share a key head. Of the A dense tokens, ``key`` is [H, B, A, D] and
    ``value`` [H, B, A, Dv]. ``mask`` [B, S, n + A] bool says which of n places each of the S queries sees, and which of the
    dense tokens; every query sees something. Scores and their softmax are float32. All else is of one type.
    """
    output = query.new_empty((*query.shape[:4], value.shape[3]))
    n_places = mask.shape[2] - key.shape[2]
    dense = torch.arange(n_places, mask.shape[2])
    for head, tokens in enumerate(packed.heads):
        columns = torch.cat([packed.places[tokens], dense])
        for b, g, s in torch.cartesian_prod(*map(torch.arange, query.shape[1:4])).view(-1, 3).tolist():
            keys = torch.cat([packed.keys[tokens], key[head, b]]).float()
            values = torch.cat([packed.values[tokens], value[head, b]]).float()
            scores = keys @ query[head, b, g, s].float() * scaling
            if packed.bias is not None:
                scores[: packed.lengths[head]] += packed.bias[tokens]
            seen = mask[b, s, columns]
            output[head, b, g, s] = scores[seen].softmax(0) @ values[seen]
    return output
