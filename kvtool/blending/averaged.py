"""Caches made for blending: a segment's keys and values as they are, on average, behind other documents.

A cache from a prefill of a document alone is right for the place behind the prefix only. Behind other text its keys and
values change, and to a good part they change alike whatever that text is. So each segment is prefilled behind a few
sampled neighbours too; the mean, moved back to the segment's usual place, is kept as the variant ``averaged`` beside the
exact one. How far the single ones lie from their mean says which tokens a blend should rather compute anew.

FusionRAG (arXiv 2601.12904) keeps likely neighbours in sight in the same way, one prompt of them instead of a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.artifact.scores import NEED, SPREAD
from kvtool.artifact.write import raw_content
from kvtool.codecs import KV, LayerKV
from kvtool.digest import digest, digest_token_ids
from kvtool.engines import transformers as engine
from kvtool.engines.attention.probe import observe
from kvtool.engines.cache import DocumentCache
from kvtool.engines.rope import Turned, moved
from kvtool.errors import ArtifactError, KvtoolError, MismatchError, ModelError, StoreError
from kvtool.model.chat_template import BETWEEN, Prefix, document_tokens, prefix_again
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import AVERAGED, Document, Variant

NEIGHBOURS = 4
"""Of each segment. Measured: with two there is a third more left to recompute, with eight no less."""

NEIGHBOUR_TOKENS = 200
"""Of each neighbour."""


@dataclass
class Report:
    """``without_neighbours`` are the documents that no other fits before within the model's context."""

    made: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    without_neighbours: list[str] = field(default_factory=list)
    tokens: int = 0
    tokens_total: int = 0


@dataclass(frozen=True)
class Neighbour:
    """The first tokens of a document, and the cache of prefix and them."""

    document: str
    token_ids: tuple[int, ...]
    cache: DocumentCache


