"""Caches made for blending: the mean of a segment's keys and values after other documents.

The cache from a prefill of one document is right only directly after the prefix. After other text its keys and values
change, and largely in the same way whatever that text is. So each segment is prefilled after a few neighbours too.
The mean, moved back to the segment's usual position, is kept as a variant beside the exact one. How far the single
caches lie from their mean says which tokens a blend should rather recompute.

FusionRAG (arXiv 2601.12904) keeps likely neighbours in sight in the same way, with one prompt of them instead of a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtool.artifact.read import Artifact
from kvtool.artifact.scores import SPREAD
from kvtool.artifact.write import raw_content
from kvtool.blending.neighbours import Neighbour, Neighbours
from kvtool.codecs import KV, LayerKV
from kvtool.digest import digest_token_ids
from kvtool.engines import transformers as engine
from kvtool.engines.capabilities import key_rotations
from kvtool.engines.rope import Rotations, moved
from kvtool.errors import KvtoolError, MismatchError, ModelError
from kvtool.model.chat_template import Prefix
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import AVERAGED, Document, Variant

NEIGHBOURS = 4
"""Neighbours of each segment. Measured: two leave a third more to recompute, eight leave no less."""

CHOICE = "mixed"
"""How neighbours are chosen, of ``neighbours.CHOICES``. Measured (docs/results/blending.md): random ones are the best where a
prompt mixes documents of many kinds, similar ones where all are of one source, and a mixture of both is close to the better."""


@dataclass
class Report:
    """The progress of a run. Documents are ``without_neighbours`` if no other fits before them in the model's context."""

    made: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    without_neighbours: list[str] = field(default_factory=list)
    tokens: int = 0
    tokens_total: int = 0


def make_averaged(
    store: LocalStore,
    model: Model,
    names: Sequence[str],
    *,
    neighbours: int = NEIGHBOURS,
    choice: str = CHOICE,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Makes the variant ``averaged`` of those of ``names`` that have none yet.

    Each segment is prefilled after ``neighbours`` other documents of the store, one at a time, chosen as ``choice`` says. A
    document that is added later changes nothing about those that are made. Raises ``ModelError`` for a model whose keys
    cannot be moved, ``MismatchError`` for documents of another model or with different prefixes.
    """
    rotations = key_rotations(model)
    if rotations is None:
        raise ModelError(
            model.name,
            f"how {model.config.model_type} rotates its keys is not known, so that its caches cannot be "
            "blended",
            "prefill without --neighbours",
        )
    report = Report()
    documents = {name: store[name] for name in names}
    _refuse_mixed(documents.values(), model)
    waiting = [name for name, document in documents.items() if not _is_made(store, document)]
    report.unchanged += [name for name in names if name not in waiting]
    report.tokens_total = sum(documents[name].n_tokens for name in waiting) * neighbours
    if not waiting:
        return report
    prefix = store.prefix(documents[waiting[0]].name, model)
    others = Neighbours(store, model, documents[waiting[0]], choice)
    with store.writing():
        for name in waiting:
            document = documents[name]
            fitting = others.of(document, neighbours, _room(model, rotations, document))
            if not fitting:
                report.without_neighbours.append(name)
                continue
            variants = []
            for index, segment in enumerate(document.segments):
                parts = store.parts(name, segment=index)
                variants.append(_segment(store, model, rotations, prefix, parts, fitting))
                report.tokens += segment.n_tokens * neighbours
                on_progress(report)
            _commit(store, document, variants)
            report.made.append(name)
    return report


def _refuse_mixed(documents: Iterable[Document], model: Model) -> None:
    prefixes = {document.prefix["digest"]: document.name for document in documents}
    if len(prefixes) > 1:
        raise MismatchError(
            " and ".join(prefixes.values()),
            "were prefilled under different prefixes",
            "name those under one at a time",
        )
    for document in documents:
        if document.model["fingerprint"] != model.fingerprint:
            raise MismatchError(
                document.name,
                f"was prefilled with {document.model['name']}, not with {model.name}",
                "load that model",
            )


def _is_made(store: LocalStore, document: Document) -> bool:
    variants = [segment.variants.get(AVERAGED) for segment in document.segments]
    return all(variant is not None and store.holds(variant) for variant in variants)


def _room(model: Model, rotations: Rotations, document: Document) -> int:
    """Tokens that may stand before ``document``, so that every segment fits the model's context, rotated as usual."""
    room = min(model.context - 1, rotations.up_to or model.context)
    return room - max(segment.n_tokens for segment in document.segments)


def _segment(
    store: LocalStore,
    model: Model,
    rotations: Rotations,
    prefix: Prefix,
    parts: Sequence[Artifact],
    neighbours: Sequence[Neighbour],
) -> Variant:
    original = parts[-1]
    mean, spread = _mean(model, rotations, original, neighbours)
    made = {"behind": [digest_token_ids(neighbour.token_ids) for neighbour in neighbours]}
    scores = {}
    # A single neighbour is the mean itself, which says nothing about others.
    if len(neighbours) > 1:
        scores = {SPREAD: spread}
    return store.put(raw_content(mean, model, prefix, original.meta["source"], made=made, scores=scores))


@torch.no_grad()
def _mean(
    model: Model, rotations: Rotations, original: Artifact, neighbours: Sequence[Neighbour]
) -> tuple[KV, Tensor]:
    """The mean over neighbours, and how far values lie from it, [L, T], as a share of their usual size."""
    ids = original.token_ids.tolist()
    start = original.contents.start or 0
    positions = torch.arange(start, start + len(ids))
    caches = [_after(model, neighbour, ids, start, rotations) for neighbour in neighbours]
    layers, spread, size = [], [], []
    for pairs in zip(*caches, strict=True):
        keys, values = (torch.stack(states) for states in zip(*pairs, strict=True))
        layers.append(LayerKV(keys.mean(0).to(model.dtype), values.mean(0).to(model.dtype), positions))
        variance = (values - values.mean(0)).square().sum((0, 1, 3)) / max(1, len(neighbours) - 1)
        spread.append(variance.sqrt())
        size.append(values.square().sum((1, 3)).mean())
    # One number for all layers: an error of a large layer's values weighs more than one of a small one's.
    usual = torch.stack(size).mean().sqrt().clamp(min=1e-30)
    return KV(tuple(layers), original.token_ids, original.contents.rope), torch.stack(spread) / usual


def _after(
    model: Model, neighbour: Neighbour, ids: Sequence[int], start: int, rotations: Rotations
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values after a neighbour, float32, moved to their usual positions."""
    cache = neighbour.cache
    offset = cache.get_seq_length()
    engine.feed(model, ids, cache)
    layers = []
    for layer, key_rope, value_rope in zip(cache.layers, rotations.keys, rotations.values, strict=True):
        keys = moved(layer.keys[0, :, offset:].cpu(), key_rope, start - offset)
        values = moved(layer.values[0, :, offset:].cpu(), value_rope, start - offset)
        layers.append((keys, values))
    cache.crop(-len(ids))
    return layers


def _commit(store: LocalStore, seen: Document, variants: Sequence[Variant]) -> None:
    with store.changing():
        document = store[seen.name]
        if document.segments != seen.segments:
            raise KvtoolError(seen.name, "was changed meanwhile", "run the same prefill again")
        for index, variant in enumerate(variants):
            document = document.with_variant(index, AVERAGED, variant)
        store.commit(document)
