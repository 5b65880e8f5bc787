"""The contract of stages that leave out tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.geometry import Geometry
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import Budget
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Payload
from kvtool.codecs.stage import BaseStage, Kind


@dataclass(frozen=True)
class Prune(BaseStage):
    """Leaves out tokens of each layer, or of each of its heads, before anything else is done.

    It sees all layers before the first is reduced, so that budgets may differ between them: ``scores`` is asked layer by
    layer, then ``choose`` once, then ``reduce`` layer by layer. What it ``needs`` is in ``inputs`` by name, that layer's.
    """

    kind: ClassVar[Kind] = "prune"
    biased: ClassVar[bool] = False
    """Whether reduced layers have biases."""

    @classmethod
    def examples(cls) -> tuple[Prune, ...]:
        """Configurations that together reach every path."""
        return (cls(),)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the inputs that it needs beyond keys and values."""
        return frozenset()

    @property
    def keeps_same_tokens(self) -> bool:
        """Whether the same tokens stay in all layers and heads."""
        return False

    def refuse(self, geometry: Geometry) -> None:
        """Raises CodecError for a segment of ``geometry``, which holds all tokens, of which more stay than the budget."""
        self.budget(len(geometry.layers)).of([(layer.n_heads, layer.tokens) for layer in geometry.layers])

    @abstractmethod
    def budget(self, n_layers: int) -> Budget:
        """How many of the tokens of ``n_layers`` layers stay, and which always do."""

    @abstractmethod
    def scores(self, layer: LayerKV, inputs: Payload, rope: Rope | None) -> Tensor:
        """What each token is worth, [H, T] float32, larger for those to keep.

        The layer holds all tokens. ``rope`` is the rotation of its keys, None where nobody knows.
        """

    @abstractmethod
    def choose(
        self, scores: Sequence[Tensor], layers: Sequence[LayerKV], inputs: Sequence[Payload]
    ) -> list[Tensor]:
        """The tokens that stay, from the scores of all layers: for each layer bool [H, T], or [1, T] for all heads alike.

        ``layers`` have shapes and positions, and no content. Raises CodecError for a budget that cannot be kept.
        """

    def reduce(self, layer: LayerKV, kept: Tensor, inputs: Payload) -> LayerKV:
        """The layer with the tokens ``kept``, an entry of ``choose``'s result, and no others.

        It is not asked for layers that keep all tokens, which stay as they are. Where all rows of ``kept`` are equal, it is
        [1, T].
        """
        return take(layer, kept)


def take(layer: LayerKV, kept: Tensor) -> LayerKV:
    """The tokens of ``layer``, which holds all, that ``kept`` says: bool [H, T], or [1, T] for all heads alike.

    Heads that hold different tokens are packed; a layer that keeps all tokens stays as it is.
    """
    if kept.all():
        return layer
    if kept.shape[0] == 1:
        (some,) = kept
        bias = None if layer.bias is None else layer.bias[:, some]
        return LayerKV(layer.keys[:, some], layer.values[:, some], layer.positions[some], bias=bias)
    head, token = kept.nonzero(as_tuple=True)
    lengths = tuple(kept.sum(1).tolist())
    keys, values = layer.keys[head, token][None], layer.values[head, token][None]
    bias = None if layer.bias is None else layer.bias[head, token][None]
    return LayerKV(keys, values, layer.positions[token], lengths, bias)


def spread(reduced: LayerKV, layer: LayerKV) -> LayerKV:
    """``layer``, which holds all tokens, with the entries that ``reduced`` has for some of them."""
    keys, values = layer.keys.clone(), layer.values.clone()
    places = torch.searchsorted(layer.positions, reduced.positions)
    if reduced.lengths is None:
        keys[:, places], values[:, places] = reduced.keys, reduced.values
    else:
        head = torch.repeat_interleave(torch.tensor(reduced.lengths))
        keys[head, places], values[head, places] = reduced.keys[0], reduced.values[0]
    return LayerKV(keys, values, layer.positions)


def taken_inputs(inputs: Payload, by_token: frozenset[str], kept: Tensor, heads: int) -> dict[str, Tensor]:
    """``inputs`` of a layer as they are after ``take``: of those ``by_token``, the entries of the kept tokens."""
    if kept.all():
        return dict(inputs)
    cut: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        if name not in by_token:
            cut[name] = tensor
        elif kept.shape[0] == 1:
            cut[name] = tensor[..., kept[0]]
        elif tensor.ndim == 1:
            cut[name] = tensor.expand(heads, -1)[kept]
        else:
            cut[name] = tensor[kept][None]
    return cut