def average(
    store: LocalStore,
    model: Model,
    names: Sequence[str],
    *,
    neighbours: int = NEIGHBOURS,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Makes the variant ``averaged`` of those of ``names`` that have none yet.

    ``neighbours`` other documents of the store, sampled by their names' digests, stand before each segment in turn. Raises
    ``ModelError`` for a model whose keys cannot be moved, ``MismatchError`` for documents of another or under different
    prefixes.
    """
    if model.turned is None:
        raise ModelError(
            model.name,
            (
                f"how {model.config.model_type} rotates its keys is not known, so that its caches cannot "
                "be blended"
            ),
            "prefill without --neighbours",
        )
    report = Report()
    documents = {name: store[name] for name in names}
    _refuse_mixed(documents.values(), model)
    waiting = [name for name, document in documents.items() if not _is_made(store, document)]
    report.unchanged += [name for name in names if name not in waiting]
    report.tokens_total = sum(documents[name].n_tokens for name in waiting) * neighbours
    there: list[Neighbour] = []
    if not waiting:
        return report
    prefix = prefix_again(model, dict(documents[waiting[0]].prefix["origin"]))
    with store.writing():
        for name in waiting:
            document = documents[name]
            there += _more(store, model, document, neighbours + 1 - len(there), {n.document for n in there})
            beside = _beside(model, document, there)[:neighbours]
            if not beside:
                report.without_neighbours.append(name)
                continue
            made = []
            for index in range(len(document.segments)):
                made.append(_segment(store, model, prefix, store.parts(name, segment=index), beside))
                report.tokens += document.segments[index].n_tokens * neighbours
                on_progress(report)
            _commit(store, document, made)
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
    made = [segment.variants.get(AVERAGED) for segment in document.segments]
    return all(variant is not None and store.holds(variant) for variant in made)


def _beside(model: Model, document: Document, there: Sequence[Neighbour]) -> list[Neighbour]:
    """Those that all of its segments can stand behind, where the model reads and rotates as it usually does."""
    assert model.turned is not None
    room = min(model.context - 1, model.turned.up_to or model.context)
    room -= max(segment.n_tokens for segment in document.segments)
    return [n for n in there if n.document != document.name and n.cache.get_seq_length() <= room]


def _more(
    store: LocalStore, model: Model, like: Document, number: int, taken: set[str]
) -> Iterator[Neighbour]:
    """Up to ``number`` further documents under the prefix of ``like``, read by the model behind it."""
    gap = document_tokens(model, BETWEEN)
    for name in sorted(store.keys() - taken, key=lambda name: digest(name.encode())):
        if number <= 0:
            return
        # What is broken stands beside nobody; whoever asks for it hears of it.
        try:
            document = store[name]
            ids = [*store.open(name).token_ids[:NEIGHBOUR_TOKENS].tolist(), *gap]
        except (StoreError, ArtifactError):
            continue
        if (document.model["fingerprint"], document.prefix["digest"]) != (
            like.model["fingerprint"],
            like.prefix["digest"],
        ):
            continue
        parts = [] if document.prefix_artifact is None else [store.open_artifact(document.prefix_artifact)]
        cache = load_cache(parts, model) if parts else engine.new_cache(model, len(ids))
        engine.feed(model, ids, cache)
        number -= 1
        yield Neighbour(document.name, tuple(ids), cache)


def _segment(
    store: LocalStore, model: Model, prefix: Prefix, parts: Sequence[Artifact], beside: Sequence[Neighbour]
) -> Variant:
    original = parts[-1]
    mean, spread = _behind(model, original, beside)
    made = {"behind": [digest_token_ids(neighbour.token_ids) for neighbour in beside]}
    scores = {}
    # A single one does not differ from the mean, which says nothing of how others would.
    if len(beside) > 1:
        received = observe(model, parts)["attention"]
        need = torch.stack([layer.mean(0) for layer in received]).mul(spread).sum(0)
        scores = {SPREAD: spread, NEED: need / need.mean().clamp(min=1e-30)}
    return store.put(raw_content(mean, model, prefix, original.meta["source"], made=made, scores=scores))


@torch.no_grad()
def _behind(model: Model, original: Artifact, beside: Sequence[Neighbour]) -> tuple[KV, Tensor]:
    """The mean over neighbours, and how far values lie from it, [L, T], as a share of what they usually are."""
    turned = model.turned
    assert turned is not None
    ids = original.token_ids.tolist()
    start = original.contents.start or 0
    found = [_behind_one(model, neighbour, ids, start, turned) for neighbour in beside]
    layers, spread, size = [], [], []
    for several in zip(*found, strict=True):
        keys = torch.stack([keys for keys, _ in several])
        values = torch.stack([values for _, values in several])
        own = LayerKV(
            keys.mean(0).to(model.dtype),
            values.mean(0).to(model.dtype),
            torch.arange(start, start + len(ids)),
        )
        layers.append(own)
        apart = (values - values.mean(0)).square().sum((0, 1, 3)) / max(1, len(beside) - 1)
        spread.append(apart.sqrt())
        size.append(values.square().sum((1, 3)).mean())
    # One number for all layers: an error of a large layer's values weighs more than one of a small one's.
    usual = torch.stack(size).mean().sqrt().clamp(min=1e-30)
    return KV(tuple(layers), original.token_ids, original.contents.rope), torch.stack(spread) / usual


def _behind_one(
    model: Model, neighbour: Neighbour, ids: Sequence[int], start: int, turned: Turned
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values behind a neighbour, float32, turned to where they usually stand."""
    cache = neighbour.cache
    held = cache.get_seq_length()
    engine.feed(model, ids, cache)
    found = [
        (
            moved(layer.keys[0, :, held:].cpu(), turned.keys[n], start - held),
            moved(layer.values[0, :, held:].cpu(), turned.values[n], start - held),
        )
        for n, layer in enumerate(cache.layers)
    ]
    cache.crop(-len(ids))
    return found


def _commit(store: LocalStore, seen: Document, made: Sequence[Variant]) -> None:
    with store.changing():
        document = store[seen.name]
        if document.segments != seen.segments:
            raise KvtoolError(seen.name, "was changed meanwhile", "run the same prefill again")
        for index, variant in enumerate(made):
            document = document.with_variant(index, AVERAGED, variant)
        store.commit(document)
