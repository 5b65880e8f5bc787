"""The reference for a restored cache: a context's raw cache, and the logits over it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvtool.engines.batching.generate_many import logits_after
from kvtool.engines.cache import DocumentCache
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context


@dataclass(frozen=True)
class Reference:
    """The raw cache, and the logits over it, [S, V]; None for a context that feeds nothing."""

    cache: DocumentCache
    logits: Tensor | None


def measure_reference(bench: Bench, context: Context) -> Reference:
    """The reference of the context that the bench holds."""
    # The cache that is fed loses its last token, so the one that is kept is loaded apart.
    logits = logits_over(bench, bench.load(), context) if context.fed else None
    return Reference(bench.load(), logits)


def logits_over(bench: Bench, cache: DocumentCache, context: Context, position: int | None = None) -> Tensor:
    """The logits [S, V] of ``context.fed`` over ``cache``.

    The cache loses its last token, which is fed first. Where pruning has removed tokens, ``position`` is that of the token
    after the context, and the cache is left as it is.
    """
    if position is None:
        cache.crop(-1)
        return logits_after(bench.model, cache, context.fed)
    return logits_after(bench.model, cache, context.fed, position=position - 1)
