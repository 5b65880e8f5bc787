"""One candidate on one context: bytes, errors, predictions and answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvtool.engines.batching.generate_many import generate_many
from kvtool.evaluation.candidates import Candidate
from kvtool.measurement.bench import Bench
from kvtool.measurement.contexts import Context
from kvtool.measurement.distortion import cache_error, distortion
from kvtool.measurement.reference import Reference, logits_over


def measure(bench: Bench, context: Context, candidate: Candidate, reference: Reference) -> dict[str, Any]:
    """A record of everything that is measured, as JSON.

    - ``nbytes`` that are stored, and ``n_elements``;
    - ``resident_nbytes`` of the loaded cache's tensors, without room for more tokens, and ``resident_elements`` of a raw one.
      Both are with the prefix;
    - ``error``: squared errors and squares by layer and head, as ``cache_error`` gives them;
    - ``TOKEN_METRICS``: for each token that is fed;
    - ``answers``: the answer to each prompt.
    """
    restored = candidate.restore(bench)
    restored.cache.fit(0)
    start = len(bench.prefix.token_ids)
    sides = [side for layer in reference.cache.layers for side in (layer.keys, layer.values)]
    record: dict[str, Any] = {
        "nbytes": restored.nbytes,
        "n_elements": sum(side[:, :, start:].numel() for side in sides),
        "resident_nbytes": restored.cache.nbytes,
        "resident_elements": sum(side.numel() for side in sides),
        "error": cache_error(reference.cache, restored.cache, start),
    }
    if context.prompts:
        answers = generate_many(
            bench.model,
            restored.cache,
            [prompt.token_ids for prompt in context.prompts],
            [prompt.max_tokens for prompt in context.prompts],
            position=restored.position,
        )
        record["answers"] = [bench.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    if reference.logits is not None:
        logits = logits_over(bench, restored.cache, context, restored.position)
        record |= asdict(distortion(reference.logits, logits, context.targets))
    return record
