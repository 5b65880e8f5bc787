"""One candidate on one context: what is stored, what comes back, what the model then says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from kvtool.engines.batching.generate_many import answer_each, follow
from kvtool.engines.cache import DocumentCache
from kvtool.evaluation.candidates import Candidate
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context
from kvtool.measurement.distortion import cache_error, distortion


@dataclass(frozen=True)
class Reference:
    """The context's raw cache, and the logits over it [S, V], None where nothing is fed."""

    cache: DocumentCache
    logits: Tensor | None


def reference(bench: Bench, context: Context) -> Reference:
    """Of the context that the bench holds."""
    # A load of its own: the cache that is fed loses its last token's very bits.
    logits = followed(bench, bench.load(), context, None) if context.fed else None
    return Reference(bench.load(), logits)


def measure(bench: Bench, context: Context, candidate: Candidate, raw: Reference) -> dict[str, Any]:
    """All of it, as JSON:

    - ``nbytes`` and ``n_elements``;
    - ``error``: squared errors and squares by layer and head, as ``cache_error`` has them;
    - ``TOKEN_METRICS``: for each token that is fed;
    - ``said``: the answer to each prompt.
    """
    restored = candidate.restore(bench)
    start = len(bench.prefix.token_ids)
    found: dict[str, Any] = {
        "nbytes": restored.nbytes,
        "n_elements": sum(
            side[:, :, start:].numel() for layer in raw.cache.layers for side in (layer.keys, layer.values)
        ),
        "error": cache_error(raw.cache, restored.cache, start),
    }
    if context.prompts:
        said = answer_each(
            bench.model,
            restored.cache,
            [prompt.token_ids for prompt in context.prompts],
            [prompt.max_tokens for prompt in context.prompts],
            position=restored.position,
        )
        found["said"] = [bench.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    if raw.logits is not None:
        logits = followed(bench, restored.cache, context, restored.position)
        found |= asdict(distortion(raw.logits, logits, context.targets))
    return found


def followed(bench: Bench, cache: DocumentCache, context: Context, position: int | None = None) -> Tensor:
    """Logits [S, V] over ``cache``, which loses its last token, the first that is fed; pruning may have lost it before."""
    if position is None:
        cache.crop(-1)
        return follow(bench.model, cache, context.fed)
    return follow(bench.model, cache, context.fed, position=position - 1)
