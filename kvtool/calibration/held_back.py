"""Text held back from a calibration, and what a pipeline costs on it: KL, bits, and facts that are no longer found.

In each piece a few facts are hidden. Its last tokens are predicted over the cache of those before them, and the model is asked
for the facts over the same cache. Everything stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from random import Random

import torch
from torch import Tensor

from kvtool.calibration.pieces import Piece, split_off
from kvtool.codecs import KV, Inputs, LayerKV, Pipeline, decode, encode
from kvtool.engines.batching.generate_many import generate_many, logits_after
from kvtool.engines.cache import DocumentCache
from kvtool.engines.prefiller import Prefiller
from kvtool.engines.ragged import joined_layer
from kvtool.engines.stage_inputs import measure_inputs
from kvtool.measurement.contexts import Context, haystack_context
from kvtool.measurement.distortion import distortion
from kvtool.measurement.needles import contained, haystack
from kvtool.measurement.scope import LEAST_CACHED, ROOM
from kvtool.measurement.tasks import LOOKUP, LOOKUP_TOKENS, draw_keys, key_task, needles_of
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model

TOKENS, SHARE = 2048, 8
"""Tokens that are held back, at most, and of how many one is: measuring should take no more than a third of the calibration's
time."""

PREDICTED = 128
"""Tokens at the end of a piece that are predicted."""

SHORTEST = LEAST_CACHED + PREDICTED
"""The fewest tokens of a piece that something is measured on."""

FEWEST_FACTS = 8
"""Facts that are found over the raw cache, at least, for a share of them to mean something."""

FACTS, TOKENS_FOR_FACT = 8, 64
"""Facts in a piece, at most, and tokens of it for each. A small model confuses more."""


PROMPT_TOKENS = 24
"""About as many tokens as a question about a fact has."""


@dataclass(frozen=True)
class Quality:
    """Sums over what was predicted and asked over one cache, or several."""

    kl_sum: float
    tokens: int
    nbytes: int
    n_elements: int
    kept: int
    facts: int

    @property
    def kl(self) -> float:
        return self.kl_sum / self.tokens

    @property
    def bits_per_value(self) -> float:
        return 8 * self.nbytes / self.n_elements

    @property
    def retrieval(self) -> float | None:
        """The share of the facts found over the raw cache that is still found; None for too few to tell."""
        return self.kept / self.facts if self.facts >= FEWEST_FACTS else None

    def __add__(self, other: Quality) -> Quality:
        return Quality(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def hold_back(pieces: Sequence[Piece], tokens: int, model: Model) -> tuple[list[Piece], list[Piece]]:
    """Pieces with ``tokens`` tokens to learn from, or with most of all tokens, and pieces to measure on.

    There are none of the latter where there is too little text for one.
    """
    total = sum(len(piece.token_ids) for piece in pieces)
    sample, rest = split_off(pieces, min(at_most(tokens), max(total - tokens, total // SHARE)))
    cut = (replace(p, token_ids=p.token_ids[: model.context - len(p.prefix_ids) - ROOM]) for p in rest)
    if held_back := [piece for piece in cut if len(piece.token_ids) >= SHORTEST]:
        return sample, held_back
    return split_off(pieces, max(total - tokens, 0))[0], []


def at_most(tokens: int) -> int:
    """The most tokens that are held back beside ``tokens`` that are learned from."""
    return min(TOKENS, tokens // SHARE)


def measuring_cost(piece: Piece) -> int:
    """Tokens of ``piece`` and of what is asked about it, as ``Context.cost`` counts them: about the time of one pipeline."""
    n_tokens = len(piece.token_ids)
    facts = min(FACTS, (n_tokens - PREDICTED) // TOKENS_FOR_FACT)
    return n_tokens + facts * (PROMPT_TOKENS + 8 * LOOKUP_TOKENS)


class HeldBack:
    """One piece, with facts hidden in it: its raw cache, and what the model does over that."""

    def __init__(self, model: Model, piece: Piece, number: int) -> None:
        cached, predicted = piece.token_ids[:-PREDICTED], piece.token_ids[-PREDICTED:]
        self.model = model
        self.context = _hide_facts(model, piece, cached, number)
        prefiller = Prefiller(model, piece.prefix_ids)
        self.prefix = prefiller.prefix
        self.kv = _on_cpu(prefiller.one(self.context.token_ids))
        # The last cached token is fed again, so that every prediction is made over the cache.
        self.fed, self.targets = (self.context.token_ids[-1], *predicted[:-1]), predicted
        self.raw_found = self._facts_found(self._cache(self.kv))
        self.raw_logits = self._logits(self._cache(self.kv))
        self._inputs: dict[frozenset[str], Inputs] = {}

    def quality(self, pipeline: Pipeline) -> Quality:
        blob = encode(self.kv, pipeline, inputs=self._measured(pipeline.needs))
        restored = decode(blob)
        found = self._facts_found(self._cache(restored))
        kl = distortion(self.raw_logits, self._logits(self._cache(restored)), self.targets).kl
        return Quality(
            kl_sum=sum(kl),
            tokens=len(kl),
            nbytes=blob.nbytes,
            n_elements=self.kv.n_elements,
            kept=sum(a and b for a, b in zip(found, self.raw_found, strict=True)),
            facts=sum(self.raw_found),
        )

    def _measured(self, needs: frozenset[str]) -> Inputs:
        if needs not in self._inputs:
            cache = self._cache(self.kv)
            self._inputs[needs] = measure_inputs(self.model, cache, self.kv.token_ids, needs)
        return self._inputs[needs]

    def _facts_found(self, cache: DocumentCache) -> list[bool]:
        prompts = self.context.prompts
        ids = [prompt.token_ids for prompt in prompts]
        answers = generate_many(self.model, cache, ids, [LOOKUP_TOKENS] * len(ids))
        texts = (self.model.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers)
        return [
            all(contained(prompt.about["answers"], text)) for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _logits(self, cache: DocumentCache) -> Tensor:
        cache.crop(-1)
        return logits_after(self.model, cache, self.fed)

    def _cache(self, kv: KV) -> DocumentCache:
        parts = [kv] if self.prefix is None else [self.prefix, kv]
        token_ids = torch.cat([part.token_ids for part in parts])
        cache = DocumentCache(0, token_ids=token_ids)
        layers = zip(*(part.layers for part in parts), strict=True)
        cache.layers = [joined_layer(of_parts, len(token_ids)) for of_parts in layers]
        return cache


def _hide_facts(model: Model, piece: Piece, token_ids: Sequence[int], number: int) -> Context:
    """The text of ``token_ids`` with facts in it, as many as it has room for, and a question for each."""
    text = model.tokenizer.decode(token_ids, skip_special_tokens=True)

    def count_tokens(text: str) -> int:
        return len(document_tokens(model, text))

    keys = draw_keys(Random(number), text, min(FACTS, len(token_ids) // TOKENS_FOR_FACT))
    tasks = [key_task(key, LOOKUP) for key in keys]
    facts = count_tokens("\n".join(needle.text for needle in needles_of(tasks)))
    # A few tokens more than both have: where they meet, there are more.
    length = len(token_ids) + facts + 4 * len(tasks)
    hidden = haystack(piece.source, tasks, text, length, count_tokens)
    return haystack_context(model, piece.prefix, hidden)


def _on_cpu(kv: KV) -> KV:
    layers = (LayerKV(x.keys.cpu(), x.values.cpu(), x.positions) for x in kv.layers)
    return replace(kv, layers=tuple(layers))
