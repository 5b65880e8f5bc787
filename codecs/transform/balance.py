"""Outliers shared out between keys and the queries that meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.spec import Payload
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.normalize import ChannelScale


@register
@dataclass(frozen=True)
class Balance(ChannelScale):
    """Key channels times ``b = sqrt(max|q| / max|k|)`` (MiKV, arXiv 2402.18096); what is stored is ``1 / b``.

    MiKV divides the queries by b, so that scores stay the same; here b is undone on decoding, for an
    unchanged model. Either way a channel is coded the more finely, the larger its queries are. The maxima are
    over the tokens of ``x`` [..., H, T, D], and over a sample of ``queries`` [..., Q, P, D] of the Q / H
    query heads that share a key head. A channel in which either is 0 is left as it is.

    Raises CodecError for queries of other sizes than the keys, which models that cache a latent have.
    """

    name: ClassVar[str] = "balance"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})
    side: ClassVar[str] = "balancer"

    def factors(self, x: Payload) -> Tensor:
        keys, queries = x["x"].float(), x["queries"].float()
        *front, heads, _, channels = keys.shape
        expected = f"{heads} heads, or a multiple, of {channels} channels"
        shape = list(queries.shape)
        fits = len(shape) == keys.ndim and shape[:-3] == front and shape[-1] == channels
        self.require(fits and shape[-3] % max(heads, 1) == 0, "shape of queries", shape, expected)
        largest = keys.abs().amax(-2, keepdim=True)
        if not queries.numel():
            return torch.ones_like(largest)
        shared = queries.reshape(*front, heads, -1, channels).abs().amax(-2, keepdim=True)
        return torch.where((largest > 0) & (shared > 0), largest / shared, 1.0).sqrt()
