"""Raw artifacts → compressed variants beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

from . import artifact
from .codecs import CodecError, Pipeline
from .codecs.registry import recipe as find_recipe
from .errors import KvtoolError, StoreError, UsageError
from .manifest import RAW, Document, Variant
from .store import Store

DEFAULT_RECIPE = "kivi"


@dataclass
class Report:
    """What a run has done so far. Bytes are of the documents' raw artifacts and of the variants just made."""

    compressed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    variant: str = ""
    documents_total: int = 0
    raw_nbytes: int = 0
    nbytes: int = 0
    n_elements: int = 0
    seconds: float = 0.0


def compress(
    store: Store,
    names: str | Iterable[str] | None = None,
    *,
    recipe: str = DEFAULT_RECIPE,
    name: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
    **parameters: int | float | str,
) -> Report:
    """Compresses the raw artifacts of ``names`` (default: all documents) into the variant ``name``.

    The variant is called after the recipe unless ``name`` is given. ``parameters`` are the recipe's, such as
    ``bits``. A variant that is there with the same pipeline is left alone; one with another is refused unless
    ``replace``. ``dry_run`` says which documents would be compressed, and reports no sizes.

    Raises ``UsageError`` for an unknown recipe, parameter or value.
    """
    started = time.monotonic()
    try:
        pipeline = find_recipe(recipe).build(**parameters)
    except CodecError as error:
        raise UsageError(str(error)) from error
    variant = name or recipe
    if variant == RAW:
        raise UsageError(f"--name {RAW}: is kept for what prefill made; choose another")
    made: dict[str, object] = {"name": recipe, "pipeline": pipeline.to_config()}
    chosen = [names] if isinstance(names, str) else list(store if names is None else names)
    report = Report(variant=variant, documents_total=len(chosen))
    # An empty store is not made one by asking.
    with store.writing() if store and not dry_run else nullcontext():
        for document_name in chosen:
            try:
                _refuse_replacing(store[document_name], variant, made, replace)
                if dry_run:
                    done = _is_made(store, store[document_name], variant, made)
                    (report.unchanged if done else report.compressed).append(document_name)
                else:
                    _compress(store, document_name, variant, made, pipeline, report)
            except KvtoolError as error:
                if names is not None and len(chosen) == 1:
                    raise
                report.problems.append(error)
            on_progress(report)
    report.seconds = time.monotonic() - started
    return report


def _refuse_replacing(document: Document, variant: str, made: dict[str, object], replace: bool) -> None:
    for segment in document.segments:
        there = segment.variants.get(variant)
        if there and there.recipe != made and not replace:
            raise StoreError(
                f"{document.name}: has a variant {variant!r} made otherwise; give this one another --name, or "
                "--replace it"
            )


def _is_made(store: Store, document: Document, variant: str, made: dict[str, object]) -> bool:
    there = [segment.variants.get(variant) for segment in document.segments]
    return all(found is not None and found.recipe == made and store.holds(found) for found in there)


def _compress(
    store: Store,
    name: str,
    variant: str,
    made: dict[str, object],
    pipeline: Pipeline,
    report: Report,
) -> None:
    changes: dict[str, Variant] = {}
    for index, segment in enumerate(store[name].segments):
        there = segment.variants.get(variant)
        original = store.open(name, RAW, index)
        if there and there.recipe == made and store.holds(there):
            new = there
        else:
            try:
                content = artifact.compressed(original, pipeline)
            except CodecError as error:
                raise StoreError(
                    f"{name}: segment {index} cannot be compressed by {variant}: {error}"
                ) from error
            stored = store.put(content)
            new = changes[segment.identity] = Variant(stored.artifact, stored.nbytes, made)
        report.raw_nbytes += original.nbytes
        report.nbytes += new.nbytes
        report.n_elements += original.contents.geometry.n_elements
    if changes:
        with store.changing():
            document = store[name]
            for index, segment in enumerate(document.segments):
                if segment.identity in changes:
                    document = document.with_variant(index, variant, changes[segment.identity])
            store.commit(document)
    (report.compressed if changes else report.unchanged).append(name)
