"""The attention that a cache is read with: the model's own, or one that knows what the cache is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from kvtool.codecs import Geometry
from kvtool.engines.attention.override import Attention, family_attention, override_attention
from kvtool.engines.attention.parallel_encoding import parallel_attention, parallel_error
from kvtool.engines.attention.ragged import PrunedAttention
from kvtool.engines.cache import DocumentCache, refuse_pruned
from kvtool.engines.capabilities import has_softmax_attention, is_replaceable, takes_biases
from kvtool.engines.ragged import reading_pruned
from kvtool.errors import ModelError
from kvtool.model.model import Model


@contextmanager
def cache_attention(model: Model, cache: DocumentCache | None) -> Iterator[None]:
    """Makes ``model`` attend to ``cache`` as it must be read; the model is as it was afterwards.

    A cache whose documents were encoded in parallel (``cache.parallel``), or whose layers do not hold every token, has
    attention of ours. For any other, and for None, nothing changes. Raises ``ModelError`` where the model's attention cannot
    be replaced, or cannot add the cache's biases.
    """
    if cache is None or (cache.holds_all and cache.parallel is None):
        yield
        return
    refusal = pruned_attention_error(model) if cache.parallel is None else parallel_error(model)
    with reading_pruned(), override_attention(model, attention_to(model, cache), refusal):
        yield


def attention_to(model: Model, cache: DocumentCache) -> Attention:
    """The attention to ``cache``, for ``override_attention``. Raises ``ModelError`` as ``cache_attention`` does."""
    if cache.parallel is not None:
        refuse_pruned(cache, "reading documents that were encoded in parallel")
        return parallel_attention(cache, cache.parallel)
    implementation = model.model.config.get_text_config(decoder=True)._attn_implementation
    if cache.holds_all:
        return partial(family_attention, implementation)
    return PrunedAttention(model, cache, implementation, is_softmax=has_softmax_attention(model))


def refuse_unreadable(model: Model, geometry: Geometry) -> None:
    """Raises ``ModelError`` for a cache of ``geometry`` that ``model`` could not be run over, before it is loaded."""
    if geometry.is_pruned and not is_replaceable(model):
        raise pruned_attention_error(model)
    biased = [index for index, layer in enumerate(geometry.layers) if layer.biased]
    if biased:
        refuse_biases(model, biased[0])


def refuse_biases(model: Model, layer: int = 0) -> None:
    """Raises ``ModelError``, naming ``layer``, where biases cannot be added to the model's scores."""
    if takes_biases(model):
        return
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
    kind = f" ({kinds[layer]})" if kinds else ""
    raise ModelError(
        model.name,
        f"the attention of {model.config.model_type} adds no numbers to its scores before a softmax, so that layer {layer}{kind} "
        "cannot have the biases of a token that stands for others",
        "compress with a recipe that makes no biases, such as kvzip",
    )


def pruned_attention_error(model: Model) -> ModelError:
    return ModelError(
        model.name,
        f"the attention of {model.config.model_type} does not go through transformers' AttentionInterface, so that a "
        "pruned cache cannot be read with it",
        "load the raw variant, or one of a recipe that keeps every token",
    )
